import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from emu.config import (
    AdapterConfig,
    CausalFormerConfig,
    EmuConfig,
    LanguageConfig,
    VisionConfig,
    emu_14b_config,
)
from emu.weights.released import (
    config_from_released,
    from_released,
    is_unused,
    our_names,
    released_name,
    to_released,
)
from emu.weights.released_config import config_to_released
from emu.weights.store import build_model


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
    again = config_from_released(config_to_released(EmuConfig()))
    assert again == EmuConfig()


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("llama", {"rope_theta": 500000.0}, "llama.rope_theta is 500000.0, this model has 10000.0"),
        ("llama", {"num_key_value_heads": 2}, "num_key_value_heads is 2, this model has 4"),
        ("llama", {"head_dim": 16}, "llama.head_dim is 16, this model has 8"),
        ("llama", {"quantization": 4}, r"llama has unknown keys \['quantization'\]; known are"),
        ("llama", {"hidden_size": "many"}, "llama.hidden_size is 'many', give a whole number"),
        ("llama", {"num_hidden_layers": 2.5}, "num_hidden_layers is 2.5, give a whole number"),
        ("llama", {"vocab_size": 0}, "vocab_size is 0, give a whole number of at least 1"),
        ("c_former", {"feed_forward_proj": "gated-gelu"}, "this model has 'relu'"),
        ("c_former", {"num_decoder_layers": 7}, "3 num_layers and 7 num_decoder_layers"),
        ("vision_cfg", {"postnorm": True}, r"vision_cfg asks for \['postnorm'\]"),
        ("vision_cfg", {"head_width": 0}, "give a multiple of head_width = 0"),
        ("vision_cfg", {"head_width": 48}, "width is 64, give a multiple of head_width = 48"),
        ("vision_cfg", {"width": None}, "vision_cfg.width is None, give a whole number"),
        ("vision_cfg", {"mlp_ratio": -1.0}, "vision_cfg.mlp_ratio is -1.0, give a number"),
        ("multimodal_cfg", {"n_causal": 9}, "9 in multimodal_cfg and 8 in vladapter_cfg"),
        ("lora", {"target_modules": ["gate"]}, r"targets.0 is 'gate', give one of"),
        ("lora", {"use_dora": True}, "lora.use_dora is True, this model has False"),
    ],
)
def test_a_configuration_of_another_model_is_refused(
    golden: Path, section: str, change: dict, message: str
) -> None:
    values = json.loads((golden / "emu1_small" / "meta.json").read_text())["config"]
    values[section] = values.get(section, {}) | change
    with pytest.raises(ValueError, match=message):
        config_from_released(values, instruct=True)


def test_sections_that_are_no_objects() -> None:
    values = config_to_released(EmuConfig())
    for section in ("vision_cfg", "llama"):
        with pytest.raises(ValueError, match=f"{section} is 3, give an object"):
            config_from_released(values | {section: 3})
    with pytest.raises(ValueError, match="embed_dim is None, give a whole number"):
        config_from_released(values | {"embed_dim": None})


@given(
    width=st.integers(1, 300),
    hidden=st.integers(1, 2000),
    queries=st.integers(1, 64),
    adapter=st.none() | st.builds(AdapterConfig, rank=st.integers(1, 64), alpha=st.integers(1, 64)),
)
def test_the_released_form_says_every_size(
    width: int, hidden: int, queries: int, adapter: AdapterConfig | None
) -> None:
    config = EmuConfig(
        vision=VisionConfig(28, 7, width, layers=2, heads=1, mlp_hidden=hidden, embed_dim=3),
        former=CausalFormerConfig(8, 4, 2, 1, 8, queries, 0.25, num_buckets=6, max_distance=9),
        language=LanguageConfig(8, 3, 2, 9, 301, 77, 1e-5),
        instruct=adapter is not None,
        adapter=adapter,
    )
    text = json.dumps(config_to_released(config))
    assert config_from_released(json.loads(text), instruct=adapter is not None) == config
