"""The parts against what the published code answered for weights of the released form."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from emu.config import EmuConfig
from emu.models.emu import Emu
from emu.models.objective import Batch, Objective, text_labels
from emu.weights.released import config_from_released, from_released
from emu.weights.store import build_model

TOLERANCE, LOSS_TOLERANCE = 1e-4, 1e-5


@pytest.fixture(scope="module", params=["pretrain", "instruct"])
def variant(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def expected(golden: Path, variant: str) -> dict[str, Tensor]:
    return load_file(golden / "emu1_small" / f"{variant}.expected.safetensors")


@pytest.fixture(scope="module")
def released(golden: Path, variant: str) -> Emu:
    values = json.loads((golden / "emu1_small" / "meta.json").read_text())["config"]
    config = config_from_released(values, instruct=variant == "instruct")
    weights = load_file(golden / "emu1_small" / f"{variant}.safetensors")
    return build_model(config, from_released(weights.items(), config))


def make_batch(config: EmuConfig, expected: dict[str, Tensor]) -> Batch:
    ids = expected["input_ids"]
    labels = text_labels(ids, config.special, config.objective)
    return Batch(ids, expected["attention_mask"].bool(), labels, expected["pixel_values"])


def close(found: Tensor, wanted: Tensor, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(found, wanted, atol=tolerance, rtol=0)


@torch.no_grad()
def test_tower_norm_and_former(released: Emu, expected: dict[str, Tensor]) -> None:
    patches = released.visual(expected["pixel_values"])
    close(patches, expected["visual_features"])
    close(released.ln_visual(patches), expected["ln_visual"])
    close(released.encode_patches(patches), expected["causal_embeddings"])
    close(released.encode_images(expected["pixel_values"]), expected["causal_embeddings"])


@torch.no_grad()
def test_language_model_and_losses(released: Emu, expected: dict[str, Tensor]) -> None:
    batch = make_batch(released.config, expected)
    output = released(batch)
    close(output.hidden_BLD, expected["last_hidden_state"])
    close(output.logits_BLV, expected["logits"])
    close(output.regressed_ND, expected["regress_predictions"])
    close(output.targets_ND, expected["regress_labels"])
    losses = Objective(released.config.objective)(output, batch)
    close(losses.text, expected["text_loss"][0], LOSS_TOLERANCE)
    close(losses.visual, expected["regress_mse"][0], LOSS_TOLERANCE)
    close(losses.total, (expected["text_loss"] + expected["regress_mse"])[0], LOSS_TOLERANCE)
    assert losses.num_visual == 27  # 3 images, 8 queries and [/IMG] each


@torch.no_grad()
def test_merged_adapter_gives_the_same(
    released: Emu, expected: dict[str, Tensor], variant: str
) -> None:
    if variant == "pretrain":
        assert released.config.adapter is None
        return
    merged = copy.deepcopy(released)
    merged.merge_adapter()
    names = set(merged.state_dict())
    assert merged.config.adapter is None
    assert not any("lora" in name or "base_layer" in name for name in names)
    assert all(weight.requires_grad for weight in merged.language.parameters())
    assert len(released.state_dict()) - len(names) == 3 * 4 * 2
    output = merged(make_batch(merged.config, expected))
    close(output.logits_BLV, expected["logits"])
