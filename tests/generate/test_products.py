"""Products with packed weights: as without, and a row has the same bits whatever is beside it."""

import pytest
import torch
from torch import nn

from benchmarks.random_emu import random_engine
from emu.generate.engine import Engine
from emu.generate.prefix import weights_key
from emu.generate.products import Products, can_be_packed
from emu.generate.prompts import TextOptions


@pytest.fixture(scope="module")
def small() -> Engine:
    return random_engine(width=128, layers=2)


@pytest.fixture(scope="module", autouse=True)
def packing() -> None:
    if not can_be_packed(torch.zeros(2, 2)):
        pytest.skip("this installation of torch cannot pack weights")


def linears(engine: Engine) -> list[nn.Linear]:
    layers = engine.model.language.lm.model.layers
    return [module for module in layers.modules() if isinstance(module, nn.Linear)]


@torch.inference_mode()
def test_packed_products_are_the_usual_ones_row_by_row(small: Engine) -> None:
    products = Products(small.model.language, 2**30, is_deterministic=True)
    products.refresh(weights_key(small.model))
    for linear in linears(small):
        states = torch.randn(64, linear.in_features, generator=torch.Generator().manual_seed(1))
        whole = products(states, linear)
        assert (whole - linear(states)).abs().max() < 1e-4
        for start, number in ((0, 1), (5, 2), (9, 7), (20, 44)):
            assert torch.equal(products(states[start:][:number], linear), whole[start:][:number])


@torch.inference_mode()
def test_changed_weights_are_copied_again_and_large_ones_never(small: Engine) -> None:
    linear = linears(small)[0]
    states = torch.ones(8, linear.in_features)
    products, without = (Products(small.model.language, limit) for limit in (2**30, 1000))
    for each in (products, without):
        each.refresh(weights_key(small.model))
    before = products(states, linear)
    linear.weight.mul_(2)
    assert torch.equal(products(states, linear), before), "the copy was not used"
    assert torch.equal(without(states, linear), linear(states)), "a copy beyond the limit"
    products.refresh(weights_key(small.model))
    assert torch.allclose(products(states, linear), 2 * before)
    linear.weight.div_(2)


def test_texts_of_many_prompts_follow_changed_weights(small: Engine) -> None:
    prompts, options = ["a red dog", "the bus", "is it?", "no"], TextOptions(max_new_tokens=6)
    alone = [small.generate_ids([prompt], options)[0] for prompt in prompts]
    assert small.generate_ids(prompts, options) == alone
    with torch.no_grad():
        small.model.language.lm.lm_head.weight.neg_()
    changed = [small.generate_ids([prompt], options)[0] for prompt in prompts]
    assert small.generate_ids(prompts, options) == changed != alone
