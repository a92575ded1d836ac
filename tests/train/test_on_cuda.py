"""On CUDA, a training step has the losses and gradients of the CPU, and a run resumes where it was stopped."""

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from emu.train.loop import Run, TrainPlan, train
from emu.train.run_folder import read_metrics
from emu.train.step import Ranks
from tests.train.plans import mini_plan
from tests.train.processes import gradients_after

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
CUDA = torch.device("cuda")
STEPS: dict[str, dict[str, object]] = {
    "padded": {},
    "packed": {"row_length": 1024},
    "recomputed": {"row_length": 1024, "recompute_activations": True},
    "frozen": {"row_length": 1024, "freeze_vision": True},
}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_in_float32_is_that_of_the_cpu(tmp_path: Path, name: str) -> None:
    plan = mini_plan(tmp_path, dropout=0.0, **STEPS[name])
    check_step(plan, plan, 1e-4)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", STEPS)
def test_a_compiled_step_is_the_eager_one(tmp_path: Path, name: str) -> None:
    plan = mini_plan(tmp_path, dropout=0.0, **STEPS[name])
    check_step(plan, replace(plan, train=replace(plan.train, compile=True)), 1e-4)


@pytest.mark.parametrize("name", STEPS)
def test_a_step_in_bfloat16_is_near_that_of_the_cpu(tmp_path: Path, name: str) -> None:
    plan = mini_plan(tmp_path, dropout=0.0, **STEPS[name])
    check_step(plan, replace(plan, train=replace(plan.train, precision="bfloat16")), 5e-2)


def check_step(plan: TrainPlan, changed: TrainPlan, tolerance: float) -> None:
    """The plan on the CPU, the changed one on CUDA; all gradients together differ by at most that share."""
    expected, measured = gradients_after(plan, Ranks())
    found, result = gradients_after(changed, Ranks(), CUDA)
    assert result.text == pytest.approx(measured.text, rel=tolerance)
    assert result.visual == pytest.approx(measured.visual, rel=tolerance)
    assert set(found) == set(expected)
    squares = [(g.square().sum(), (found[n].cpu() - g).square().sum()) for n, g in expected.items()]
    size, gap = (float(torch.stack(each).sum().sqrt()) for each in zip(*squares, strict=True))
    assert gap < tolerance * size, gap / size


def test_a_stopped_run_resumes_as_one_that_was_not(tmp_path: Path) -> None:
    whole = mini_plan(tmp_path, row_length=1024)
    train(whole, device=CUDA)
    plan = replace(whole, out=str(tmp_path / "stopped"))
    run = Run(plan, Ranks(), CUDA, time.perf_counter)
    while run.step < 3:
        run.advance()
        if run.step % plan.train.checkpoint_every == 0:
            run.checkpoint(lambda metrics, checkpoint: None)
    run.close()
    train(plan, device=CUDA)
    losses = [[row["loss"] for row in read_metrics(Path(each.out))] for each in (whole, plan)]
    # sums over atomic additions differ from run to run
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
