"""Checkpoints of a run: written by all ranks at once while training goes on, in a folder or at any fsspec address.

The tensors are in the format of torch's distributed checkpoints (DCP): each rank writes what it holds and reads what
it needs, so that another number of ranks can read them, and no rank ever holds the parts of the others. Names,
`latest` and what is beside the tensors: `emu/train/checkpoint_folder.py`.

The dropout masks follow from (seed, step, rank) and the learning rates from the step, so no generator and no scheduler
has a state to save.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import fsspec.core
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from fsspec.implementations.local import LocalFileSystem
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.fsspec_filesystem import FsspecReader, FsspecWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import AsyncSaveResponse
from torch.optim import Optimizer

from emu.models.language_model import LORA
from emu.train.checkpoint_folder import (
    Checkpoint,
    CheckpointError,
    Progress,
    checkpoints,
    claim,
    keep_newest,
    make_whole,
)

MODEL, OPTIMIZER = "model", "optimizer"


NO_GROUP = "torch.distributed is disabled, unavailable or uninitialized"
"""DCP warns of this whenever a single process saves or loads."""


class CheckpointWriter:
    """Writes the checkpoints of a run, one at a time, in the background.

    `save` returns at once: a thread copies the tensors, and another one writes the copy. A step of the optimizer waits
    until they are copied. All ranks call `save` and `wait` at the same steps. The copy takes as much memory of the host
    as the rank's weights and optimizer state; each one is made in the place of the one before.
    """

    def __init__(self, folder: str, model: nn.Module, optimizer: Optimizer, keep: int) -> None:
        """Removes, on the first rank, what killed writers left in `folder`; the newest `keep` are kept from now on."""
        self.folder, self.keep = folder, keep
        self._model, self._optimizer = model, optimizer
        warnings.filterwarnings("ignore", NO_GROUP)
        self._is_local = isinstance(fsspec.core.url_to_fs(folder)[0], LocalFileSystem)
        self._is_first = not dist.is_initialized() or dist.get_rank() == 0
        # A group of its own: its thread communicates while the backward pass uses the others.
        group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        self._group = group if isinstance(group, dist.ProcessGroup) else None
        is_cuda = torch.cuda.is_available()
        self._stager = DefaultStager(StagingOptions(is_cuda, False, True, is_cuda))
        self._finisher = ThreadPoolExecutor(1, "checkpoint")
        self._staging: Future[None] | None = None
        self._pending: Future[Checkpoint] | None = None
        optimizer.register_step_pre_hook(lambda *_: self._wait_for_copy())
        if self._is_first:
            keep_newest(folder, keep)

    def save(self, progress: Progress) -> Checkpoint | None:
        """Begin to write a checkpoint when the one before is whole; returns that one, None if there was none.

        Raises `CheckpointError` as `wait` does.
        """
        before = self.wait()
        progress = copy.deepcopy(progress)  # the run continues while it is written
        checkpoint = Checkpoint(self.folder, progress.step)
        if before == checkpoint:
            return before
        with _told(checkpoint):
            response = dcp.async_save(
                {MODEL: saved_weights(self._model), OPTIMIZER: optimizer_state(self._optimizer)},
                storage_writer=FsspecWriter(checkpoint.address, sync_files=self._is_local),
                process_group=self._group,
                async_stager=self._stager,
            )
        assert isinstance(response, AsyncSaveResponse)
        self._staging = response.staging_completion
        self._pending = self._finisher.submit(
            self._finish, checkpoint, progress, response.upload_completion
        )
        return before

    def wait(self) -> Checkpoint | None:
        """The newest checkpoint of this run, when it is whole; None before the first.

        Raises `CheckpointError` where it could not be written; the one before is then the newest.
        """
        self._wait_for_copy()
        return None if self._pending is None else self._pending.result()

    def save_alone(self, progress: Progress) -> Checkpoint | None:
        """Write a checkpoint on this rank, which holds all of it, when others were lost; returns it when it is whole.

        None where it is there, or where another rank writes it: of several that do so the first one does.

        Raises `CheckpointError` where it cannot be written.
        """
        self._finisher.shutdown()  # the one before becomes whole, or fails without the lost rank
        checkpoint = Checkpoint(self.folder, progress.step)
        state = {MODEL: saved_weights(self._model), OPTIMIZER: optimizer_state(self._optimizer)}
        with _told(checkpoint):
            if checkpoint in checkpoints(self.folder) or not claim(checkpoint):
                return None
            writer = _OwnFiles(checkpoint.address, sync_files=self._is_local)
            dcp.save(state, storage_writer=writer, no_dist=True)
            make_whole(checkpoint, progress)
        return checkpoint

    def close(self) -> None:
        """Wait for a checkpoint that is being written, whether or not it succeeds, and give the memory back."""
        self._finisher.shutdown()
        self._stager.close()

    def _wait_for_copy(self) -> None:
        """Block until the weights may be changed; raises `CheckpointError` where the save has failed by now."""
        if self._staging is not None:
            with _told(self.folder):
                self._staging.result()
            self._staging = None
        if self._pending is not None and self._pending.done():
            self._pending.result()

    def _finish(
        self, checkpoint: Checkpoint, progress: Progress, written: Future[Any]
    ) -> Checkpoint:
        """Make a checkpoint count, on the first rank, once all ranks have written their parts."""
        with _told(checkpoint):
            metadata = written.result()
            if self._is_first:
                _check_files(checkpoint, metadata)
                make_whole(checkpoint, progress)
                keep_newest(self.folder, self.keep)
        return checkpoint


@dataclass(frozen=True)
class _Prefix:
    """How the names of files begin, as DCP's writers take it."""

    prefix: str


