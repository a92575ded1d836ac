"""The arithmetic of `benchmarks.device_limits`, on a CPU."""

import pytest
import torch
from torch import nn

from benchmarks.device_limits import (
    DeviceOptions,
    cache_bytes,
    count_flops,
    image_call,
    lines,
    random_model,
    step_limit,
    weight_bytes,
)
from emu.config import emu_14b_config
from emu.models.emu import Emu

SMALL = DeviceOptions(num_rows=(1, 2), num_ids=12, num_steps=3, num_inference_steps=2)


def test_a_step_of_the_paper_reads_26_gigabytes() -> None:
    with torch.device("meta"):
        model = Emu(emu_14b_config()).to(torch.bfloat16)
    head = model.language.lm.lm_head
    layer = 4 * 5120**2 + 3 * 5120 * 13824 + 2 * 5120
    assert weight_bytes(model, head) == 2 * (40 * layer + 5120 + 32004 * 5120)
    assert weight_bytes(model, model.language.regress_head) == 2 * (40 * layer + 5120 + 5120**2)
    assert cache_bytes(model.config, 2048, 2) == 2 * 40 * 2048 * 5120 * 2
    alone = step_limit(model, head, 1, 0, 4.8e12)
    assert alone == pytest.approx(4.8e12 / 25.7e9, rel=0.01)
    assert 7.9 * alone < step_limit(model, head, 8, 10, 4.8e12) < 8 * alone


def test_operations_are_counted_as_multiplication_and_addition() -> None:
    linear = nn.Linear(30, 50)
    assert count_flops(lambda: linear(torch.zeros(7, 30))) == 2 * 7 * 30 * 50
    convolution = nn.Conv2d(4, 8, 3, padding=1)
    image = torch.zeros(1, 4, 16, 16)
    assert count_flops(lambda: convolution(image)) == 2 * 4 * 8 * 9 * 16 * 16


def test_operations_of_an_image_grow_with_its_steps() -> None:
    model, decoder = random_model(SMALL)
    two, four, six = (
        count_flops(image_call(model, decoder, DeviceOptions(num_inference_steps=steps)))
        for steps in (2, 4, 6)
    )
    assert six - four == four - two > 0


STEPS = ("text", "visual", "engine_text", "engine_visual")


def test_all_lines_are_measured_against_their_limits() -> None:
    first, *rest = list(lines(SMALL))
    assert first["GB_per_s"] > 0 and first["TFLOP_per_s"] > 0
    assert [line["subject"] for line in rest] == [*STEPS, *STEPS, "image", "image"]
    assert [line["images"] for line in rest[-2:]] == [1, 4]
    for line in rest:
        assert line["share_of_limit"] > 0
