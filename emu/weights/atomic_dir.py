"""A directory that appears under its name as a whole or not at all, whenever its writer is killed.

It is written beside its final place as `.NAME.partial` and renamed at the end. A writer that starts again
clears what a killed one left; two at once are told apart by a lock.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

SPARE_BYTES = 1 << 24  # for the small files beside the weights


@contextmanager
def new_directory(
    final: Path, is_ours: Callable[[Path], bool], overwrite: bool = False
) -> Iterator[Path]:
    """An empty directory that becomes `final` when the block ends well, and is removed when it does not.

    `final` may be absent or empty, or with `overwrite` a directory that `is_ours` knows, which is then
    replaced as a whole. Raises FileExistsError otherwise, BlockingIOError while another process writes it.
    """
    final = final.resolve()  # a link's target: the large files belong on its disk
    partial, old = (final.with_name(f".{final.name}.{end}") for end in ("partial", "old"))
    final.parent.mkdir(parents=True, exist_ok=True)
    with _locked(partial):
        try:
            if old.is_dir() and not final.exists():
                old.replace(final)  # killed between the two renames
            check_free(final, is_ours, overwrite)
            _clear(partial)
            yield partial
            _sync_all(partial)
            if final.exists():
                shutil.rmtree(old, ignore_errors=True)
                final.replace(old)
            partial.replace(final)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        _sync(final.parent)
        shutil.rmtree(old, ignore_errors=True)


def check_free(final: Path, is_ours: Callable[[Path], bool], overwrite: bool) -> None:
    """Raises FileExistsError where something lies at `final` that must not be replaced."""
    if final.is_mount():
        raise FileExistsError(
            f"{final} is a mount point, which cannot be replaced; give a folder in it"
        )
    if not final.exists() or (final.is_dir() and not any(final.iterdir())):
        return
    if not final.is_dir() or not is_ours(final):
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


@contextmanager
def _locked(partial: Path) -> Iterator[None]:
    partial.mkdir(exist_ok=True)
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(f"another process is writing {partial}; wait for it") from error
        if not partial.is_dir() or not os.path.samestat(os.fstat(descriptor), partial.stat()):
            raise BlockingIOError(f"another process has just written {partial}; start again")
        yield
    finally:
        os.close(descriptor)


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _sync_all(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