class _OwnFiles(FsspecWriter):
    """Writes files whose names are not those of a checkpoint of all ranks, which may be there in part."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """The plan with the names."""
        return replace(super().prepare_local_plan(plan), storage_data=_Prefix("__alone_"))


def load_checkpoint(checkpoint: Checkpoint, model: nn.Module, optimizer: Optimizer) -> None:
    """Restore weights and optimizer state exactly, each rank its own part; all ranks call it.

    Raises `CheckpointError` naming every weight that is missing, unexpected or of another shape.
    """
    reader = _reader(checkpoint)
    with _told(checkpoint, "read"):
        found = reader.read_metadata().state_dict_metadata
        weights = saved_weights(model)
        _check_shapes(checkpoint, weights, found)
        _fill_state(optimizer, found)
        state = {MODEL: weights, OPTIMIZER: optimizer_state(optimizer)}
        dcp.load({name: part for name, part in state.items() if part}, storage_reader=reader)


def read_tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """All tensors of a checkpoint on the CPU of one process: `model.WEIGHT`, `optimizer.WEIGHT.exp_avg`, …."""
    reader = _reader(checkpoint)
    found = reader.read_metadata().state_dict_metadata
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in found.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    dcp.load(tensors, storage_reader=reader, no_dist=True)
    return tensors


def _reader(checkpoint: Checkpoint) -> FsspecReader:
    warnings.filterwarnings("ignore", NO_GROUP)
    return FsspecReader(checkpoint.address)


def saved_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights of a checkpoint: all, or the adapter where it alone is trained; `init` has the others."""
    state = model.state_dict()
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    is_tuning = bool(trained) and all(LORA in name for name in trained)
    return {name: state[name] for name in trained} if is_tuning else state


def optimizer_state(optimizer: Optimizer) -> dict[str, dict[str, Tensor]]:
    """The state of an optimizer by weight name, independent of its parameter groups."""
    return {
        name: dict(optimizer.state[weight])
        for name, weight in _named_weights(optimizer)
        if weight in optimizer.state
    }


def _fill_state(optimizer: Optimizer, found: Mapping[str, Any]) -> None:
    """Make room for the saved state; a weight without state has had no gradient so far."""
    for name, weight in _named_weights(optimizer):
        prefix = f"{OPTIMIZER}.{name}."
        fields = {key.removeprefix(prefix): e for key, e in found.items() if key.startswith(prefix)}
        if fields:
            optimizer.state[weight] = {
                field: _room(entry, weight) for field, entry in fields.items() if "." not in field
            }


def _room(entry: TensorStorageMetadata, weight: Tensor) -> Tensor:
    dtype = entry.properties.dtype
    if entry.size == weight.shape:
        return torch.zeros_like(weight, dtype=dtype, requires_grad=False)
    return torch.zeros(entry.size, dtype=dtype, device=weight.device)


def _check_shapes(
    checkpoint: Checkpoint, weights: Mapping[str, Tensor], found: Mapping[str, Any]
) -> None:
    prefix = f"{MODEL}."
    saved = {n.removeprefix(prefix): e.size for n, e in found.items() if n.startswith(prefix)}
    problems = [f"missing {name}" for name in weights if name not in saved]
    problems += [f"unexpected {name}" for name in saved if name not in weights]
    problems += [
        f"{name} has shape {tuple(saved[name])}, needs {tuple(weight.shape)}"
        for name, weight in weights.items()
        if saved.get(name, weight.shape) != weight.shape
    ]
    if problems:
        raise CheckpointError(
            f"{checkpoint}: the weights do not fit the model: {'; '.join(problems)}"
        )


def _named_weights(optimizer: Optimizer) -> Iterator[tuple[str, Tensor]]:
    for group in optimizer.param_groups:
        yield from zip(group["weight_names"], group["params"], strict=True)


def _check_files(checkpoint: Checkpoint, metadata: Metadata) -> None:
    """Raise OSError where files of other ranks are not in this rank's folder, or are truncated."""
    fs, root = fsspec.core.url_to_fs(checkpoint.address)
    ends: dict[str, int] = {}
    for part in (metadata.storage_data or {}).values():
        end = part.offset + part.length
        ends[part.relative_path] = max(end, ends.get(part.relative_path, 0))
    fs.invalidate_cache(root)
    for name, end in ends.items():
        path = f"{root}/{name}"
        if not fs.exists(path) or fs.size(path) < end:
            raise OSError(
                f"{name} is absent or truncated here; the folder must be one that all ranks share"
            )


@contextmanager
def _told(what: object, verb: str = "written") -> Iterator[None]:
    """Failures of the storage in words: what could not be written or read, and why."""
    try:
        yield
    except CheckpointException as error:
        rank, (cause, _) = next(iter(error.failures.items()))
        raise CheckpointError(_failed(what, verb, f"rank {rank}: {_words(cause)}")) from cause
    except CheckpointError:
        raise
    except Exception as error:  # the clients of object stores raise nearly anything
        raise CheckpointError(_failed(what, verb, _words(error))) from error


def _failed(what: object, verb: str, why: str) -> str:
    hint = "; the checkpoint before it is whole, and the same command resumes from it"
    return f"{what}: cannot be {verb}: {why}{hint if verb == 'written' else ''}"


def _words(error: BaseException) -> str:
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"
