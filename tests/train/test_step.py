import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from emu.models.emu import Emu
from emu.models.objective import Batch, Objective
from emu.train.optim import make_optimizer
from emu.train.plan import TrainPlan, open_stream
from emu.train.start import start_model, start_tower
from emu.train.step import EmuLosses, LossModule, Ranks, Stepper, StepResult
from emu.weights.store import weights_hash
from tests.data.small_dataset import document, write_dataset
from tests.train.plans import mini_plan
from tests.train.processes import gradient_work, gradients_after, start

CPU = torch.device("cpu")


def test_a_loss_module_that_lacks_a_method_cannot_be_made():
    class Unfinished(EmuLosses):
        counts = LossModule.counts

    with pytest.raises(TypeError, match=r"abstract method '?counts"):
        Unfinished(None, "float32")


def on_ranks(plan: TrainPlan, folder: Path, world: int = 2) -> list[tuple[dict, StepResult]]:
    folder.mkdir()
    ranks = [start(gradient_work, r, world, plan, folder) for r in range(world)]
    for rank in ranks:
        rank.join(240)
        assert rank.exitcode == 0
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]


def largest_difference(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> float:
    assert set(some) == set(others)
    scale = max(float(g.abs().max()) for g in some.values())
    return max(float((some[n] - others[n]).abs().max()) for n in some) / scale


def with_batches(plan: TrainPlan, batch_size: int, num_micro: int) -> TrainPlan:
    return replace(plan, train=replace(plan.train, batch_size=batch_size, num_micro=num_micro))


def test_two_ranks_and_micro_batches_give_the_gradient_of_one_large_batch(tmp_path: Path):
    plan = mini_plan(tmp_path, dropout=0.0)  # dropout masks differ per rank
    whole, result = gradients_after(with_batches(plan, 8, 1), Ranks())
    cut, cut_result = gradients_after(with_batches(plan, 2, 4), Ranks())
    assert largest_difference(whole, cut) < 1e-5
    (first, first_result), (second, _) = on_ranks(with_batches(plan, 2, 2), tmp_path / "ranks")
    assert largest_difference(first, second) == 0.0
    assert largest_difference(whole, first) < 1e-5
    for other in (cut_result, first_result):
        assert other.num_text == result.num_text and other.num_images == result.num_images
        assert other.text == pytest.approx(result.text, rel=1e-6)
        assert other.visual == pytest.approx(result.visual, rel=1e-6)
        assert other.gradient_norm == pytest.approx(result.gradient_norm, rel=1e-5)


def test_packed_rows_on_three_ranks_give_the_gradient_of_one_padded_batch(tmp_path: Path):
    plan = mini_plan(tmp_path, dropout=0.0)
    whole, result = gradients_after(with_batches(plan, 12, 1), Ranks())
    packed = with_batches(plan, 4, 1)
    packed = replace(packed, train=replace(packed.train, row_length=1024))
    (first, found), *_ = on_ranks(packed, tmp_path / "ranks", 3)
    assert largest_difference(whole, first) < 1e-5
    assert found.text == pytest.approx(result.text, rel=1e-6)
    assert found.visual == pytest.approx(result.visual, rel=1e-6)
    counts = ("num_text", "num_visual", "num_images", "num_sequences", "num_positions")
    assert [getattr(found, n) for n in counts] == [getattr(result, n) for n in counts]
    assert found.num_squares == result.num_squares
    assert found.num_computed == found.num_positions < result.num_computed


def test_global_losses_are_those_of_the_objective(tmp_path: Path):
    plan = mini_plan(tmp_path, dropout=0.0)
    _, result = gradients_after(plan, Ranks())
    model = start_model(plan.model, plan.train, None, CPU)
    (batch,) = open_stream(plan, None, Ranks()).next_step()
    losses = Objective(plan.model.objective)(model(batch), batch)
    assert result.text == pytest.approx(losses.text.item(), rel=1e-6)
    assert result.visual == pytest.approx(losses.visual.item(), rel=1e-6)
    assert (result.num_text, result.num_visual) == (losses.num_text, losses.num_visual)


def test_the_released_way_counts_micro_batches_equally(tmp_path: Path):
    plan = mini_plan(tmp_path, dropout=0.0, normalisation="micro_batch", batch_size=2, num_micro=2)
    _, result = gradients_after(plan, Ranks())
    model = start_model(plan.model, plan.train, None, CPU)
    batches = open_stream(plan, None, Ranks()).next_step()
    texts = [Objective(plan.model.objective)(model(b), b).text.item() for b in batches]
    assert result.text == pytest.approx(sum(texts) / 2, rel=1e-6)


def test_a_step_without_images_trains_text_alone(tmp_path: Path):
    plan = mini_plan(tmp_path, dropout=0.0)
    model, special = start_model(plan.model, plan.train, None, CPU), plan.model.special
    ids = torch.tensor([[special.bos, 300, 301, special.eos]])
    batch = Batch(ids, torch.ones_like(ids, dtype=torch.bool), ids)
    optimizer = make_optimizer(model, plan.train.optim)
    before = {n: w.clone() for n, w in model.named_parameters()}
    result = Stepper(
        EmuLosses(model, plan.train.precision), optimizer, plan.train, Ranks(), CPU
    ).step([batch], 0)
    assert (result.num_text, result.num_visual, result.visual) == (3, 0, 0.0)
    moved = {n.split(".")[0] for n, w in model.named_parameters() if not torch.equal(w, before[n])}
    assert moved == {"language"}


def test_a_rank_without_images_joins_one_with_images(tmp_path: Path):
    plan = mini_plan(tmp_path, dropout=0.0)
    write_dataset(tmp_path / "data2", [document(0, 0), document(1, 2)], 7)
    plan = with_batches(replace(plan, data=str(tmp_path / "data2")), 2, 1)
    whole, result = gradients_after(plan, Ranks())
    assert {
        b.num_images for b in open_stream(with_batches(plan, 1, 2), None, Ranks()).next_step()
    } > {0}
    (first, first_result), (second, _) = on_ranks(with_batches(plan, 1, 1), tmp_path / "ranks")
    assert largest_difference(first, second) == 0.0
    assert largest_difference(whole, first) < 1e-5
    assert first_result.num_images == result.num_images > 0


def test_bfloat16_stays_near_float32_and_keeps_float32_weights(tmp_path: Path):
    plan = mini_plan(tmp_path, dropout=0.0)
    exact, result = gradients_after(plan, Ranks())
    half = replace(plan, train=replace(plan.train, precision="bfloat16"))
    rounded, half_result = gradients_after(half, Ranks())
    assert all(gradient.dtype == torch.float32 for gradient in rounded.values())
    assert 0 < largest_difference(exact, rounded) < 0.05
    assert half_result.text == pytest.approx(result.text, rel=0.01)


def test_a_loss_that_is_not_finite_moves_no_weights(tmp_path: Path):
    plan = mini_plan(tmp_path)
    model = start_model(plan.model, plan.train, None, CPU)
    with torch.no_grad():
        model.ln_visual.weight.fill_(float("inf"))
    before = model.language.regress_head.weight.clone()
    stepper = Stepper(
        EmuLosses(model, "float32"),
        make_optimizer(model, plan.train.optim),
        plan.train,
        Ranks(),
        CPU,
    )
    result = stepper.step(open_stream(plan, None, Ranks()).next_step(), 7)
    assert not result.is_finite and math.isnan(result.visual)
    assert torch.equal(before, model.language.regress_head.weight)


def test_the_tower_alone_is_that_of_the_whole_model(tmp_path: Path):
    plan = mini_plan(tmp_path, seed=5)
    model: Emu = start_model(plan.model, plan.train, None, CPU)
    assert weights_hash(start_tower(plan.model, 5, None)) == weights_hash(model.visual)
    assert weights_hash(start_tower(plan.model, 6, None)) != weights_hash(model.visual)
