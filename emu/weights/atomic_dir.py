"""Atomic writes of whole directories: after a kill at any moment, the old or the new one is complete.

A directory is written as `.NAME.partial` beside its final path, flushed to disk, and then takes the place of the
one before: in one step where the system can exchange two directories (Linux), otherwise by two renames, with the
one before kept as `.NAME.old` until both are done. `restore` puts it back after a kill between the two.
`.NAME.lock` keeps two writers apart. The next writer removes what a killed one left.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

SPARE_BYTES = 1 << 24  # for the small files beside the weights
PARTIAL, OLD, REMOVED, LOCK = "partial", "old", "removed", "lock"
ENDINGS = (PARTIAL, OLD, REMOVED, LOCK)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


@contextmanager
def new_directory(
    final: Path, is_replaceable: Callable[[Path], bool], overwrite: bool = False
) -> Iterator[Path]:
    """Yields an empty directory that becomes `final` when the block succeeds and is removed when it fails.

    `final` may be absent or empty, or, with `overwrite`, a directory that `is_replaceable` accepts; that one is
    replaced as a whole. Raises FileExistsError otherwise, BlockingIOError while another process writes `final`.
    """
    final = final.resolve()  # of a link, the target: the large files belong on its disk
    final.parent.mkdir(parents=True, exist_ok=True)
    partial, old = _beside(final, PARTIAL), _beside(final, OLD)
    with _locked(final):
        _clean_up(final)
        check_free(final, is_replaceable, overwrite)
        partial.mkdir()
        try:
            yield partial
            _sync_all(partial)
            _put_in_place(partial, final)
        except BaseException:
            _clean_up(final)
            raise
        _sync(final.parent)
        for leftover in (partial, old):
            shutil.rmtree(leftover, ignore_errors=True)


def restore(final: Path) -> None:
    """Puts the directory before back under its name where a writer was killed between its two renames.

    For readers; does nothing while `final` exists. Raises OSError, with what to do, where it cannot be renamed.
    """
    final = final.resolve()
    old = _beside(final, OLD)
    if final.exists() or not old.is_dir():
        return
    try:
        with _locked(final):
            _clean_up(final)
    except BlockingIOError:  # the next writer has started, and does it first
        return
    except OSError as error:
        raise OSError(
            f"{final} was being replaced when its writer was killed; the one before is {old}: rename it ({error})"
        ) from error


def remove_directory(path: Path) -> None:
    """Removes a directory; a kill on the way leaves nothing under its name."""
    with _locked(path):
        _clean_up(path)
        path.replace(_beside(path, REMOVED))
        _clean_up(path)


def remove_unfinished(folder: Path) -> None:
    """Removes what killed writers left in `folder`; writers that are active keep their own."""
    leftovers = [path.name for end in ENDINGS for path in folder.glob(f".*.{end}")]
    for name in {name[1:].rpartition(".")[0] for name in leftovers}:
        final = folder / name
        try:
            with _locked(final):
                _clean_up(final)
        except BlockingIOError:
            continue


def check_free(final: Path, is_replaceable: Callable[[Path], bool], overwrite: bool) -> None:
    """Raises FileExistsError where something exists at `final` that must not be replaced."""
    if final.is_mount():
        raise FileExistsError(
            f"{final} is a mount point, which cannot be replaced; give a folder in it"
        )
    if not final.exists() or (final.is_dir() and not any(final.iterdir())):
        return
    if not final.is_dir() or not is_replaceable(final):
        raise FileExistsError(
            f"{final} is no directory of this kind and not empty; give another --out"
        )
    if not overwrite:
        raise FileExistsError(f"{final} exists already; give another --out, or --overwrite")


def check_space(folder: Path, num_bytes: int) -> None:
    """Raises OSError where the disk under `folder` has no room for that many bytes and a little more."""
    existing = next(path for path in [folder, *folder.absolute().parents] if path.is_dir())
    free = shutil.disk_usage(existing).free
    if free < num_bytes + SPARE_BYTES:
        raise OSError(
            f"{existing} has {free / 1e9:.2f} GB free, needed are {(num_bytes + SPARE_BYTES) / 1e9:.2f} GB"
        )


def _beside(final: Path, ending: str) -> Path:
    return final.with_name(f".{final.name}.{ending}")


@contextmanager
def _locked(final: Path) -> Iterator[None]:
    path = _beside(final, LOCK)
    lock = FileLock(path, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise BlockingIOError(f"another process is writing {final}; wait for it") from error
    try:
        yield
    finally:
        # Safe while it is held: filelock refuses a file that was unlinked between its open and its lock.
        path.unlink(missing_ok=True)
        lock.release()


def _clean_up(final: Path) -> None:
    """Leaves `final` alone beside the lock: the one before is put back where it is the only whole one."""
    old = _beside(final, OLD)
    if old.is_dir() and not final.exists():
        old.replace(final)
    for ending in (PARTIAL, OLD, REMOVED):
        if _beside(final, ending).is_dir():
            shutil.rmtree(_beside(final, ending))


def _put_in_place(partial: Path, final: Path) -> None:
    if final.exists() and _exchange(partial, final):
        return
    if final.exists():
        final.replace(_beside(final, OLD))
    partial.replace(final)


def _exchange(one: Path, other: Path) -> bool:
    """Swaps two directories in one step; False where the system or the file system cannot."""
    try:
        import ctypes

        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (ImportError, OSError, AttributeError, TypeError):
        return False
    names = os.fsencode(one), os.fsencode(other)
    if rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(one), None, str(other))


def _sync_all(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
