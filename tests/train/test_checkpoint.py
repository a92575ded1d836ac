"""Checkpoints: what they hold while training goes on, other storages, lost storages, other numbers of ranks."""

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
import torch
from torch import nn
from torch.optim import AdamW

from emu.train.checkpoint import CheckpointWriter, load_checkpoint, read_tensors
from emu.train.checkpoint_folder import (
    FOLDER,
    LATEST,
    Checkpoint,
    CheckpointError,
    Progress,
    checkpoints,
    read_progress,
)
from emu.train.loop import TrainPlan, checkpoint_folder, train
from tests.train.plans import are_equal, mini_plan, same_state, weights_of
from tests.train.test_resume import elsewhere, stopped_after


def small_model(width: int = 64) -> tuple[nn.Module, AdamW]:
    model = nn.Linear(width, width)
    names = [{"weight_names": ["weight", "bias"], "params": [model.weight, model.bias]}]
    return model, AdamW(names, fused=True)


def take_step(model: nn.Module, optimizer: AdamW) -> None:
    model(torch.ones(2, model.in_features)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def progress(step: int) -> Progress:
    return Progress(step, {"epoch": 0}, {"samples": step}, {})


def test_a_checkpoint_holds_the_weights_of_its_step(tmp_path: Path):
    model, optimizer = small_model(512)
    writer = CheckpointWriter(str(tmp_path), model, optimizer, keep=2)
    seen: dict[int, torch.Tensor] = {}
    for step in range(1, 5):
        take_step(model, optimizer)
        seen[step] = model.weight.detach().clone()
        before = writer.save(progress(step))
        assert before == (Checkpoint(str(tmp_path), step - 1) if step > 1 else None)
        take_step(model, optimizer)  # while it is written
    assert writer.wait() == Checkpoint(str(tmp_path), 4)
    writer.close()
    kept = checkpoints(tmp_path)
    assert [checkpoint.step for checkpoint in kept] == [3, 4]
    for checkpoint in kept:
        assert torch.equal(read_tensors(checkpoint)["model.weight"], seen[checkpoint.step])
        assert read_progress(checkpoint) == progress(checkpoint.step)


def test_weights_that_do_not_fit_are_named(tmp_path: Path):
    model, optimizer = small_model()
    writer = CheckpointWriter(str(tmp_path), model, optimizer, keep=2)
    writer.save(progress(1))
    checkpoint = writer.wait()
    writer.close()
    assert checkpoint is not None
    other, its_optimizer = small_model(32)
    with pytest.raises(CheckpointError, match=r"weight has shape \(64, 64\), needs \(32, 32\)"):
        load_checkpoint(checkpoint, other, its_optimizer)


@pytest.fixture
def plan(tmp_path: Path) -> TrainPlan:
    return mini_plan(tmp_path)


def test_a_run_keeps_its_checkpoints_at_an_address(plan: TrainPlan, tmp_path: Path):
    train(plan)
    address = f"memory://{tmp_path.name}/run"
    away = replace(elsewhere(plan, tmp_path / "away"), checkpoints=address)
    stopped_after(away, 3)
    assert [c.step for c in checkpoints(address)] == [2]
    train(away)
    assert same_state(away, plan) and not (tmp_path / "away" / FOLDER).exists()
    assert are_equal(weights_of(tmp_path / "away/model"), weights_of(Path(plan.out) / "model"))
    fsspec.filesystem("memory").rm(f"/{tmp_path.name}", recursive=True)


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """Files of this process cannot grow further, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_storage_that_is_lost_ends_the_run_with_the_checkpoint_before(
    plan: TrainPlan, tmp_path: Path
):
    whole = elsewhere(plan, tmp_path / "whole")
    train(whole)
    stopped_after(plan, 2)
    with (
        files_of_at_most(100_000),
        pytest.raises(
            CheckpointError,
            match=r"step-0000000\d: cannot be written: rank 0: OSError: .*the checkpoint before it is whole",
        ),
    ):
        train(plan)
    assert [c.step for c in checkpoints(checkpoint_folder(plan))] == [2]
    train(plan)
    assert same_state(plan, whole)


def test_a_latest_that_names_nothing_whole_is_told(plan: TrainPlan):
    stopped_after(plan, 2)
    latest = Path(checkpoint_folder(plan)) / LATEST
    latest.write_text("step-00000099\n")
    with pytest.raises(CheckpointError, match="names step-00000099, which is absent or not whole"):
        train(plan)
    latest.write_text("newest")
    with pytest.raises(CheckpointError, match="holds 'newest', needed is a name such as"):
        train(plan)
