"""Every decoder of the registry, and Stable Diffusion against the golden record."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from safetensors.torch import load_file
from transformers import CLIPConfig, CLIPImageProcessor

from emu.config import DecoderConfig, tiny_config
from emu.decoders import DECODERS
from emu.decoders.autoencoder import autoencoder_loss, pixels_of, posterior_of, standardise_latents
from emu.decoders.base import VisualDecoder
from emu.decoders.safety import SafetyChecker
from emu.decoders.stable_diffusion import SCHEDULERS, StableDiffusionDecoder, reads_condition

WIDTH = 24
SIZES = DecoderConfig(
    image_size=16,
    unet_channels=(8, 16),
    unet_attention=(True, False),
    unet_layers=1,
    unet_heads=2,
    unet_groups=4,
    vae_channels=(8, 8),
    vae_layers=1,
    vae_groups=4,
)


@pytest.fixture(params=sorted(DECODERS))
def decoder(request: pytest.FixtureRequest) -> VisualDecoder:
    return DECODERS[request.param].from_config(SIZES, WIDTH, seed=0)


def draw(decoder: VisualDecoder, seed: int = 0, guidance: float = 3.0, **options) -> torch.Tensor:
    conditions = torch.randn(3, 5, WIDTH, generator=torch.Generator().manual_seed(9))
    sizes = {"height": 16, "width": 24, "num_inference_steps": 4} | options
    return decoder.decode(
        conditions[:2],
        conditions[2],
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(seed),
        **sizes,
    )


def test_pictures_follow_seed_condition_and_guidance(decoder: VisualDecoder) -> None:
    pictures = draw(decoder)
    assert pictures.shape == (2, 16, 24, 3) and pictures.dtype == torch.uint8
    assert torch.equal(pictures, draw(decoder))
    assert not torch.equal(pictures, draw(decoder, seed=1))
    assert not torch.equal(pictures, draw(decoder, guidance=8.0))


def test_save_and_load(decoder: VisualDecoder, tmp_path: Path) -> None:
    decoder.save(tmp_path)
    assert torch.equal(draw(type(decoder).load(tmp_path)), draw(decoder))


def test_the_loss_is_drawn_from_the_generator(decoder: VisualDecoder) -> None:
    condition, pixels = torch.randn(4, 5, WIDTH), torch.rand(4, 3, 16, 16) * 2 - 1
    null = torch.randn(5, WIDTH)

    def loss(seed: int, drop: float) -> float:
        generator = torch.Generator().manual_seed(seed)
        return decoder.loss(condition, pixels, generator, null, drop).item()

    assert loss(0, 0.5) == loss(0, 0.5) != loss(1, 0.5)
    all_null = decoder.loss(
        null.expand(4, -1, -1), pixels, torch.Generator().manual_seed(0), null, 0.0
    )
    assert loss(0, 1.0) == pytest.approx(all_null.item())
    assert loss(0, 0.0) != pytest.approx(all_null.item(), abs=1e-7)


def test_wrong_requests_are_named(decoder: VisualDecoder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a picture of 18 x 24: give multiples of 4"):
        draw(decoder, height=18)
    with pytest.raises(ValueError, match="no scheduler 'none'; there are"):
        draw(decoder, scheduler="none")
    with pytest.raises(ValueError, match="num_inference_steps is 0, give 1 to 1000"):
        draw(decoder, num_inference_steps=0)
    with pytest.raises(ValueError, match=r"initial_latents have shape \(1, 4, 2, 2\)"):
        draw(decoder, initial_latents=torch.zeros(1, 4, 2, 2))
    with pytest.raises(ValueError, match=r"condition_BQD has shape \(1, 5, 9\), .* \(B, Q, 24\)"):
        decoder.loss(torch.zeros(1, 5, 9), torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match=r"null_condition_QD has shape \(6, 24\)"):
        decoder.decode(torch.zeros(1, 5, 24), torch.zeros(6, 24), 16, 16, 4, 3.0)
    with pytest.raises(FileNotFoundError, match="the folder unet is absent"):
        type(decoder).load(tmp_path)


@pytest.mark.parametrize("scheduler", sorted(SCHEDULERS))
def test_the_golden_picture(golden: Path, scheduler: str) -> None:
    """PNDM equals the published pipeline; the other samplers end near it on the same noise."""
    expected = load_file(golden / "emu1_small" / "pretrain.expected.safetensors")
    call = json.loads((golden / "emu1_small" / "meta.json").read_text())["pretrain"]["decoder"]
    decoder = StableDiffusionDecoder.load(golden / "emu1_small" / "decoder")
    prompt, empty = expected["image_embeds_text"]
    picture = decoder.decode(
        prompt[None],
        empty,
        call["height"],
        call["width"],
        call["num_inference_steps"] if scheduler == "pndm" else 30,
        call["guidance_scale"],
        initial_latents=expected["decoder_initial_latents"],
        scheduler=scheduler,
    )
    distance = (picture[0].int() - expected["decoder_image_uint8"].int()).abs().float()
    if scheduler == "pndm":
        assert distance.max() <= 1
    else:
        assert distance.mean() < 6


def test_stable_diffusion_weights_stay_but_for_keys_and_values(golden: Path) -> None:
    source = StableDiffusionDecoder.load(golden / "emu1_small" / "decoder")
    grown = StableDiffusionDecoder.from_stable_diffusion(
        golden / "emu1_small" / "decoder", condition_width=50, seed=0
    )
    assert (source.condition_width, grown.condition_width) == (32, 50)
    before = source.state_dict()
    for name, weight in grown.state_dict().items():
        if reads_condition(name):
            assert weight.shape == (before[name].shape[0], 50)
        else:
            assert torch.equal(weight, before[name]), name
    assert grown.loss(torch.randn(1, 8, 50), torch.zeros(1, 3, 32, 32)).isfinite()


def test_sixty_steps_learn_a_fixed_batch() -> None:
    config = tiny_config().decoder
    assert config is not None
    decoder = StableDiffusionDecoder.from_config(config, WIDTH, seed=0)
    generator = torch.Generator().manual_seed(0)
    condition = torch.randn(2, 8, WIDTH, generator=generator)
    pixels = torch.rand(2, 3, 32, 32, generator=generator) * 2 - 1
    optimizer = torch.optim.AdamW(decoder.unet.parameters(), lr=2e-3)
    history = []
    for _ in range(60):
        loss = decoder.loss(condition, pixels, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert sum(history[-15:]) < 0.7 * sum(history[:15])
    assert all(weight.grad is None for weight in decoder.vae.parameters())


def test_the_autoencoder_learns_flat_colours_and_is_standardised() -> None:
    decoder = StableDiffusionDecoder.from_config(SIZES, WIDTH, seed=0)
    vae = decoder.vae.requires_grad_(True)
    generator = torch.Generator().manual_seed(0)
    colours = torch.rand(8, 3, 1, 1, generator=generator) * 2 - 1
    pixels = colours.expand(-1, -1, 16, 16).contiguous()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=5e-3)
    history = []
    for _ in range(60):
        loss = autoencoder_loss(vae, pixels, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.5 * history[0]
    before = pixels_of(vae, posterior_of(vae, pixels).mode())
    standardise_latents(vae, pixels, generator)
    rebuilt = pixels_of(vae, posterior_of(vae, pixels).mode())
    torch.testing.assert_close(rebuilt, before, atol=1e-4, rtol=1e-4)
    assert vae.config["scaling_factor"] == 1
    latents = decoder.encode(pixels, generator)
    assert latents.std(dim=(0, 2, 3)).tolist() == pytest.approx([1] * 4, abs=0.05)
    assert latents.mean(dim=(0, 2, 3)).tolist() == pytest.approx([0] * 4, abs=0.05)


def test_a_fresh_autoencoder_keeps_what_pale_colours_differ_in() -> None:
    """As diffusers draws it, pale pictures end nearer together than the noise of their latents."""
    decoder = StableDiffusionDecoder.from_config(replace(SIZES, vae_groups=1), WIDTH, seed=0)
    shades = torch.rand(16, 3, 1, 1, generator=torch.Generator().manual_seed(0)) * 0.2 + 0.7
    posterior = posterior_of(decoder.vae, shades.expand(-1, -1, 16, 16).contiguous())
    assert posterior.mode().std(dim=0).mean() > 2 * posterior.std.mean()


def tiny_checker() -> SafetyChecker:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = CLIPConfig(
        vision_config=sizes | {"num_attention_heads": 2, "image_size": 32, "patch_size": 16},
        text_config=sizes | {"num_attention_heads": 2},
        projection_dim=8,
    )
    torch.manual_seed(0)
    checker = StableDiffusionSafetyChecker(config)
    torch.nn.init.normal_(checker.concept_embeds)
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
    return SafetyChecker(checker, processor)


def test_the_safety_checker_blackens_what_matches(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    decoder = StableDiffusionDecoder.from_config(SIZES, WIDTH, seed=0)
    plain = draw(decoder)
    decoder.safety = tiny_checker()
    for threshold, wanted in ((2.0, plain), (-2.0, torch.zeros_like(plain))):
        decoder.safety.checker.concept_embeds_weights.data.fill_(threshold)
        decoder.safety.checker.special_care_embeds_weights.data.fill_(2.0)
        decoder.save(tmp_path / str(threshold))
        loaded = StableDiffusionDecoder.load(tmp_path / str(threshold))
        assert loaded.safety is not None
        with caplog.at_level(logging.WARNING):
            assert torch.equal(draw(loaded), wanted)
    assert "safety_checker=matched pictures=2 of=2" in caplog.text
    assert "safety_checker=absent" not in caplog.text


def test_an_absent_safety_checker_is_said_once(
    golden: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        decoder = StableDiffusionDecoder.load(golden / "emu1_small" / "decoder")
    assert decoder.safety is None
    assert caplog.text.count("safety_checker=absent") == 1
