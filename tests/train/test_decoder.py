"""The training of the visual decoder: images and prompts, both stages, what is written, refusals."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Generator

from emu.config import DecoderConfig
from emu.data.dataset import DatasetError
from emu.decoders.diffusion import reads_condition
from emu.decoders.stable_diffusion import StableDiffusionDecoder
from emu.generate.engine import Engine
from emu.generate.prompts import ImageOptions
from emu.models.emu import Emu
from emu.tokenizer import EmuTokenizer
from emu.train.decoder import DecoderPlan, DecoderTrainConfig, shuffled_rows, train_decoder
from emu.train.decoder_data import PromptRules, read_images, regress_conditions
from emu.train.step import TrainingError
from emu.weights.store import save_model
from jobs.train_decoder import main
from schemas.sample import Sample, Segment
from tests.data.small_dataset import image_segment, pair, small_tokenizer, write_dataset
from tests.train.plans import mini_config

SIZES = DecoderConfig(
    image_size=16,
    unet_channels=(16, 16),
    unet_attention=(True, True),
    unet_layers=1,
    unet_heads=2,
    unet_groups=4,
    vae_channels=(8, 8),
    vae_layers=1,
    vae_groups=4,
)
RULES = PromptRules(max_prompt_length=40)


def write_model(root: Path, decoder: DecoderConfig | None = SIZES) -> Path:
    """A model of random weights with its tokenizer."""
    tokenizer = root / "tokenizer.model"
    small_tokenizer(tokenizer)
    config = mini_config(EmuTokenizer.load(tokenizer).num_pieces)
    model = Emu(replace(config, decoder=decoder))
    model.init_weights(seed=3)
    save_model(root / "model", model.eval(), tokenizer)
    return root / "model"


def document_of(*segments: Segment | str) -> Sample:
    parts = [Segment.of_text(s) if isinstance(s, str) else s for s in segments]
    return Sample("page", "mmc4", tuple(parts))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and a dataset of pairs to train its visual decoder on."""
    root = tmp_path_factory.mktemp("world")
    write_model(root)
    write_dataset(root / "data", [pair(number) for number in range(20)])
    return root


def plan(world: Path, out: Path, **train: Any) -> DecoderPlan:
    short: dict[str, Any] = {"steps": 4, "autoencoder_steps": 3, "batch_size": 4}
    config = DecoderTrainConfig(**short | train)
    return DecoderPlan(str(world / "model"), str(world / "data"), str(out), train=config)


def test_an_image_is_prompted_by_the_text_after_it(tmp_path: Path) -> None:
    page = document_of(
        "Before.", image_segment(1), "A red square.", "Chatter.", image_segment(2), image_segment(3),
        "Two squares.", image_segment(4),
    )  # fmt: skip
    data = write_dataset(tmp_path, [page])
    images = read_images(str(data), 8, RULES)
    assert images.prompts == ("A red square.", "Two squares.", "Two squares.")
    assert images.left_out == {"no_text": 1}
    assert images.pixels_NCHW.shape == (3, 3, 8, 8)
    assert images.pixels_NCHW.dtype == torch.uint8


def test_long_prompts_and_special_tokens_are_left_out_and_counted(tmp_path: Path) -> None:
    page = document_of(
        image_segment(1), "x" * 41, image_segment(2), "x" * 40, image_segment(3), "one <image> here"
    )
    images = read_images(str(write_dataset(tmp_path, [page])), 8, RULES)
    assert images.prompts == ("x" * 40,)
    assert images.left_out == {"prompt_too_long": 1, "special_token_in_prompt": 1}


def test_a_dataset_without_prompts_is_refused(tmp_path: Path) -> None:
    data = write_dataset(tmp_path, [document_of("Text.", image_segment(1))])
    with pytest.raises(DatasetError, match=r"no image has a prompt.*no_text"):
        read_images(str(data), 8, RULES)


def test_images_end_at_their_limit(world: Path) -> None:
    rules = PromptRules(max_images=7)
    assert len(read_images(str(world / "data"), 8, rules)) == 7


def test_conditions_are_those_that_the_engine_regresses(world: Path) -> None:
    engine = Engine.load(world / "model")
    prompts = ("a red square", "two", "a red square", "a much longer prompt of many words")
    conditions_UQD, rows_N = regress_conditions(engine, prompts, batch_size=2)
    assert len(conditions_UQD) == 3
    for prompt, row in zip(prompts, rows_N.tolist(), strict=True):
        alone = engine.regress_image([prompt])[0]
        torch.testing.assert_close(conditions_UQD[row], alone, atol=1e-5, rtol=1e-4)


def test_every_image_comes_once_an_epoch() -> None:
    rows = shuffled_rows(10, 4, Generator().manual_seed(0))
    taken = torch.cat([next(rows) for _ in range(5)])
    for epoch in (taken[:10], taken[10:]):
        assert sorted(epoch.tolist()) == list(range(10))


