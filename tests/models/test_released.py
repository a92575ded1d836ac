import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from emu.config import EmuConfig, emu_14b_config
from emu.models.released import (
    config_from_released,
    from_released,
    is_unused,
    our_names,
    released_name,
    to_released,
)
from emu.models.store import build_model


def load(golden: Path, variant: str) -> tuple[EmuConfig, dict[str, Tensor]]:
    values = json.loads((golden / "emu1_small" / "meta.json").read_text())["config"]
    config = config_from_released(values, instruct=variant == "instruct")
    return config, load_file(golden / "emu1_small" / f"{variant}.safetensors")


@pytest.mark.parametrize("variant", ["pretrain", "instruct"])
def test_there_and_back_is_bit_equal(golden: Path, variant: str) -> None:
    config, weights = load(golden, variant)
    model = build_model(config, from_released(weights.items(), config))
    back = dict(to_released(model.state_dict().items(), config))
    assert set(weights) - set(back) == {name for name in weights if is_unused(name)}
    assert set(back) <= set(weights)
    assert all(torch.equal(back[name], weights[name]) for name in back)


def test_every_missing_and_unexpected_key_is_named(golden: Path) -> None:
    config, weights = load(golden, "pretrain")
    del weights["ln_visual.bias"], weights["visual.blocks.1.attn.q_bias"]
    weights["decoder.lm.extra.weight"] = torch.zeros(1)
    with pytest.raises(ValueError) as error:
        dict(from_released(weights.items(), config))
    for words in (
        "missing ln_visual.bias",
        "missing visual.blocks.1.attn.q_bias",
        "unexpected decoder.lm.extra.weight",
    ):
        assert words in str(error.value)


def test_a_misshapen_tensor_is_named(golden: Path) -> None:
    config, weights = load(golden, "pretrain")
    weights["cformer.projection.bias"] = torch.zeros(31)
    wanted = r"former.projection.bias has shape \(31,\), needs \(32,\)"
    with pytest.raises(ValueError, match=wanted):
        build_model(config, from_released(weights.items(), config))


def test_emu_i_weights_do_not_pass_as_emu(golden: Path) -> None:
    _, weights = load(golden, "instruct")
    config, _ = load(golden, "pretrain")
    with pytest.raises(ValueError, match=r"missing decoder\.lm\.lm_head\.weight"):
        dict(from_released(weights.items(), config))


def test_the_number_of_released_keys() -> None:
    """1,096 keys for Emu, 1,416 for Emu-I: ours, and those that are stored without use."""
    unused = 1 + 40  # T5's word embedding, inv_freq of each layer
    assert len(our_names(emu_14b_config())) + unused == 1096
    assert len(our_names(emu_14b_config(instruct=True))) + unused == 1416


def test_a_name_without_a_rule_is_refused() -> None:
    with pytest.raises(ValueError, match=r"visionary\.weight has no released name"):
        released_name("visionary.weight", instruct=False)


def test_the_released_configuration_is_the_default() -> None:
    values = {
        "embed_dim": 1024,
        "vision_cfg": {
            "image_size": 224,
            "layers": 40,
            "width": 1408,
            "head_width": 88,
            "mlp_ratio": 4.3637,
            "patch_size": 14,
        },
        "multimodal_cfg": {"n_causal": 32},
    }
    assert config_from_released(values) == EmuConfig()
    with pytest.raises(ValueError, match="no 'multimodal_cfg'"):
        config_from_released({"embed_dim": 1, "vision_cfg": {}})
