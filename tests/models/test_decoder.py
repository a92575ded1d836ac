"""Every decoder of the registry, and Stable Diffusion against the golden record."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from safetensors.torch import load_file
from transformers import CLIPConfig, CLIPImageProcessor

from emu.config import DecoderConfig
from emu.decoders import (
    DECODERS,
    decoder_class,
    is_decoder,
    kind_of,
    load_decoder,
    read_image_multiple,
)
from emu.decoders.autoencoder import autoencoder_loss, pixels_of, posterior_of, standardise_latents
from emu.decoders.base import VisualDecoder, decode
from emu.decoders.diffusion import SCHEDULERS, contrast_weights, predict, reads_condition
from emu.decoders.safety import SafetyChecker
from emu.decoders.stable_diffusion import StableDiffusionDecoder
from emu.weights.store import weights_hash
from tests.models import linear_decoder

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


@pytest.fixture(params=[*DECODERS, linear_decoder.KIND])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every decoder of the registry, and one that a test registers."""
    monkeypatch.setitem(DECODERS, linear_decoder.KIND, linear_decoder.ENTRY)
    return request.param


@pytest.fixture
def decoder(kind: str) -> VisualDecoder:
    return decoder_class(kind).from_config(SIZES, WIDTH, seed=0)


def generate(
    decoder: VisualDecoder, seed: int = 0, guidance: float = 3.0, **options: Any
) -> torch.Tensor:
    conditions = torch.randn(3, 5, WIDTH, generator=torch.Generator().manual_seed(9))
    sizes: dict[str, Any] = {"height": 16, "width": 24, "num_inference_steps": 4}
    return decode(
        decoder,
        conditions[:2],
        conditions[2],
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(seed),
        **sizes | options,
    )


def largest_difference(some: torch.Tensor, others: torch.Tensor) -> int:
    """In levels of 8 bits; loaded weights lie elsewhere in memory, which may change the order of sums."""
    return int((some.int() - others.int()).abs().max())


def test_images_follow_seed_condition_and_guidance(decoder: VisualDecoder) -> None:
    images = generate(decoder)
    assert images.shape == (2, 16, 24, 3) and images.dtype == torch.uint8
    assert torch.equal(images, generate(decoder))
    assert not torch.equal(images, generate(decoder, seed=1))
    assert not torch.equal(images, generate(decoder, guidance=8.0))


def test_save_and_load(decoder: VisualDecoder, kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "decoder"
    decoder.save(folder)
    loaded = load_decoder(folder)
    loaded.save(tmp_path / "again")
    one, two = (
        {p.relative_to(root): p.read_bytes() for p in root.rglob("*.safetensors")}
        for root in (folder, tmp_path / "again")
    )
    assert one and one == two
    assert largest_difference(generate(loaded), generate(decoder)) <= 1
    assert kind_of(folder) == kind == decoder.kind
    assert is_decoder(folder) and not is_decoder(tmp_path)
    for file in DECODERS[kind].files:
        content = (folder / file).read_bytes()
        (folder / file).unlink()
        assert not is_decoder(folder), file
        (folder / file).write_bytes(content)
    with pytest.raises(FileNotFoundError, match="no decoder at"):
        decoder_class(kind).load(tmp_path)


def test_the_folder_says_what_sides_are_multiples_of(
    decoder: VisualDecoder, tmp_path: Path
) -> None:
    decoder.save(tmp_path / "decoder")
    multiple = read_image_multiple(tmp_path / "decoder")
    assert multiple == decoder.image_multiple
    side = 2 * decoder.image_multiple
    assert generate(decoder, height=side, width=side).shape[1:3] == (side, side)
    wrong = f"an image of {side + 1} x {side}: give multiples of {multiple}"
    with pytest.raises(ValueError, match=wrong):
        generate(decoder, height=side + 1, width=side)


def test_a_start_from_pretrained_weights_has_the_width_of_the_model(
    decoder: VisualDecoder, tmp_path: Path
) -> None:
    decoder.save(tmp_path / "decoder")
    for width in (WIDTH, WIDTH + 8):
        started = [type(decoder).from_pretrained(tmp_path / "decoder", width, s) for s in (1, 1, 2)]
        assert {each.condition_width for each in started} == {width}
        one, again, other = (weights_hash(each.trained_network()[1]) for each in started)
        assert one == again != other


def test_training_lowers_the_loss_of_its_network(decoder: VisualDecoder) -> None:
    """A decoder's stage before, where it has one, is tested with the decoder."""
    name, network = decoder.trained_network()
    assert name.isidentifier() and name not in ("autoencoder", "conditions")
    generator = torch.Generator().manual_seed(0)
    condition = torch.randn(4, 5, WIDTH, generator=generator)
    pixels = torch.rand(4, 3, 16, 16, generator=generator) * 2 - 1
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    losses = []
    for _ in range(60):
        loss = decoder.loss(condition, pixels, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-15:]) < 0.8 * sum(losses[:15])


def test_the_loss_follows_the_generator(decoder: VisualDecoder) -> None:
    condition, pixels = torch.randn(4, 5, WIDTH), torch.rand(4, 3, 16, 16) * 2 - 1
    null = torch.randn(5, WIDTH)

    def loss(seed: int, drop: float) -> float:
        generator = torch.Generator().manual_seed(seed)
        return decoder.loss(condition, pixels, generator, null, drop).item()

    assert loss(0, 0.5) == loss(0, 0.5)
    assert len({loss(seed, 0.5) for seed in range(6)}) > 1
    all_null = decoder.loss(
        null.expand(4, -1, -1), pixels, torch.Generator().manual_seed(0), null, 0.0
    )
    assert loss(0, 1.0) == pytest.approx(all_null.item())
    assert loss(0, 0.0) != pytest.approx(all_null.item(), abs=1e-7)


