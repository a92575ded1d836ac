"""The checkpoints in the folder of a run or at any fsspec address: their names, which are whole, what run they are of.

    step-00000100/…             weights and optimizer state (`emu/train/checkpoint.py`)
                  state.json    step, position in the data, configuration of the run; written last
    latest                      the name of the newest checkpoint; written when that is whole

A run resumes from the checkpoint that `latest` names. A kill at any moment leaves that one as it is; what was begun
after it is removed when the run continues.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec.core
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

VERSION = 2
FOLDER = "checkpoints"
NAME = re.compile(r"step-(\d{8,})")
STATE, LATEST = "state.json", "latest"
CLAIM = "written_alone"
"""An empty file of a checkpoint that one rank wrote for all, when others were lost."""
FIRST_VERSION = "optimizer.pt"
"""A file that only checkpoints of version 1 have."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be written or read, or that does not belong to this run or version."""


@dataclass(frozen=True)
class Progress:
    """The progress of a run: steps done, position in the data, counts of what was processed, and its configuration."""

    step: int
    data: Mapping[str, Any]
    counts: Mapping[str, int]
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint: the folder or address that holds those of its run, and its step."""

    folder: str
    step: int

    @property
    def name(self) -> str:
        """Its name in the folder."""
        return f"step-{self.step:08d}"

    @property
    def address(self) -> str:
        """Its own folder or address."""
        return f"{self.folder}/{self.name}"

    def __str__(self) -> str:
        """The address, for messages."""
        return self.address


def checkpoints(folder: str | Path) -> list[Checkpoint]:
    """The whole checkpoints in a folder or at an address, oldest first; the last one is that of `latest`."""
    fs, root = fsspec.core.url_to_fs(str(folder))
    latest = _read_latest(fs, root)
    steps = [step for step in _steps(fs, root) if step <= latest]
    steps = [s for s in steps if fs.exists(f"{root}/{Checkpoint(root, s).name}/{STATE}")]
    if latest >= 0 and latest not in steps:
        raise CheckpointError(
            f"{folder}/{LATEST} names {Checkpoint(root, latest).name}, which is absent or not whole; write the name "
            "of one that is whole into it"
        )
    return [Checkpoint(str(folder), step) for step in steps]


def check_version(folder: str | Path) -> None:
    """Raise `CheckpointError` for a folder with checkpoints of an earlier release, which this one does not read."""
    fs, root = fsspec.core.url_to_fs(str(folder))
    if _read_latest(fs, root) >= 0:
        return
    for step in _steps(fs, root):
        name = Checkpoint(root, step).name
        if fs.exists(f"{root}/{name}/{FIRST_VERSION}"):
            raise CheckpointError(
                f"{folder}/{name}: version 1, this release reads {VERSION}; finish the run with the release that "
                "began it, or give another --out to start a new run"
            )


def keep_newest(folder: str | Path, keep: int) -> None:
    """Delete all but the newest checkpoints, and what killed writers left."""
    fs, root = fsspec.core.url_to_fs(str(folder))
    kept = {checkpoint.step for checkpoint in checkpoints(folder)[-keep:]}
    for step in _steps(fs, root):
        if step not in kept:
            path = f"{root}/{Checkpoint(root, step).name}"
            if fs.exists(f"{path}/{STATE}"):  # first: without it a checkpoint is none
                fs.rm(f"{path}/{STATE}")
            fs.rm(path, recursive=True)


def read_progress(checkpoint: Checkpoint) -> Progress:
    """The progress saved in a checkpoint; raises `CheckpointError` for another version."""
    fs, path = fsspec.core.url_to_fs(f"{checkpoint.address}/{STATE}")
    state = json.loads(fs.read_text(path))
    if state["version"] != VERSION:
        raise CheckpointError(
            f"{checkpoint}: version {state['version']}, this release reads {VERSION}"
        )
    return Progress(state["step"], state["data"], state["counts"], state["config"])


def claim(checkpoint: Checkpoint) -> bool:
    """Whether this process may write a checkpoint alone: the first that asks may, in a folder.

    Object stores have no such order; there all may write the same bytes, and each file appears as a whole.
    """
    fs, path = fsspec.core.url_to_fs(f"{checkpoint.address}/{CLAIM}")
    if not isinstance(fs, LocalFileSystem):
        return True
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    try:
        Path(path).open("x").close()
    except FileExistsError:
        return False
    return True


def make_whole(checkpoint: Checkpoint, progress: Progress) -> None:
    """Write what makes a checkpoint count, when all its tensors are written: its state, then `latest`."""
    state = {"version": VERSION, "step": progress.step}
    state |= {"data": dict(progress.data), "counts": dict(progress.counts)}
    state |= {"config": dict(progress.config)}
    text = json.dumps(state, indent=2, sort_keys=True) + "\n"
    _write(f"{checkpoint.address}/{STATE}", text)
    fs, root = fsspec.core.url_to_fs(checkpoint.folder)
    if checkpoint.step >= _read_latest(fs, root):
        _write(f"{checkpoint.folder}/{LATEST}", f"{checkpoint.name}\n")


def check_same_run(
    then: Mapping[str, Any], now: Mapping[str, Any], where: Checkpoint, out: Path
) -> None:
    """Raise `CheckpointError` naming the options in which a resumed run would differ."""
    before, after = flat(then), flat(now)
    names = [n for n in sorted({*before, *after}) if before.get(n) != after.get(n)]
    if names == ["train.steps"]:
        raise CheckpointError(_other_length(before[names[0]], after[names[0]], out))
    if names:
        shown = "; ".join(f"{n}: was {before.get(n)!r}, now {after.get(n)!r}" for n in names[:5])
        raise CheckpointError(
            f"{where}: the run has another configuration: {shown}. Give the same options to resume it, or "
            "another --out to start a new run"
        )


def _other_length(then: int, now: int, out: Path) -> str:
    """Why a run cannot be given another length, and which options train on."""
    return (
        f"{out}: the learning rate of this run is scheduled over {then} steps, so its length cannot become {now}. "
        f"Resume it with --steps {then}; to train a finished run further, start another from its model: "
        f"--init {out / 'model'} --out ANOTHER_FOLDER --steps {max(1, now - then)}"
    )


def _read_latest(fs: AbstractFileSystem, root: str) -> int:
    """The step of the newest checkpoint, -1 if there is none."""
    path = f"{root}/{LATEST}"
    fs.invalidate_cache(root)
    if not fs.exists(path):
        return -1
    text = str(fs.read_text(path)).strip()
    match = NAME.fullmatch(text)
    if match is None:
        raise CheckpointError(f"{path} holds {text!r}, needed is a name such as step-00000100")
    return int(match[1])


def _steps(fs: AbstractFileSystem, root: str) -> list[int]:
    """The steps of all checkpoints, whole or not, in order."""
    if not fs.isdir(root):
        return []
    names = [str(path).rstrip("/").rpartition("/")[2] for path in fs.ls(root, detail=False)]
    return sorted(int(match[1]) for match in map(NAME.fullmatch, names) if match)


def _write(address: str, text: str) -> None:
    """Write a small file so that it is there as a whole or not at all."""
    fs, path = fsspec.core.url_to_fs(address)
    if not isinstance(fs, LocalFileSystem):
        fs.pipe_file(path, text.encode())
        return
    temporary = Path(path).with_name(f".{Path(path).name}.partial")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    for folder in (Path(path).parent, Path(path).parent.parent):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options as one mapping, with dots in the names."""
    found: dict[str, Any] = {}
    for name, inner in value.items():
        if isinstance(inner, Mapping):
            found |= flat(inner, f"{prefix}{name}.")
        else:
            found[prefix + name] = inner
    return found
