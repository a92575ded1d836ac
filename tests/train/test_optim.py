import itertools
import math

import pytest
import torch

from emu.config import emu_14b_config, tiny_config
from emu.models.emu import Emu
from emu.recipes import RECIPES, OptimConfig, TrainConfig, emu_14b
from emu.train.optim import (
    make_optimizer,
    parameter_groups,
    part_of,
    rate_factor,
    set_learning_rates,
    visual_factor,
)

PAPER = OptimConfig()


@pytest.fixture(scope="module")
def large() -> Emu:
    with torch.device("meta"):
        return Emu(emu_14b_config())


def test_the_14b_recipe_builds_its_groups_with_the_papers_rates(large: Emu):
    groups = {g["name"]: g for g in make_optimizer(large, emu_14b().train.optim).param_groups}
    rates = {name.partition("/")[0]: group["peak_lr"] for name, group in groups.items()}
    assert rates == {"vision": 4e-5, "former": 1e-4, "language": 3e-5, "regress": 3e-5}
    for name, group in groups.items():
        assert group["weight_decay"] == (0.0 if name.endswith("no_decay") else 0.05)
        assert group["betas"] == (0.9, 0.98) and group["eps"] == 1e-6
    trained = sum(w.numel() for g in groups.values() for w in g["params"])
    assert trained == sum(w.numel() for w in large.parameters() if w.requires_grad)


def test_what_is_not_decayed_is_what_the_choice_lists(large: Emu):
    kept = {
        name
        for group in parameter_groups(large, PAPER)
        if group["name"].endswith("no_decay")
        for name in group["weight_names"]
    }
    shapes = dict(large.named_parameters())
    matrices = {name for name in kept if shapes[name].ndim > 1}
    assert matrices == {
        "visual.trunk.cls_token",
        "visual.trunk.pos_embed",
        "former.queries",
        "former.relative_bias.weight",
        "language.lm.model.embed_tokens.weight",
    }
    decayed = set(shapes) - kept
    assert not [n for n in decayed if shapes[n].requires_grad and shapes[n].ndim < 2]
    assert not [n for n in decayed if shapes[n].requires_grad and "norm" in n]


def test_frozen_weights_are_in_no_group_and_unknown_ones_are_refused():
    model = Emu(tiny_config(300))
    model.visual.requires_grad_(False)
    parts = {group["name"].partition("/")[0] for group in parameter_groups(model, PAPER)}
    assert parts == {"former", "language", "regress"}
    with pytest.raises(ValueError, match=r"'decoder\.conv' belongs to no known part"):
        part_of("decoder.conv")


def test_the_schedule_rises_over_2000_of_10000_steps_and_falls_along_a_cosine():
    factors = [rate_factor(step, 10_000, PAPER) for step in range(10_000)]
    assert factors[0] == 1 / 2000 and factors[999] == 0.5 and factors[1999] == 1.0
    assert max(factors) == 1.0 and factors[2000] == 1.0
    assert math.isclose(factors[6000], 0.5) and factors[-1] < 1e-6
    assert all(a <= b for a, b in itertools.pairwise(factors[:2000]))
    assert all(a >= b for a, b in itertools.pairwise(factors[2000:]))


def test_rates_of_all_groups_move_together():
    model = Emu(tiny_config(300))
    config = OptimConfig(regress_lr=1e-3)
    optimizer = make_optimizer(model, config)
    set_learning_rates(optimizer, 99, 1000, config)
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert rates["vision/decay"] == 2e-5 and rates["regress/decay"] == 5e-4


def test_vision_and_former_are_frozen_and_then_warm_up_on_their_own():
    config = OptimConfig(warmup_ratio=0.1, visual_freeze_ratio=0.3)
    factors = [visual_factor(step, 100, config) for step in range(100)]
    assert factors[:30] == [0.0] * 30
    assert factors[30:40] == pytest.approx([(n + 1) / 10 for n in range(10)])
    assert factors[40:] == [1.0] * 60
    optimizer = make_optimizer(Emu(tiny_config(300)), config)
    for step, visual_part in ((10, 0.0), (34, 0.5), (60, 1.0)):
        set_learning_rates(optimizer, step, 100, config)
        factor = rate_factor(step, 100, config)
        for group in optimizer.param_groups:
            is_visual = group["name"].startswith(("vision", "former"))
            wanted = group["peak_lr"] * factor * (visual_part if is_visual else 1.0)
            assert group["lr"] == pytest.approx(wanted), (step, group["name"])


def test_without_a_freeze_all_parts_start_together():
    assert {visual_factor(step, 100, PAPER) for step in range(100)} == {1.0}
    always = OptimConfig(visual_freeze_ratio=1.0)
    assert {visual_factor(step, 100, always) for step in range(100)} == {0.0}


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_whole(name: str):
    recipe = RECIPES[name]()
    assert recipe.name == name and recipe.train.batch_size_of("mmc4") >= 1
    longest = max(recipe.sequence.pair_length, recipe.sequence.window_length)
    assert longest <= recipe.model.language.max_positions


def test_the_14b_recipe_has_the_papers_numbers():
    train = emu_14b().train
    assert (train.steps, round(train.optim.warmup_ratio * train.steps)) == (10_000, 2_000)
    assert [train.batch_size_of(c) for c in ("laion", "mmc4", "webvid")] == [128, 64, 16]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "steps is 0, give a whole number of at least 1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"keep_checkpoints": 0}, "keep_checkpoints is 0"),
    ],
)
def test_bad_choices_are_named(values: dict, message: str):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**{"steps": 1, "batch_size": 1} | values)
    with pytest.raises(ValueError, match="warmup_ratio is 2000, give a number from 0 to 1"):
        OptimConfig(warmup_ratio=2000)
