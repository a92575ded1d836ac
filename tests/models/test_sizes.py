"""Parameter counts of the paper's model, on the meta device."""

from typing import get_args, get_type_hints

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn

from emu.config import (
    DecoderConfig,
    EmuConfig,
    emu_14b_config,
    emu_llama_1b_config,
    emu_llama_7b_config,
    tiny_config,
)
from emu.decoders.diffusion import reads_condition, unet_sizes
from emu.decoders.stable_diffusion import vae_sizes
from emu.models.emu import Emu
from emu.recipes import RECIPES
from jobs.precompute_features import PrecomputeFeatures
from jobs.train_emu import TrainEmu

T5_WORDS = 32128 * 768  # stored with the former, without use
ROTARY = 40 * 64  # inv_freq, which old transformers stored in every layer


def count(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def build(instruct: bool) -> Emu:
    with torch.device("meta"):
        return Emu(emu_14b_config(instruct))


def test_parts_have_the_released_counts() -> None:
    model = build(instruct=False)
    assert count(model.visual) == 1_012_588_928
    assert count(model.ln_visual) == 2_816
    assert T5_WORDS == 24_674_304
    assert count(model.former) + T5_WORDS == 153_707_648
    assert count(model.language) + ROTARY == 13_042_122_240
    assert count(model.language.regress_head) == 26_214_400
    assert count(model) + T5_WORDS + ROTARY == 14_208_421_632


def test_emu_i_has_the_released_count() -> None:
    model = build(instruct=True)
    adapters = [w for name, w in model.named_parameters() if ".lora_" in name]
    assert sum(weight.numel() for weight in adapters) == 26_214_400
    assert count(model) + T5_WORDS + ROTARY == 14_234_656_512


@pytest.mark.parametrize(
    ("config", "of_llama", "in_all"),
    [
        # LLaMA's own published counts, without the 4 added tokens; then the tower (1,012,588,928), ln_visual
        # (2,816), the former (125,096,064 and 769 a hidden width) and the head (hidden width squared)
        (emu_llama_1b_config(), 1_345_423_360, 2_488_896_768),
        (emu_llama_7b_config(), 6_738_415_616, 7_896_063_232),
        (emu_14b_config(), 13_015_864_320, 14_183_744_768),
    ],
)
def test_presets_around_other_llamas(config: EmuConfig, of_llama: int, in_all: int) -> None:
    with torch.device("meta"):
        model = Emu(config)
    added = 2 * 4 * config.language.hidden_size  # four tokens, in embedding and head
    assert count(model.language.lm) - added == of_llama
    assert count(model) == in_all
    assert config.former.num_queries == 32 and config.decoder == DecoderConfig()


def test_every_preset_is_a_recipe() -> None:
    models = {name: make().model for name, make in RECIPES.items()}
    assert models == {
        "tiny": tiny_config(),
        "emu_llama_1b": emu_llama_1b_config(),
        "emu_llama_7b": emu_llama_7b_config(),
        "emu_14b": emu_14b_config(),
    }
    for job in (TrainEmu, PrecomputeFeatures):
        assert get_args(get_type_hints(job)["recipe"]) == tuple(RECIPES)


@pytest.mark.parametrize(("width", "millions"), [(768, 859.52), (5120, 968.15)])
def test_unet_has_the_released_count(width: int, millions: float) -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**unet_sizes(DecoderConfig(), width))
    assert round(count(unet) / 1e6, 2) == millions
    assert sum(map(reads_condition, unet.state_dict())) == 32


def test_autoencoder_has_the_size_of_sd15() -> None:
    with torch.device("meta"):
        vae = AutoencoderKL(**vae_sizes(DecoderConfig()))
    assert count(vae) == 83_653_863


def test_tiny_is_a_few_million() -> None:
    with torch.device("meta"):
        model = Emu(tiny_config())
    assert 1e6 < count(model) < 5e6
