"""`benchmarks.train_limits` at tiny sizes: both loops train on the same targets, and the limits are counted exactly."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.train_limits import NO_RATES, TrainLimits, run_benchmark, sequences
from emu.config import tiny_config
from emu.models.emu import Emu
from emu.train.flops import step_cost
from emu.train.optim import make_optimizer

OPTIONS = TrainLimits(dtype="float32", row_length=192, num_rows=1, num_rounds=1, batch_images=2)


@pytest.fixture(scope="module")
def records() -> Iterator[dict[str, dict[str, Any]]]:
    head, *rest = run_benchmark(OPTIONS)
    assert head["device"] == "cpu" and head["peak_TFLOP_per_s"] is None
    yield {record["subject"]: record for record in rest}


def test_the_plain_loop_has_the_same_losses(records: dict[str, dict[str, Any]]) -> None:
    assert records["plain"]["relative_difference_of_losses"] < 1e-5
    assert records["plain"]["packed_to_plain"] > 0


def test_sequences_fill_the_rows_and_no_more() -> None:
    lengths = [len(sequence.ids_L) for sequence, _ in sequences(tiny_config(), 512, 3)]
    assert 512 < sum(lengths) <= 3 * 512


def test_the_work_of_the_visual_encoder_is_that_of_the_counter(
    records: dict[str, dict[str, Any]],
) -> None:
    figures, config = records["features"], tiny_config()
    per_image = figures["share_of_limit"] / figures["images_per_s"]
    assert per_image * figures["limit_images_per_s"] == pytest.approx(1)
    side = config.vision.image_size
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        Emu(config).visual(torch.zeros(1, 3, side, side))
    counted = step_cost(config).forward.images - step_cost(config, use_features=True).forward.images
    assert counted == pytest.approx(counter.get_total_flops(), rel=1e-3)


def test_a_measured_step_changes_no_weight() -> None:
    model = Emu(tiny_config())
    model.init_weights(0)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    optimizer = make_optimizer(model, NO_RATES)
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
