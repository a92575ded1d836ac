"""Media that are on disk already: a folder, or an fsspec address, beside links to fetch.

Where a build is given a media folder, a link that is no web address is a path in it. Metadata come from elsewhere and
are not trusted: a path that leads out of the folder is refused. Symbolic links in the folder are its owner's, and are
followed.
"""

import errno
import os
import re
import stat
from collections.abc import Mapping
from pathlib import PurePosixPath
from types import MappingProxyType

from pipelines.core.pipeline import Reason, Rejected
from pipelines.core.storage import Storage, StorageError

MEDIA_REASONS: Mapping[str, Reason] = MappingProxyType(
    {
        "media_missing": Reason("The media folder does not contain the file.", retryable=True),
        "media_outside": Reason("The path is absolute or leaves the media folder."),
        "media_too_large": Reason("The file is larger than `max_bytes`."),
        "media_empty": Reason("The file is empty.", retryable=True),
        "media_unreadable": Reason(
            "The file cannot be read or is not a regular file.", retryable=True
        ),
    }
)
"""Why a path gives no bytes."""

_WEB = re.compile(r"\s*https?:", re.IGNORECASE)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)
_CANONICAL = re.compile(r"[a-zA-Z0-9_-][a-zA-Z0-9_.-]*(/[a-zA-Z0-9_-][a-zA-Z0-9_.-]*)*")
"""Paths as nearly all are, below the folder."""
_OPEN = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
_OWN = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO}


def is_web_address(link: str) -> bool:
    """True for a link that is fetched over HTTP whether or not there is a media folder."""
    return _WEB.match(link) is not None


class MediaFolder:
    """The files of a media folder, by relative path.

    Args:
        root: a folder, or an address such as `s3://bucket/clips`.
        max_bytes: a larger file is refused without being read.
    """

    def __init__(self, root: str, max_bytes: int) -> None:
        self._storage = Storage(root)
        self._max_bytes = max_bytes

    def read(self, path: str) -> bytes:
        """The bytes of a file.

        Raises:
            Rejected: with one of `MEDIA_REASONS`.
            OSError: this machine has run out of file descriptors or memory, or its disk fails.
        """
        try:
            return self._read(_inside(path))
        except FileNotFoundError as error:
            raise Rejected("media_missing") from error
        except StorageError as error:
            if error.errno in _OWN and self._storage.is_local:
                raise
            raise Rejected("media_unreadable", os.strerror(error.errno or errno.EIO)) from error

    def _read(self, path: str) -> bytes:
        if self._storage.is_local:
            with self._storage.explained(path):
                data = self._read_local(path)
        else:
            self._check_size(self._storage.size(path))
            data = self._storage.read_bytes(path)
        if not data:
            raise Rejected("media_empty")
        return data

    def _read_local(self, path: str) -> bytes:
        """One open file, asked once: paths as objects and several looks at a file take longer than its bytes."""
        # A pipe is opened without waiting for a writer.
        descriptor = os.open(f"{self._storage.root}/{path}", _OPEN)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise Rejected("media_unreadable", "not a regular file")
            self._check_size(status.st_size)
            data = os.read(descriptor, status.st_size)
            while 0 < len(data) < status.st_size:  # 2 GiB at a time
                more = os.read(descriptor, status.st_size - len(data))
                if not more:
                    break
                data += more
            return data
        finally:
            os.close(descriptor)

    def _check_size(self, size: int) -> None:
        if size > self._max_bytes:
            raise Rejected("media_too_large", f"{size} bytes")


def _inside(path: str) -> str:
    """The path in canonical form; raises where it is not one below the folder."""
    if _CANONICAL.fullmatch(path):
        return path
    pure = PurePosixPath(path.replace("\\", "/").strip())
    parts = [part for part in pure.parts if part != "."]
    is_outside = pure.is_absolute() or ".." in parts or "\0" in path
    if is_outside or not parts or _SCHEME.match(parts[0]):
        raise Rejected("media_outside")
    return "/".join(parts)
