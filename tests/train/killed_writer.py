"""Writers that are killed at every step of their file operations.

A child process writes over what an earlier one wrote and is killed (SIGKILL) before its first operation that renames,
removes or makes something, in the next round before its second, until one gets to its end. After each kill a complete
model or checkpoint, the old or the new one, must load, and the next writer must leave nothing beside its own.
"""

import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from emu.models.emu import Emu
from emu.recipes import OptimConfig
from emu.tokenizer import EmuTokenizer
from emu.train.checkpoint import CheckpointWriter, read_tensors
from emu.train.checkpoint_folder import Progress, checkpoints, read_progress
from emu.train.optim import make_optimizer
from emu.train.plan import publish_model
from emu.weights.layout import new_directory, restore
from emu.weights.store import load_model, weights_hash
from tests.data.small_dataset import small_tokenizer
from tests.train.plans import mini_config

OPERATIONS = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "ctypes.dlsym")
"""Audit events, raised before each; looking up `renameat2` stands for the exchange that follows it."""


@dataclass(frozen=True)
class Writer:
    """What a round does: `write` a version (0, 1) into a folder, and `read` which versions are complete there."""

    write: Callable[[Path, int], None]
    read: Callable[[Path], list[int]]
    names: tuple[str, ...]
    """What is in the folder after a whole write."""


def kill_at_every_step(root: Path, name: str, has_exchange: bool) -> None:
    """Kill a writer, read, write again, until it is not killed.

    Writes into `kills.json` how many children were killed, and after how many of the kills the new one was in place.
    """
    torch.set_num_threads(1)
    folder, writer = root / "out", writers(root)[name]
    kills = 0
    found: list[int] = []
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        writer.write(folder, 0)
        status = child(lambda: writer.write(folder, 1), kills, has_exchange)
        complete = writer.read(folder)
        assert complete and set(complete) <= {0, 1}, (kills, complete, names(folder))
        if status == 0:
            break
        assert status == -signal.SIGKILL, status
        kills += 1
        found.append(complete[-1])
        writer.write(folder, 1)
        assert names(folder) == writer.names, (kills, names(folder))
        assert writer.read(folder)[-1] == 1
    assert names(folder) == writer.names and writer.read(folder)[-1] == 1
    (root / "kills.json").write_text(json.dumps({"kills": kills, "new": sum(found)}))


def child(work: Callable[[], None], num_operations: int, has_exchange: bool) -> int:
    """Runs `work` in a process that is killed before its next operation after that many; its exit code."""
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    left = [num_operations]

    def count(event: str, arguments: tuple[object, ...]) -> None:
        if event == "ctypes.dlsym" and arguments[1] == "renameat2" and not has_exchange:
            raise AttributeError("as a C library without it says")
        if event in OPERATIONS and "__pycache__" not in str(arguments):
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1

    sys.addaudithook(count)
    try:
        work()
        os._exit(0)
    finally:
        traceback.print_exc()
        os._exit(1)


def writers(root: Path) -> dict[str, Writer]:
    """The writers by name, with their two versions of a model."""
    tokenizer = root / "tokenizer.model"
    small_tokenizer(tokenizer)
    config = mini_config(EmuTokenizer.load(tokenizer).num_pieces)
    models = []
    for seed in (0, 1):
        models.append(Emu(config))
        models[-1].init_weights(seed)
    hashes = [weights_hash(model) for model in models]

    def write_model(folder: Path, version: int) -> None:
        publish_model(folder / "model", models[version], str(tokenizer))

    def read_model(folder: Path) -> list[int]:
        return [hashes.index(weights_hash(load_model(folder / "model")[0]))]

    def write_checkpoint(folder: Path, version: int) -> None:
        """Version 0 is step 1; version 1 adds step 2 and removes step 1."""
        optimizer = make_optimizer(models[version], OptimConfig())
        where = str(folder / "checkpoints")
        checkpoint_writer = CheckpointWriter(where, models[version], optimizer, keep=1)
        checkpoint_writer.save(Progress(version + 1, {}, {}, {}))
        checkpoint_writer.wait()
        checkpoint_writer.close()

    def read_checkpoints(folder: Path) -> list[int]:
        steps = []
        for checkpoint in checkpoints(folder / "checkpoints"):
            step = read_progress(checkpoint).step
            tensors = read_tensors(checkpoint)
            assert all(
                torch.equal(tensors[f"model.{name}"], weight)
                for name, weight in models[step - 1].state_dict().items()
            )
            steps.append(step - 1)
        return steps

    def write_files(folder: Path, version: int) -> None:
        with new_directory(folder / "x", lambda folder: True, overwrite=True) as new:
            (new / "inner").mkdir()
            (new / "inner" / "version").write_text(str(version))

    def read_files(folder: Path) -> list[int]:
        restore(folder / "x")
        return [int((folder / "x" / "inner" / "version").read_text())]

    return {
        "model": Writer(write_model, read_model, ("model",)),
        "checkpoint": Writer(write_checkpoint, read_checkpoints, ("checkpoints",)),
        "files": Writer(write_files, read_files, ("x",)),
    }


def names(folder: Path) -> tuple[str, ...]:
    """All names in the folder, and hidden ones of its checkpoints."""
    hidden = [path.name for path in (folder / "checkpoints").glob(".*")]
    return tuple(sorted([path.name for path in folder.iterdir()] + hidden))
