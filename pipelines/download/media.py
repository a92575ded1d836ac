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
                mode = self._storage.local_path(path).stat().st_mode
            if not stat.S_ISREG(mode):  # reading a pipe would wait for ever
                raise Rejected("media_unreadable", "not a regular file")
        size = self._storage.size(path)
        if size > self._max_bytes:
            raise Rejected("media_too_large", f"{size} bytes")
        data = self._storage.read_bytes(path)
        if not data:
            raise Rejected("media_empty")
        return data


def _inside(path: str) -> str:
    """The path in canonical form; raises where it is not one below the folder."""
    pure = PurePosixPath(path.replace("\\", "/").strip())
    parts = [part for part in pure.parts if part != "."]
    is_outside = pure.is_absolute() or ".." in parts or "\0" in path
    if is_outside or not parts or _SCHEME.match(parts[0]):
        raise Rejected("media_outside")
    return "/".join(parts)