def test_training_writes_what_the_engine_loads(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "decoder"
    stages: list[tuple[str, int]] = []
    summary = train_decoder(
        plan(world, out, log_every=3), advance=lambda stage, n, _: stages.append((stage, n))
    )
    assert (summary.num_images, summary.num_prompts) == (20, 20)
    assert stages.count(("unet", 1)) == 4 and stages.count(("autoencoder", 1)) == 3
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [(row["stage"], row["step"]) for row in rows]
    assert steps == [("autoencoder", 3), ("unet", 3), ("unet", 4)]
    engine = Engine.load(world / "model")
    engine.decoder = StableDiffusionDecoder.load(out)
    image = engine.generate_image("a red square", ImageOptions(num_inference_steps=2))
    assert image.size == (16, 16)
    assert [path.name for path in tmp_path.iterdir()] == ["decoder"]


def test_latents_of_the_dataset_have_unit_deviation(world: Path, tmp_path: Path) -> None:
    train_decoder(plan(world, tmp_path / "decoder"))
    decoder = StableDiffusionDecoder.load(tmp_path / "decoder")
    pixels = read_images(str(world / "data"), 16, PromptRules()).pixels_NCHW.float() / 127.5 - 1
    latents = decoder.encode(pixels, Generator().manual_seed(0))
    assert latents.std() == pytest.approx(1, abs=0.1)


def test_the_same_seed_gives_the_same_weights(world: Path, tmp_path: Path) -> None:
    for name, seed in (("one", 5), ("two", 5), ("other", 6)):
        train_decoder(plan(world, tmp_path / name, seed=seed))
    one, two, other = (weights(tmp_path / name) for name in ("one", "two", "other"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_training_learns(world: Path, tmp_path: Path) -> None:
    train_decoder(
        plan(
            world, tmp_path / "decoder", steps=60, autoencoder_steps=60, batch_size=8, log_every=20
        )
    )
    lines = (tmp_path / "decoder" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for stage, part in (("autoencoder", 0.7), ("unet", 0.9)):
        first, *_, last = [row["loss"] for row in rows if row["stage"] == stage]
        assert last < part * first, (stage, first, last)


def test_stable_diffusion_keeps_its_autoencoder(world: Path, tmp_path: Path) -> None:
    source = StableDiffusionDecoder.from_config(SIZES, condition_width=24, seed=9)
    source.save(tmp_path / "sd")
    summary = train_decoder(
        replace(plan(world, tmp_path / "decoder"), pretrained=str(tmp_path / "sd"))
    )
    assert summary.autoencoder_loss is None
    trained = StableDiffusionDecoder.load(tmp_path / "decoder")
    width = Engine.load(world / "model").config.language.hidden_size
    assert trained.condition_width == width
    for name, tensor in source.vae.state_dict().items():
        assert torch.equal(trained.vae.state_dict()[name], tensor), name
    moved = [
        name
        for name, tensor in source.unet.state_dict().items()
        if not reads_condition(name) and not torch.equal(trained.unet.state_dict()[name], tensor)
    ]
    assert moved


def test_a_failed_training_leaves_the_old_result(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "decoder"
    train_decoder(plan(world, out))
    before = weights(out)
    with pytest.raises(TrainingError, match=r"unet step \d+.*lower the learning rate"):
        train_decoder(
            plan(world, out, steps=40, learning_rate=1e30, clip_norm=1e30, warmup_ratio=0.0)
        )
    after = weights(out)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_another_folder_is_not_overwritten(world: Path, tmp_path: Path) -> None:
    (tmp_path / "letters.txt").write_text("dear")
    with pytest.raises(
        FileExistsError, match="no directory of this kind and not empty; give another --out"
    ):
        train_decoder(plan(world, tmp_path))
    assert (tmp_path / "letters.txt").read_text() == "dear"


def test_a_model_without_sizes_needs_a_stable_diffusion(tmp_path: Path) -> None:
    write_model(tmp_path, decoder=None)
    write_dataset(tmp_path / "data", [pair(0)])
    with pytest.raises(ValueError, match="no sizes of a visual decoder"):
        train_decoder(plan(tmp_path, tmp_path / "decoder"))


def test_the_job_trains_in_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_model(tmp_path)
    write_dataset(tmp_path / "data", [pair(number) for number in range(6)])
    status = main(
        ["--model", str(model), "--data", str(tmp_path / "data"), "--steps", "2"]
        + ["--autoencoder-steps", "1", "--batch-size", "2"]
    )
    shown = capsys.readouterr().out
    assert status == 0 and "6 with 6 prompts" in shown and "from scratch" in shown
    assert Engine.load(model).decoder is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "MISSING"], "no model at"),
        (["--data", "MISSING"], "MISSING"),
        (["--steps", "0"], "steps is 0, give a whole number of at least 1"),
        (["--pretrained", "MISSING"], "the folder unet is absent"),
    ],
)
def test_the_job_names_what_is_wrong(
    world: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    given = {
        "--model": str(world / "model"),
        "--data": str(world / "data"),
        "--out": str(tmp_path / "decoder"),
    }
    given |= {options[0]: options[1].replace("MISSING", str(tmp_path / "MISSING"))}
    assert main([part for item in given.items() for part in item]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "decoder").exists()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a visual decoder by file and name."""
    return {
        f"{path.parent.name}/{name}": tensor
        for path in sorted(folder.glob("*/*.safetensors"))
        for name, tensor in load_file(path).items()
    }
