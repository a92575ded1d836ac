"""Compiled layers: the losses and gradients of the layers as they are, and runs that resume to the bit."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from emu.config import tiny_config
from emu.recipes import tiny
from emu.train.compiled import check_compiler
from emu.train.loop import TrainPlan, check_plan, train
from emu.train.step import Ranks
from tests.train.plans import are_equal, mini_plan, weights_of
from tests.train.processes import gradients_after, start, train_work
from tests.train.test_resume import stopped_after


def compiled(plan: TrainPlan) -> TrainPlan:
    """The same run with compiled layers, in a folder of its own."""
    return replace(plan, out=f"{plan.out}_compiled", train=replace(plan.train, compile=True))


def tiny_plan(root: Path, dropout: float) -> TrainPlan:
    """The recipe `tiny` on small documents, with dropout in the Causal Former, which it has not."""
    plan, recipe = mini_plan(root), tiny()
    model = tiny_config(plan.model.language.vocab_size)
    model = replace(model, former=replace(model.former, dropout=dropout))
    return replace(plan, model=model, sequence=recipe.sequence, train=recipe.train)


@pytest.mark.slow
@pytest.mark.timeout(900)  # of which compiling takes one to four minutes
@pytest.mark.parametrize(
    "options",
    [{}, {"row_length": 0}, {"recompute_activations": True}, {"freeze_vision": True}],
    ids=["packed", "padded", "recomputed", "frozen"],
)
def test_a_compiled_step_is_the_eager_one_to_rounding(tmp_path: Path, options: dict[str, object]):
    plan = tiny_plan(tmp_path, dropout=0.1)
    plan = replace(plan, train=replace(plan.train, **options))
    eager, measured = gradients_after(plan, Ranks())
    found, result = gradients_after(compiled(plan), Ranks())
    assert result.text == pytest.approx(measured.text, rel=1e-6)
    assert result.visual == pytest.approx(measured.visual, rel=1e-6)
    assert set(found) == set(eager)
    for name, gradient in eager.items():
        gap = float((found[name] - gradient).norm() / gradient.norm().clamp(min=1e-9))
        assert gap < 1e-5, name


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_compiled_run_resumes_to_the_bit_in_another_process(tmp_path: Path):
    """What was compiled for the steps before a stop must not matter to those after it."""
    whole = compiled(mini_plan(tmp_path, row_length=1024))
    train(whole)
    stopped = replace(whole, out=str(tmp_path / "stopped"))
    stopped_after(stopped, 3)
    process = start(train_work, stopped)
    process.join(600)
    assert process.exitcode == 0
    ours, theirs = (weights_of(Path(plan.out) / "model") for plan in (stopped, whole))
    assert are_equal(ours, theirs)
    eager = mini_plan(tmp_path, row_length=1024)
    train(eager)
    plain = weights_of(Path(eager.out) / "model")
    assert all(torch.allclose(ours[n], plain[n], atol=1e-3) for n in plain)


def test_a_machine_without_a_compiler_is_told_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, str(tmp_path / "none")))
    with pytest.raises(ValueError, match=r"train.compile: no C\+\+ compiler .*--train.compile"):
        check_compiler(is_cuda=False)
    with pytest.raises(ValueError, match="no C\\+\\+ compiler"):
        check_plan(compiled(mini_plan(tmp_path)))
