"""Weights of 8 bits: what they cost in accuracy on the golden record, and what they are refused with."""

from pathlib import Path
from typing import cast

import pytest
import torch
from torch import nn

import emu
from emu.generate.int8 import Int8Linear, round_to_int8
from emu.generate.prompts import TextOptions
from emu.serve.options import ServeOptions
from schemas.validation import ConfigError
from tests.generate.conftest import Golden
from tests.generate.test_adapters import write_adapter

MAX_DRIFT = 0.05
"""Of regressed embeddings, as a share of their root mean square."""


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The root mean square of the difference as a share of that of `expected`."""
    return ((found - expected).square().mean() / expected.square().mean()).sqrt().item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_is_that_of_the_rounded_weights(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    linear = nn.Linear(64, 32, bias=False).to(dtype)
    linear.weight.data.copy_(torch.randn(32, 64, generator=generator))
    rounded = Int8Linear(linear)
    states = torch.randn(3, 5, 64, generator=generator).to(dtype)
    weight = rounded.weight.float() * rounded.scales.float()[:, None]
    expected = nn.functional.linear(states.float(), weight)
    found = rounded(states)
    assert found.dtype == dtype and found.shape == (3, 5, 32)
    assert relative(found.float(), expected) < (1e-5 if dtype == torch.float32 else 1e-2)
    step = linear.weight.float().abs().amax(dim=1, keepdim=True) / 127
    assert ((weight - linear.weight.float()).abs() <= 0.51 * step).all()


def test_the_golden_embeddings_drift_within_the_bound(repository: Path) -> None:
    golden = Golden(repository / "tests/golden/emu1_small", "pretrain")
    round_to_int8(golden.engine.model)
    found = golden.engine.regress_image(golden.meta["image_prompts"]["text"])
    drift = relative(found, golden.expected["image_embeds_text"])
    assert 1e-6 < drift < MAX_DRIFT, drift


def test_memory_of_the_layers_is_a_quarter_of_float32(tiny_dir: Path) -> None:
    full, int8 = emu.load(tiny_dir), emu.load(tiny_dir, weights="int8")
    sizes = []
    for engine in (full, int8):
        layers = cast("nn.Module", engine.model.language.lm.model.layers)
        matrices = [m for m in layers.modules() if isinstance(m, nn.Linear | Int8Linear)]
        weights = [cast("torch.Tensor", m.weight) for m in matrices]
        sizes.append(sum(w.numel() * w.element_size() for w in weights))
    assert sizes[0] == 4 * sizes[1] > 0
    options = TextOptions(max_new_tokens=4)
    assert len(int8.generate_text(["a red", "two blue squares"], options)) == 2


def test_what_int8_does_not_support_is_refused(tiny_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="weights is 'int4', give one of"):
        emu.load(tiny_dir, weights="int4")
    folder = write_adapter(tiny_dir, tmp_path, 1, rank=2)
    with pytest.raises(ValueError, match="unmerged adapter"):
        emu.load(folder, weights="int8")
    with pytest.raises(ValueError, match="cannot be put on int8 weights"):
        emu.load(tiny_dir, weights="int8").load_adapter("tuned", folder)
    with pytest.raises(ConfigError, match=r"int8' with adapters \['tuned'\]"):
        ServeOptions(tiny_dir, weights="int8", adapters={"tuned": folder})
