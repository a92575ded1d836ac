"""A lock on a folder: one run at a time, and a dead run holds nothing."""

import errno
import fcntl
import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipelines.core.errors import LockedError
from pipelines.core.storage import ATTEMPTS, Storage

log = logging.getLogger(__name__)

LOCK = ".work/lock"


@contextmanager
def exclusive(storage: Storage) -> Iterator[None]:
    """Hold the dataset for the length of the block; raises `LockedError` naming who holds it.

    The kernel keeps the lock and drops it with the process, however that ends. Object stores have none:
    there nothing is held. At the end the lock file goes, and the folder `.work` if nothing else is in it.
    """
    if not storage.is_local:
        yield
        return
    path = storage.local_path(LOCK)
    with storage.explained(LOCK), storage.can_be_made(LOCK):
        descriptor = _acquire(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        # Not empty: an unfinished build, or the lock of the run after us.
        with suppress(OSError):
            path.parent.rmdir()
        os.close(descriptor)


def _acquire(path: Path) -> int:
    while True:
        descriptor = _opened(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockedError(_held(path, os.read(descriptor, 4096))) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP):
                raise
            log.warning("lock=none path=%s cause='%s'", path, error.strerror)
        # The holder before us may have deleted the file after we opened it.
        if path.exists() and os.fstat(descriptor).st_ino == path.stat().st_ino:
            break
        os.close(descriptor)
    os.ftruncate(descriptor, 0)
    holder = {"pid": os.getpid(), "host": socket.gethostname()}
    os.write(descriptor, json.dumps(holder).encode())
    return descriptor


def _opened(path: Path) -> int:
    for _ in range(ATTEMPTS):
        # The holder before us may delete the folder in between.
        with suppress(FileNotFoundError, FileExistsError):
            path.parent.mkdir(parents=True, exist_ok=True)
            return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)


def _held(path: Path, content: bytes) -> str:
    try:
        holder = json.loads(content)
        who = f"process {holder['pid']} on host {holder['host']}"
    except (ValueError, KeyError):
        who = "another process"
    folder = path.parent.parent
    return f"{who} is at work on '{folder}'; wait for it, or choose another folder"