def test_every_scheduler_of_the_entry_is_accepted(decoder: VisualDecoder, kind: str) -> None:
    known = DECODERS[kind].schedulers
    images = [generate(decoder, scheduler=name) for name in known]
    assert torch.equal(images[0], generate(decoder)), "the first is the default"
    with pytest.raises(ValueError, match="no scheduler 'none'; there are") as error:
        generate(decoder, scheduler="none")
    assert all(repr(name) in str(error.value) for name in known)


def test_what_does_not_fit_is_named(decoder: VisualDecoder) -> None:
    with pytest.raises(ValueError, match="num_inference_steps is 0, give 1 to"):
        generate(decoder, num_inference_steps=0)
    with pytest.raises(ValueError, match=r"condition_BQD has shape \(1, 5, 9\), .* \(B, Q, 24\)"):
        decoder.loss(torch.zeros(1, 5, 9), torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match=r"null_condition_QD has shape \(6, 24\)"):
        decode(decoder, torch.zeros(1, 5, 24), torch.zeros(6, 24), 16, 16, 4, 3.0)


def test_latents_of_another_shape_are_named() -> None:
    decoder = StableDiffusionDecoder.from_config(SIZES, WIDTH, seed=0)
    with pytest.raises(ValueError, match=r"initial_latents have shape \(1, 4, 2, 2\)"):
        generate(decoder, initial_latents=torch.zeros(1, 4, 2, 2))


@pytest.mark.parametrize("scheduler", sorted(SCHEDULERS))
def test_the_golden_image(golden: Path, scheduler: str) -> None:
    """PNDM equals the published pipeline; the other schedulers end near it on the same noise."""
    expected = load_file(golden / "emu1_small" / "pretrain.expected.safetensors")
    call = json.loads((golden / "emu1_small" / "meta.json").read_text())["pretrain"]["decoder"]
    decoder = StableDiffusionDecoder.load(golden / "emu1_small" / "decoder")
    prompt, empty = expected["image_embeds_text"]
    image = decode(
        decoder,
        prompt[None],
        empty,
        call["height"],
        call["width"],
        call["num_inference_steps"] if scheduler == "pndm" else 30,
        call["guidance_scale"],
        initial_latents=expected["decoder_initial_latents"],
        scheduler=scheduler,
    )
    distance = (image[0].int() - expected["decoder_image_uint8"].int()).abs().float()
    if scheduler == "pndm":
        assert distance.max() <= 1
    else:
        assert distance.mean() < 6


def test_stable_diffusion_weights_stay_but_for_keys_and_values(golden: Path) -> None:
    source = StableDiffusionDecoder.load(golden / "emu1_small" / "decoder")
    grown = StableDiffusionDecoder.from_pretrained(
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
    config = replace(SIZES, unet_channels=(32, 64), unet_groups=8)
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


@pytest.mark.parametrize("num", [1, 3])
@torch.no_grad()
def test_embeddings_side_by_side_enter_the_blocks_in_their_order(num: int) -> None:
    sizes = replace(SIZES, kind="pixel_diffusion", num_block_embeddings=num)
    decoder = decoder_class("pixel_diffusion").from_config(sizes, WIDTH, seed=1)
    _, network = decoder.trained_network()
    condition_BQD = torch.randn(1, 3, WIDTH)
    noisy = torch.randn(1, 12, 8, 8)
    times = torch.tensor([500])
    given, turned = (
        predict(network, noisy, times, each)  # type: ignore[arg-type]
        for each in (condition_BQD, condition_BQD.flip(1))
    )
    assert torch.allclose(given, turned, atol=1e-5) == (num == 1), (
        "attention has no order, nor has a mean"
    )


def test_what_stands_out_of_its_image_weighs_more() -> None:
    latents_BZhw = torch.zeros(2, 4, 4, 4)
    latents_BZhw[0, :, 1, 2] = 1
    weights_B1hw = contrast_weights(latents_BZhw, 2.0)
    assert weights_B1hw is not None and contrast_weights(latents_BZhw, 0.0) is None
    torch.testing.assert_close(weights_B1hw.mean(dim=(1, 2, 3)), torch.ones(2))
    assert weights_B1hw[0].argmax() == 6 and weights_B1hw[0].max() > 5 * weights_B1hw[0].min()
    torch.testing.assert_close(
        weights_B1hw[1], torch.ones(1, 4, 4), msg="a plain image has equal weights"
    )


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
    """With the initial weights of diffusers pale images end nearer together than the noise of their latents."""
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
    plain = generate(decoder)
    decoder.safety = tiny_checker()
    for threshold, wanted in ((2.0, plain), (-2.0, torch.zeros_like(plain))):
        decoder.safety.checker.concept_embeds_weights.data.fill_(threshold)
        decoder.safety.checker.special_care_embeds_weights.data.fill_(2.0)
        decoder.save(tmp_path / str(threshold))
        loaded = StableDiffusionDecoder.load(tmp_path / str(threshold))
        assert loaded.safety is not None
        with caplog.at_level(logging.WARNING):
            assert largest_difference(generate(loaded), wanted) <= 1
    assert "safety_checker=matched images=2 of=2" in caplog.text
    assert "safety_checker=absent" not in caplog.text


def test_an_absent_safety_checker_is_said_once(
    golden: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        decoder = StableDiffusionDecoder.load(golden / "emu1_small" / "decoder")
    assert decoder.safety is None
    assert caplog.text.count("safety_checker=absent") == 1
