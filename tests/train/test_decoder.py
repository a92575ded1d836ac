"""The training of the visual decoder: images and prompts, resuming, several ranks, what is written, refusals."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from emu.config import DecoderConfig
from emu.data.dataset import Dataset, DatasetError
from emu.data.mixture import Corpus
from emu.decoder_recipe import DecoderTrainConfig, PromptRules
from emu.decoders.diffusion import reads_condition
from emu.decoders.stable_diffusion import StableDiffusionDecoder
from emu.generate.engine import Engine
from emu.generate.prompts import ImageOptions
from emu.models.emu import Emu
from emu.tokenizer import EmuTokenizer
from emu.train.checkpoint_folder import CheckpointError
from emu.train.conditions import (
    Conditions,
    forced_conditions,
    prepare,
    prompted_images,
    regress_conditions,
)
from emu.train.decoder import (
    AUTOENCODER,
    DecoderInputs,
    DecoderPlan,
    initial_decoder,
    publish_decoder,
)
from emu.train.loop import Run, train
from emu.train.optim import staged_factor
from emu.train.run_folder import read_metrics
from emu.train.step import Ranks, TrainingError
from emu.weights.store import save_model
from jobs.train_decoder import main
from schemas.sample import Sample, Segment
from tests.data.small_dataset import image_segment, pair, small_tokenizer, write_dataset
from tests.train.plans import are_equal, mini_config
from tests.train.processes import start, train_rank, train_work

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
CPU = torch.device("cpu")


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
    short |= {"checkpoint_every": 2, "log_every": 1, "num_threads": 0}
    config = DecoderTrainConfig(**short | train)
    return DecoderPlan(str(world / "model"), str(world / "data"), str(out), options=config)


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> DecoderPlan:
    """A run that was never interrupted."""
    run = plan(world, tmp_path_factory.mktemp("whole") / "run")
    train(run)
    return run


def prompts_of(*segments: Segment | str) -> tuple[list[str], dict[str, int]]:
    left_out: Counter[str] = Counter()
    found = prompted_images(document_of(*segments), 0, RULES, left_out)
    return [image.prompt for image in found], dict(left_out)


def test_an_image_is_prompted_by_the_text_after_it() -> None:
    prompts, left_out = prompts_of(
        "Before.", image_segment(1), "A red square.", "Chatter.", image_segment(2), image_segment(3),
        "Two squares.", image_segment(4),
    )  # fmt: skip
    assert prompts == ["A red square.", "Two squares.", "Two squares."]
    assert left_out == {"no_text": 1}


def test_long_prompts_and_special_tokens_are_left_out_and_counted() -> None:
    long, special = "x" * 41, "one <image> here"
    prompts, left_out = prompts_of(
        image_segment(1), long, image_segment(2), "x" * 40, image_segment(3), special
    )
    assert prompts == ["x" * 40]
    assert left_out == {"prompt_too_long": 1, "special_token_in_prompt": 1}


def prepared(world: Path, out: Path, rules: PromptRules = RULES) -> Conditions:
    engine = Engine.load(world / "model")
    data = Dataset(world / "data")
    return prepare(out, "pairs", data, rules, DecoderTrainConfig(), lambda: engine, 4, Ranks())


def test_a_dataset_without_prompts_is_refused(world: Path, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", [document_of("Text.", image_segment(1))])
    bare = replace(plan(world, tmp_path / "run"), data=str(data))
    for work in (bare.check, lambda: train(bare)):
        with pytest.raises(DatasetError, match=r"no image has a prompt.*no_text"):
            work()


def test_images_end_at_their_limit(world: Path, tmp_path: Path) -> None:
    assert prepared(world, tmp_path, PromptRules(max_images=7)).num_images == 7


def test_conditions_are_those_that_the_engine_regresses(world: Path) -> None:
    engine = Engine.load(world / "model")
    prompts = ("a red square", "two", "a red square", "a much longer prompt of many words")
    conditions_UQD, rows_N = regress_conditions(engine, prompts, batch_size=2)
    assert len(conditions_UQD) == 3
    for prompt, row in zip(prompts, rows_N.tolist(), strict=True):
        alone = engine.regress_image([prompt])[0]
        torch.testing.assert_close(conditions_UQD[row], alone, atol=1e-5, rtol=1e-4)


def test_conditions_that_are_there_are_not_computed_again(world: Path, tmp_path: Path) -> None:
    def absent() -> Engine:
        raise AssertionError("the model is not needed")

    first = prepared(world, tmp_path)
    data = Dataset(world / "data")
    again = prepare(tmp_path, "pairs", data, RULES, DecoderTrainConfig(), absent, 4, Ranks())
    assert again.num_images == first.num_images == 20
    assert torch.equal(again.shards[0].condition(3), first.shards[0].condition(3))
    (tmp_path / "conditions/pairs/pairs-000000.safetensors").unlink()
    with pytest.raises(AssertionError, match="not needed"):
        prepare(tmp_path, "pairs", data, RULES, DecoderTrainConfig(), absent, 4, Ranks())


def test_teacher_forced_conditions_start_as_the_regressed_ones(world: Path) -> None:
    engine = Engine.load(world / "model")
    sample = Dataset(world / "data").sample(0, 0)
    (image,) = prompted_images(sample, 0, PromptRules(), Counter())
    (forced_QD,) = forced_conditions(engine, [image], 1)
    regressed_QD = engine.regress_image([image.prompt])[0]
    torch.testing.assert_close(forced_QD[0], regressed_QD[0], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(forced_QD[1:], regressed_QD[1:], atol=1e-3)
    _, _, *twice = forced_conditions(engine, [image, image, image], 2)
    torch.testing.assert_close(twice[0], forced_QD, atol=1e-5, rtol=1e-4)


def test_training_writes_what_the_engine_loads(whole: DecoderPlan, tmp_path: Path) -> None:
    out = Path(whole.out)
    assert [row["step"] for row in read_metrics(out)] == [1, 2, 3, 4]
    assert [row["step"] for row in read_metrics(out / AUTOENCODER)] == [1, 2, 3]
    row = read_metrics(out)[-1]
    assert row["loss"] == row["visual_loss"] > 0 == row["text_loss"] and row["samples"] == 16
    assert (out / "curves.svg").read_text().count("<polyline") == 2  # the loss and the rate
    engine = Engine.load(whole.model)
    engine.decoder = StableDiffusionDecoder.load(publish_decoder(out, tmp_path / "decoder"))
    image = engine.generate_image("a red square", ImageOptions(num_inference_steps=2))
    assert image.size == (16, 16)
    assert [path.name for path in tmp_path.iterdir()] == ["decoder"]


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_stopped_run_ends_with_the_same_bits(
    whole: DecoderPlan, tmp_path: Path, steps: int
) -> None:
    other = replace(whole, out=str(tmp_path / "run"))
    run = Run(other, Ranks(), CPU, lambda: 0.0)
    while run.step < steps:
        run.advance()
        if run.step % 2 == 0:
            run.checkpoint(lambda metrics, checkpoint: None)
    run.close()
    torch.manual_seed(steps)  # what another program does with the generator must not matter
    options = replace(other.options, num_threads=2, micro_batch_size=None)
    train(replace(other, options=options))
    assert are_equal(weights(tmp_path / "run/model"), weights(Path(whole.out) / "model"))
    assert [row["loss"] for row in read_metrics(tmp_path / "run")] == [
        row["loss"] for row in read_metrics(Path(whole.out))
    ]


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_with_the_same_bits(
    whole: DecoderPlan, tmp_path: Path
) -> None:
    other = replace(whole, out=str(tmp_path / "run"))
    marks = ("conditions/null.safetensors", "autoencoder/checkpoints", "checkpoints")
    for mark in marks:
        process = start(train_work, other)
        while process.exitcode is None and not (tmp_path / "run" / mark).exists():
            process.join(0.01)
        process.kill()
        process.join()
    train(other)
    assert are_equal(weights(tmp_path / "run/model"), weights(Path(whole.out) / "model"))


@pytest.mark.slow
def test_two_ranks_take_the_steps_of_one(world: Path, tmp_path: Path) -> None:
    losses = []
    for number, size in ((1, None), (2, None), (1, 3)):
        run = plan(world, tmp_path / f"run{len(losses)}", micro_batch_size=size)
        Path(run.out).mkdir()
        ranks = [start(train_rank, rank, number, run) for rank in range(number)]
        for process in ranks:
            process.join(240)
            assert process.exitcode == 0
        losses.append([row["loss"] for row in read_metrics(Path(run.out))])
    assert losses[1] == pytest.approx(losses[0], abs=1e-6)
    assert losses[2] == pytest.approx(losses[0], abs=1e-6), "in micro-batches"


def test_a_run_with_other_options_is_refused(whole: DecoderPlan) -> None:
    other = replace(whole.options, conditions="teacher_forced")
    with pytest.raises(CheckpointError, match=r"train.conditions: was 'autoregressive', now 'tea"):
        train(replace(whole, options=other))


def test_a_mixture_is_read_by_weight(world: Path, tmp_path: Path) -> None:
    other = write_dataset(tmp_path / "other", [pair(number) for number in range(20, 32)])
    corpora = (Corpus(str(world / "data"), "coco", 2), Corpus(str(other), "aesthetics"))
    run = replace(plan(world, tmp_path / "run", steps=3), data=corpora)
    train(run)
    steps = {
        n: v for row in read_metrics(tmp_path / "run") for n, v in row.items() if "steps/" in n
    }
    assert steps == {"steps/coco": 2, "steps/aesthetics": 1}


def test_a_damaged_image_is_left_out(world: Path, tmp_path: Path) -> None:
    image = Segment.of_image(b"no image", "jpg", 8, 8)
    bad = Sample("bad", "pairs", (image, Segment.of_text("A thing.")))
    data = write_dataset(tmp_path / "data", [bad, *(pair(number) for number in range(3))])
    run = replace(plan(world, tmp_path / "run", autoencoder_steps=0), data=str(data))
    summary = train(run)
    assert summary.bad_samples == 4 and summary.samples == 12


def test_latents_of_the_dataset_have_unit_deviation(whole: DecoderPlan) -> None:
    decoder = StableDiffusionDecoder.load(Path(whole.out) / "model")
    inputs = DecoderInputs.of(whole, Ranks(), CPU)
    start = initial_decoder(whole, inputs.config)
    pixels = inputs.stream(whole, start, whole.train, Ranks()).first_pixels(20)
    latents = decoder.encode(pixels, torch.Generator().manual_seed(0))
    assert latents.std() == pytest.approx(1, abs=0.1)


def test_the_seed_gives_the_weights(whole: DecoderPlan, world: Path, tmp_path: Path) -> None:
    train(plan(world, tmp_path / "other", seed=6))
    assert not are_equal(weights(tmp_path / "other/model"), weights(Path(whole.out) / "model"))


def test_training_learns(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(plan(world, out, steps=60, autoencoder_steps=60, batch_size=8, log_every=20))
    for folder, part in ((out / AUTOENCODER, 0.7), (out, 0.9)):
        first, *_, last = [row["loss"] for row in read_metrics(folder)]
        assert last < part * first, (folder, first, last)


def test_stable_diffusion_keeps_its_autoencoder(world: Path, tmp_path: Path) -> None:
    source = StableDiffusionDecoder.from_config(SIZES, condition_width=24, seed=9)
    source.save(tmp_path / "sd")
    run = plan(world, tmp_path / "run", schedule="staged")
    train(replace(run, pretrained=str(tmp_path / "sd")))
    assert not (tmp_path / "run" / AUTOENCODER).exists()
    trained = StableDiffusionDecoder.load(tmp_path / "run/model")
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


def test_the_rates_of_the_paper() -> None:
    rates = {
        step: 1e-4 * staged_factor(step, 15_000) for step in (2499, 4999, 9999, 13_999, 14_000)
    }
    assert rates == pytest.approx({2499: 5e-5, 4999: 1e-4, 9999: 1e-4, 13_999: 5e-5, 14_000: 1e-5})


def test_steps_without_a_finite_loss_end_the_run(world: Path, tmp_path: Path) -> None:
    wild = {"learning_rate": 1e30, "clip_norm": 1e30, "warmup_ratio": 0.0}
    with pytest.raises(TrainingError, match="steps in a row without a finite loss"):
        train(plan(world, tmp_path / "run", steps=40, max_skipped_steps=1, **wild))
    assert not (tmp_path / "run/model").exists()


def test_another_folder_is_not_overwritten(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "letters.txt").write_text("dear")
    words = ["--model", str(world / "model"), "--data", str(world / "data")]
    assert main([*words, "--out", str(tmp_path / "run"), "--decoder", str(tmp_path)]) == 2
    assert "no directory of this kind and not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["letters.txt"]


def test_a_model_without_sizes_needs_a_stable_diffusion(tmp_path: Path) -> None:
    write_model(tmp_path, decoder=None)
    write_dataset(tmp_path / "data", [pair(0)])
    with pytest.raises(ValueError, match="no sizes of a visual decoder"):
        plan(tmp_path, tmp_path / "run").check()


def test_the_job_trains_in_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_model(tmp_path)
    write_dataset(tmp_path / "data", [pair(number) for number in range(6)])
    words = ["--model", str(model), "--data", str(tmp_path / "data"), "--steps", "2"]
    words += ["--autoencoder-steps", "1", "--batch-size", "2"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "4 images" in shown and "from scratch" in shown
    assert (tmp_path / "model_decoder/checkpoints").is_dir()
    assert Engine.load(model).decoder is not None
    assert main(words) == 0
    assert "has finished before" in capsys.readouterr().out


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
        "--out": str(tmp_path / "run"),
    }
    given |= {options[0]: options[1].replace("MISSING", str(tmp_path / "MISSING"))}
    assert main([part for item in given.items() for part in item]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a visual decoder by file and name."""
    return {
        f"{path.parent.name}/{name}": tensor
        for path in sorted(folder.glob("*/*.safetensors"))
        for name, tensor in load_file(path).items()
    }
