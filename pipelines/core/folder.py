"""The folder of a dataset: its manifest, the lock on it, and whether a dataset can be there at all."""

import errno
import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from pipelines.core.pipeline import LockedError, RefusedError
from pipelines.core.storage import ATTEMPTS, Storage, StorageError
from pipelines.core.workspace import WORK
from schemas.manifest import MANIFEST_FILE, Manifest, manifest_from_json
from schemas.validation import SchemaError

log = logging.getLogger(__name__)

LOCK = f"{WORK}/lock"
LOCK_TIMEOUT_S = 0.2
"""Long enough for a lock that is being released, too short to be noticed."""
UNUSABLE = (errno.ENOTDIR, errno.ENOENT, errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.EROFS)
"""Errors of a folder that was named wrongly; other errors (a full disk) may pass."""


def load_manifest(storage: Storage) -> Manifest | None:
    """The manifest of a finished dataset, or null where there is none."""
    if not storage.exists(MANIFEST_FILE):
        return None
    where = storage.address(MANIFEST_FILE)
    try:
        text = storage.read_bytes(MANIFEST_FILE).decode()
    except UnicodeDecodeError as error:
        raise SchemaError(f"{where}: not a manifest: {error}") from error
    return manifest_from_json(text, where)


def finished_manifest(storage: Storage) -> Manifest:
    """The manifest of a finished dataset; raises `RefusedError` with a hint where there is none."""
    manifest = load_manifest(storage)
    if manifest is None:
        raise RefusedError(
            f"{storage.root}: no {MANIFEST_FILE}: not a dataset, or its build has not finished; check the path, "
            "or run the build again with the same --out to resume it"
        )
    return manifest


@contextmanager
def refusing_unusable() -> Iterator[None]:
    """Turns errors of a folder that no dataset can be in into `RefusedError`; for the first look at it."""
    try:
        yield
    except StorageError as error:
        if error.errno in UNUSABLE:
            raise RefusedError(str(error)) from error
        raise


@contextmanager
def exclusive(storage: Storage) -> Iterator[None]:
    """Hold the dataset for the length of the block; raises `LockedError` naming the process that holds it.

    The kernel holds the lock and drops it with the process, however that ends. Object stores have none: there
    nothing is held. At the end the lock file is removed, and the folder `.work` if nothing else is in it.
    """
    if not storage.is_local:
        yield
        return
    path = storage.local_path(LOCK)
    with refusing_unusable(), storage.explained(LOCK), storage.can_be_made(LOCK):
        lock = _acquired(path)
    try:
        yield
    finally:
        # Removed while it is held: a run that has opened it already sees that it is gone, and opens another.
        path.unlink(missing_ok=True)
        # Not empty: an unfinished build, or the lock of the run after us.
        with suppress(OSError):
            path.parent.rmdir()
        lock.release()


def _acquired(path: Path) -> FileLock:
    lock = FileLock(path, fallback_to_soft=False, poll_interval=LOCK_TIMEOUT_S / 4)
    for attempt in range(ATTEMPTS):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=LOCK_TIMEOUT_S)
            path.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
            break
        except Timeout:
            raise LockedError(_held(path)) from None
        except (FileNotFoundError, FileExistsError):
            # The holder before us may delete the folder in between.
            if attempt == ATTEMPTS - 1:
                raise
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
            log.warning("lock=none path=%s cause='%s'", path, error.strerror)
            break
    return lock


def _held(path: Path) -> str:
    try:
        holder = json.loads(path.read_bytes())
        who = f"process {holder['pid']} on host {holder['host']}"
    except (OSError, ValueError, KeyError):
        who = "another process"
    folder = path.parent.parent
    return f"{who} works on '{folder}'; wait for it, or choose another folder"
