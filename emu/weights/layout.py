"""A model directory: its files, its configuration, the index of its weights, and atomic writes of it. No torch here.

| file                                  | contents                                               |
|---------------------------------------|--------------------------------------------------------|
| `config.json`                         | sizes and options; written last                        |
| `model.safetensors`                   | the weights; or shards and `model.safetensors.index.json` |
| `tokenizer.model`                     | the tokenizer                                          |
| `tokenizer_config.json`, `README.md`, … | for transformers and the hub (`emu.weights.transformers_files`) |
| `decoder/`                            | optional, the visual decoder                           |

Before a server or a run starts, file names and headers are checked: a replica that cannot load its model is
restarted several times before the application fails.

`new_directory` writes any directory atomically: after a kill at any moment, the old or the new one is complete. It is
written as `.NAME.partial` beside its final path, flushed to disk, and then takes the place of the one before: in one
step where the system can exchange two directories (Linux), otherwise by two renames, with the one before kept as
`.NAME.old` until both are done. `restore` puts it back after a kill between the two. `.NAME.lock` keeps two writers
apart. The next writer removes what a killed one left.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open

from emu.config import EmuConfig

CONFIG, TOKENIZER, DECODER = "config.json", "tokenizer.model", "decoder"
WEIGHTS = "model.safetensors"
INDEX = WEIGHTS + ".index.json"
EXPECTED = (
    f"a model is a folder with {CONFIG}, {WEIGHTS} (or its shards and their index) and {TOKENIZER}, "
    "such as OUT/model of emu train or OUT of emu convert"
)
SPARE_BYTES = 1 << 24  # for the small files beside the weights
PARTIAL, OLD, LOCK = "partial", "old", "lock"
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


class WeightsError(ValueError):
    """Files that hold no usable weights; says which file and why."""


def read_config(directory: Path) -> EmuConfig:
    """The configuration of a model directory whose files are all present and not truncated.

    Raises FileNotFoundError naming an absent file, ValueError naming a broken one.
    """
    config = load_config(directory)
    if not (directory / TOKENIZER).is_file():
        raise FileNotFoundError(f"no model at {directory}: {TOKENIZER} is absent")
    weight_files(directory)
    return config


def weight_files(directory: Path) -> list[Path]:
    """The files with the weights of a model directory: one, or the shards of its index.

    Raises FileNotFoundError for an absent file, WeightsError for a truncated one, and where the shards hold other
    tensors than the index says.
    """
    index = read_index(directory / INDEX) if (directory / INDEX).is_file() else None
    files = [directory / WEIGHTS] if index is None else index.files
    names = {file.name: _tensor_names(file) for file in files}
    if index is not None:
        index.check(names)
    return files


@dataclass(frozen=True)
class WeightIndex:
    """The index of sharded weights: tensor name to the name of the file that holds it."""

    path: Path
    file_of: Mapping[str, str]

    @property
    def files(self) -> list[Path]:
        """The shards, in the order of their names."""
        return [self.path.parent / name for name in sorted(set(self.file_of.values()))]

    def check(self, names: Mapping[str, Collection[str]]) -> None:
        """Raises WeightsError where the tensor names of the shards, by file name, are not those of the index.

        A tensor that an older shard still holds is such a difference: it must not replace the one that is meant.
        """
        problems = [
            f"{name} is not in {file}"
            for name, file in self.file_of.items()
            if name not in names.get(file, ())
        ]
        problems += [
            f"{name} is in {file}, where the index has "
            + (self.file_of.get(name) or "no such name")
            for file, found in names.items()
            for name in found
            if self.file_of.get(name) != file
        ]
        if problems:
            raise WeightsError(
                f"{self.path}: the index and its shards differ: {'; '.join(problems)}"
            )


def read_index(path: Path) -> WeightIndex:
    """The index at `path` (`….index.json` of safetensors or PyTorch files) whose shards are all present.

    Raises WeightsError for what is no index and for shards outside its folder, FileNotFoundError naming shards
    that are absent.
    """
    from schemas import strict_json

    try:
        values = strict_json.loads(path.read_bytes())
        file_of = values["weight_map"]
        if not isinstance(file_of, dict) or not all(isinstance(f, str) for f in file_of.values()):
            raise TypeError("weight_map is no object of strings")
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{path} is no index of weights ('weight_map': tensor name to file name): {error!r}"
        ) from error
    files = sorted(set(file_of.values()))
    outside = [name for name in files if Path(name).name != name]
    if outside:
        raise WeightsError(f"{path} names shards outside its folder: {outside}")
    absent = [name for name in files if not (path.parent / name).is_file()]
    if absent:
        raise FileNotFoundError(f"{path} names shards that are absent: {absent}")
    return WeightIndex(path, file_of)


def _tensor_names(file: Path) -> list[str]:
    if not file.is_file():
        raise FileNotFoundError(f"no model at {file.parent}: {file.name} is absent")
    try:
        with safe_open(file, framework="np") as tensors:
            return list(tensors.keys())
    except SafetensorError as error:
        raise WeightsError(
            f"{file} is broken ({error}); was it copied to its end? it has {file.stat().st_size:,} bytes"
        ) from error


def load_config(directory: str | Path) -> EmuConfig:
    """The configuration of a model directory.

    Raises FileNotFoundError where there is no model, with what was found instead and what a model consists of, and
    ValueError naming the file for a configuration that cannot be read.
    """
    for folder in (Path(directory), Path(directory) / DECODER):
        restore(folder)
    path = Path(directory) / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"no model at {directory}: {_found(Path(directory))}; {EXPECTED}")
    try:
        return EmuConfig.from_json(path.read_text("utf-8"))
    except ValueError as error:  # UnicodeDecodeError included
        raise ValueError(f"{path}: {error}") from error


def _found(directory: Path) -> str:
    """What is at a path where a model should be, and where the model may be instead."""
    if directory.is_file():
        return "it is a file"
    if not directory.is_dir():
        return "there is no such folder"
    inner = sorted(path.parent.name for path in directory.glob(f"*/{CONFIG}"))
    if "model" in inner:
        return f"{CONFIG} is absent, but there is a model in {directory / 'model'}"
    if (directory / "state.json").is_file():
        return f"{CONFIG} is absent; it is a checkpoint, from which its run resumes"
    if (directory / "checkpoints").is_dir():
        return f"{CONFIG} is absent; it is a run that has not finished"
    return f"{CONFIG} is absent"


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
    for ending in (PARTIAL, OLD):
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
