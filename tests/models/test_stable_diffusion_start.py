"""A Stable Diffusion, in the layout that people have it in, as the start and as the source of a decoder."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPImageProcessor

from emu.config import DecoderConfig
from emu.decoders.conversion import (
    decoder_config,
    old_attention_name,
    old_tower_name,
    plan_conversion,
)
from emu.decoders.diffusion import reads_condition, unet_sizes
from emu.decoders.stable_diffusion import StableDiffusionDecoder, vae_sizes
from emu.weights.plan import ConversionWarnings

TEXT_WIDTH, WIDTH = 12, 40
SIZES = DecoderConfig(
    image_size=32,
    unet_channels=(8, 16, 16),
    unet_attention=(True, True, False),
    unet_layers=1,
    unet_heads=2,
    unet_groups=4,
    vae_channels=(8, 8),
    vae_layers=1,
    vae_groups=4,
)
UNET = "unet/diffusion_pytorch_model.safetensors"
CHECKER = "safety_checker/model.safetensors"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small Stable Diffusion v1: every part of its pipeline that concerns images."""
    torch.manual_seed(0)
    schedule = PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        steps_offset=1,
    )
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    checker = StableDiffusionSafetyChecker(
        CLIPConfig(
            vision_config=tower | {"num_attention_heads": 2, "image_size": 32, "patch_size": 16},
            projection_dim=8,
        )
    )
    torch.nn.init.normal_(checker.concept_embeds)
    parts = {
        "unet": UNet2DConditionModel(**unet_sizes(SIZES, TEXT_WIDTH)),
        "vae": AutoencoderKL(**vae_sizes(SIZES)),
        "scheduler": schedule,
        "safety_checker": checker,
        "feature_extractor": CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32),
    }
    absent = dict.fromkeys(("text_encoder", "tokenizer"))
    pipeline = StableDiffusionPipeline(**parts, **absent, requires_safety_checker=True)  # type: ignore[arg-type]
    pipeline.save_pretrained(tmp_path / "sd")
    return tmp_path / "sd"


def renew(path: Path, change: Callable[[str], str]) -> None:
    """Give the tensors of a file other names."""
    save_file({change(n): t for n, t in load_file(path).items()}, path, {"format": "pt"})


def test_everything_but_keys_and_values_stays_bit_equal(source: Path, tmp_path: Path) -> None:
    decoder = StableDiffusionDecoder.from_pretrained(source, WIDTH, seed=1)
    decoder.save(tmp_path / "decoder")
    before = {path.relative_to(source) for path in source.rglob("*.safetensors")}
    assert {
        path.relative_to(tmp_path / "decoder") for path in (tmp_path / "decoder").rglob("*.safe*")
    } == before
    changed = 0
    for name in before:
        old, new = load_file(source / name), load_file(tmp_path / "decoder" / name)
        assert old.keys() == new.keys()
        for key, tensor in new.items():
            if str(name) == UNET and reads_condition(key):
                assert tensor.shape == (old[key].shape[0], WIDTH)
                changed += 1
            else:
                assert torch.equal(tensor, old[key]), (name, key)
    assert changed == 2 * (2 + 1 + 4)  # K and V: of two levels down, the middle, twice two up
    again = StableDiffusionDecoder.from_pretrained(source, WIDTH, seed=1).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in decoder.state_dict().items())
    loaded = StableDiffusionDecoder.load(tmp_path / "decoder")
    assert loaded.condition_width == WIDTH and loaded.safety is not None
    assert decoder_config(tmp_path / "decoder") == SIZES


def test_files_of_old_libraries_give_the_same(source: Path, tmp_path: Path) -> None:
    """PyTorch's files, and the names before diffusers 0.17 and transformers 5, through the converter."""
    new = StableDiffusionDecoder.load(source)
    renew(source / "vae" / "diffusion_pytorch_model.safetensors", old_attention_name)
    renew(source / CHECKER, old_tower_name)
    checker = load_file(source / CHECKER)
    checker["vision_model.vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    torch.save(checker, source / "safety_checker" / "pytorch_model.bin")
    (source / CHECKER).unlink()
    unet = load_file(source / UNET)
    torch.save(unet, source / "unet" / "diffusion_pytorch_model.bin")
    (source / UNET).rename((source / UNET).with_suffix(".fp16.safetensors"))
    conversion = plan_conversion(source, TEXT_WIDTH)
    assert conversion.folders == ["unet", "vae", "safety_checker"]
    assert conversion.dropped == [
        "safety_checker/vision_model.vision_model.embeddings.position_ids"
    ]
    conversion.write(tmp_path / "out", 4000, ConversionWarnings(), lambda num_bytes: None)
    assert len(list((tmp_path / "out" / "unet").glob("*-of-*.safetensors"))) > 2  # in shards
    loaded = StableDiffusionDecoder.load(tmp_path / "out").state_dict()
    for name, tensor in new.state_dict().items():
        assert torch.equal(loaded[name], tensor), name


@pytest.mark.parametrize(
    ("file", "key"),
    [
        (UNET, "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"),
        ("vae/diffusion_pytorch_model.safetensors", "quant_conv.bias"),
        (CHECKER, "visual_projection.weight"),
    ],
)
def test_a_weight_that_is_missing_is_never_random(source: Path, file: str, key: str) -> None:
    weights = load_file(source / file)
    del weights[key]
    save_file(weights, source / file, {"format": "pt"})
    with pytest.raises(ValueError, match=f"missing {key}"):
        StableDiffusionDecoder.load(source)
    with pytest.raises(ValueError, match=f"missing {key}"):
        StableDiffusionDecoder.from_pretrained(source, WIDTH, seed=0)
    with pytest.raises(ValueError, match=f"missing {key}"):
        plan_conversion(source, TEXT_WIDTH)


def test_what_is_absent_or_of_another_width_is_said(
    source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ValueError, match=r"width 12, the model gives 40; .*plain Stable Diffusion"):
        plan_conversion(source, WIDTH)
    shutil.rmtree(source / "feature_extractor")
    with pytest.raises(FileNotFoundError, match="without the folder feature_extractor"):
        StableDiffusionDecoder.load(source)
    shutil.rmtree(source / "safety_checker")
    with caplog.at_level(logging.WARNING):
        assert StableDiffusionDecoder.load(source).safety is None
    assert caplog.text.count("safety_checker=absent") == 1
    (source / UNET).unlink()
    with pytest.raises(FileNotFoundError, match=r"no UNet2DConditionModel in .*unet"):
        StableDiffusionDecoder.load(source)
    with pytest.raises(FileNotFoundError, match=r"no weights in .*unet; looked for"):
        plan_conversion(source, TEXT_WIDTH)
