"""Command lines end to end: features, then training on them; refusals before any work."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import ray
import torch
from safetensors.torch import load_file, save_file

from emu.config import tiny_config
from emu.tokenizer import EmuTokenizer, train_tokenizer
from emu.train.run_folder import read_metrics
from emu.weights.store import load_model
from jobs import convert_checkpoint, precompute_features, serve, train_decoder, train_emu
from jobs.paths import job_path
from tests.data.small_dataset import document, write_dataset
from tests.models.llama_folders import write_llama

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    documents = [document(number, number % 3) for number in range(20)]
    return write_dataset(tmp_path_factory.mktemp("jobs") / "docs", documents, 8)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Calls a job's main; its exit status, standard output and error."""

    def call(main: Callable[[list[str]], int], *arguments: object) -> tuple[int, str, str]:
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as stop:  # tyro ends the process itself
            status = int(stop.code or 0)
        shown = capsys.readouterr()
        return status, shown.out, shown.err

    return call


def train_here(*arguments: object) -> list[object]:
    """Options of a short training in this process."""
    return ["--num-workers", 0, "--steps", 4, "--batch-size", 2, *arguments]


def test_features_then_training_on_them_gives_a_model_that_loads(
    run: Run, data: Path, tmp_path: Path
):
    status, shown, _ = run(precompute_features.main, "--data", data, "--num-workers", 0)
    assert status == 0 and "19 images, 17 tokens of width 128" in shown
    again = run(precompute_features.main, "--data", data, "--num-workers", 0)
    assert again[0] == 0 and "3 in" in again[1] and "0 of them now" in again[1]
    options = ["--data", data, "--out", tmp_path / "run", "--use-features"]
    status, shown, _ = run(train_emu.main, *options, *train_here())
    assert status == 0 and "steps      4 (8 samples" in shown
    model, tokenizer = load_model(tmp_path / "run" / "model")
    assert len(tokenizer) == model.config.num_embeddings
    rows = read_metrics(tmp_path / "run")
    assert len(rows) == 4 and rows[-1]["text_loss"] < rows[0]["text_loss"]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["use_features"] is True

    more = ["--data", data, "--out", tmp_path / "more", "--init", tmp_path / "run" / "model"]
    status, _, error = run(train_emu.main, *more, *train_here("--use-features"))
    assert status == 0, error  # the tower was frozen, so the features are still its own
    again = run(
        precompute_features.main,
        *("--data", data, "--num-workers", 0, "--model", tmp_path / "run" / "model"),
    )
    assert again[0] == 2 and f"requested are those of '{tmp_path / 'run' / 'model'}'" in again[2]


def test_features_of_another_seed_are_refused_before_training(run: Run, data: Path, tmp_path: Path):
    assert run(precompute_features.main, "--data", data, "--num-workers", 0)[0] == 0
    options = ["--data", data, "--out", tmp_path / "run", "--use-features", "--seed", 3]
    status, _, error = run(train_emu.main, *options, *train_here())
    assert status == 2 and "features were made by 'tiny, seed 0'" in error
    status, _, error = run(
        precompute_features.main, "--data", data, "--num-workers", 0, "--seed", 3
    )
    assert status == 2 and "--overwrite" in error


def test_training_resumes_and_refuses_another_run(run: Run, data: Path, tmp_path: Path):
    options = ["--data", data, "--out", tmp_path / "run"]
    assert run(train_emu.main, *options, *train_here())[0] == 0
    before = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    assert (tmp_path / "run" / "model" / "model.safetensors").read_bytes() == before
    was_there = ray.is_initialized()
    status, shown, _ = run(train_emu.main, *options, *train_here("--num-workers", 2))
    assert status == 0 and "has finished before" in shown and "steps      4 (8 samples" in shown
    assert ray.is_initialized() == was_there, "a finished run starts no Ray"
    status, _, error = run(train_emu.main, *options, *train_here("--steps", 9))
    assert status == 2 and "cannot become 9. Resume it with --steps 4" in error
    assert f"--init {tmp_path / 'run' / 'model'} --out ANOTHER_FOLDER --steps 5" in error
    status, _, error = run(train_emu.main, *options, *train_here("--seed", 9))
    assert status == 2 and "train.seed: was 0, now 9" in error
    status, _, error = run(train_emu.main, *options, *train_here("--resume", "never"))
    assert status == 2 and "give another --out" in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "/nowhere", "--out", "OUT"], "no manifest.json"),
        (
            ["--data", "DATA", "--out", "OUT", "--num-workers", "-1"],
            "num_workers is -1, give a whole",
        ),
        (
            ["--data", "DATA", "--out", "OUT", "--steps", "0"],
            "steps is 0, give a whole number",
        ),
        (["--data", "DATA", "--out", "OUT", "--recipe", "emu_14b"], "give --tokenizer PATH"),
        (
            ["--data", "DATA", "--out", "OUT", "--tokenizer", "/no.model"],
            "no tokenizer at /no.model",
        ),
        (
            ["--data", "DATA", "--out", "OUT", "--sequence.window-length", "5"],
            "window_length is 5; give 12",
        ),
        (["--data", "DATA", "--out", "OUT", "--train.optim.clip-norm", "0"], "clip_norm is 0"),
        (
            ["--data", "DATA", "--out", "OUT", "--init", "/nope"],
            "no model at /nope: there is no such folder; a model is a folder with config.json",
        ),
    ],
)
def test_bad_options_are_explained(
    run: Run, data: Path, tmp_path: Path, options: list[str], message: str
):
    paths = {"DATA": str(data), "OUT": str(tmp_path / "out")}
    given = [paths.get(option, option) for option in options]
    status, _, error = run(train_emu.main, "--num-workers", 0, "--steps", 1, *given)
    assert status == 2 and message in error and "Traceback" not in error


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaMA of the tiny recipe's sizes, as Hugging Face's library saves it."""
    folder = tmp_path_factory.mktemp("start") / "llama"
    words = folder.with_name("words.model")
    train_tokenizer(["one red circle", "a text of two blue squares and more"], 280, words)
    sizes = replace(tiny_config().language, vocab_size=EmuTokenizer.load(words).num_pieces)
    write_llama(folder, sizes, words)
    return folder


def test_a_run_starts_from_a_llama(run: Run, data: Path, tmp_path: Path, llama: Path):
    options = ["--data", data, "--out", tmp_path / "run", "--language-weights", llama]
    status, _, error = run(train_emu.main, *options, *train_here("--train.optim.language-lr", 0))
    assert status == 0, error
    model, tokenizer = load_model(tmp_path / "run" / "model")
    assert tokenizer.model_bytes == (llama / "tokenizer.model").read_bytes()
    assert model.config.language.rms_norm_eps == 1e-5
    ours = model.language.lm.state_dict()
    for name, weight in load_file(llama / "model.safetensors").items():
        assert torch.equal(ours[name][: len(weight)], weight), name  # at rate 0 it stays
    described = json.loads((tmp_path / "run" / "run.json").read_text())
    assert described["language_weights"] == str(llama)
    status, _, error = run(train_emu.main, *options[:4], *train_here("--tokenizer", llama))
    assert status == 2 and "language_weights: was" in error


def test_a_llama_that_does_not_fit_is_refused_before_training(
    run: Run, data: Path, tmp_path: Path, llama: Path
):
    options = ["--data", data, "--out", tmp_path / "run", "--language-weights"]
    here = train_here()
    status, _, error = run(train_emu.main, *options, tmp_path / "nope", *here)
    assert status == 2 and "no LLaMA at" in error and "tokenizer.model" in error
    status, _, error = run(train_emu.main, *options, llama, "--init", tmp_path, *here)
    assert status == 2 and "no model at" in error
    status, _, error = run(train_emu.main, *options, llama, "--recipe", "emu_llama_1b", *here)
    assert status == 2 and "pieces, recipe emu_llama_1b needs 32000" in error
    broken = shutil.copytree(llama, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, broken / "model.safetensors")
    status, _, error = run(train_emu.main, *options, broken, *here)
    assert status == 2 and "missing model.layers.1.mlp.up_proj.weight" in error
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_started_from_is_refused_before_training(
    run: Run, data: Path, tmp_path: Path, llama: Path
):
    first = ["--data", data, "--out", tmp_path / "first", "--language-weights", llama]
    assert run(train_emu.main, *first, *train_here())[0] == 0
    model = tmp_path / "first" / "model"
    options = ["--data", data, "--out", tmp_path / "second", "--init", model, *train_here()]
    weights = load_file(model / "model.safetensors")
    weights["extra"] = weights.pop("former.queries")
    weights["ln_visual.bias"] = torch.zeros(3)
    save_file(weights, model / "model.safetensors")
    status, _, error = run(train_emu.main, *options)
    assert status == 2
    for words in (
        "unexpected extra",
        "ln_visual.bias has shape (3,), needs (128,)",
        "missing former.queries",
    ):
        assert words in error
    os.truncate(model / "model.safetensors", 20_000)
    status, _, error = run(train_emu.main, *options)
    assert status == 2 and "model.safetensors is broken" in error
    assert not (tmp_path / "second").exists()


def test_an_output_that_cannot_be_is_refused_in_a_line(
    run: Run, data: Path, tmp_path: Path, llama: Path
):
    (tmp_path / "file").touch()
    start = ["--data", data, "--language-weights", llama, *train_here(), "--out"]
    for out in (tmp_path / "file", tmp_path / "file" / "inside", "/proc/nowhere"):
        status, _, error = run(train_emu.main, *start, out)
        assert status == 2 and error.splitlines()[-1].startswith("error: ") and str(out) in error
        assert "Traceback" not in error


def test_help_shows_the_values_of_the_chosen_recipe(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        train_emu.main(["--recipe", "emu_14b", "--help"])
    shown = capsys.readouterr().out
    assert stop.value.code == 0
    for text in ("--train.optim.vision-lr", "4e-05", "10000", "1024", "Peak learning rate"):
        assert text in shown


def test_relative_paths_in_a_submitted_job_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "working_dir_files" / "_ray_pkg"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    with pytest.raises(ValueError, match="'out' is relative, but a submitted job"):
        job_path("out")
    assert job_path("/a/b") == "/a/b" and job_path("memory://a/b") == "memory://a/b"


@pytest.mark.parametrize(
    ("main", "arguments"),
    [
        (train_emu.main, ["--data", "memory://data", "--out", "memory://run"]),
        (train_decoder.main, ["--data", "memory://data", "--model", "memory://run/model"]),
        (convert_checkpoint.main, ["--weights", "memory://weights", "--out", "run"]),
        (serve.main, ["--model", "memory://run/model"]),
    ],
)
def test_models_and_runs_at_addresses_are_refused(
    main: Callable[[Sequence[str]], int],
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) != 0
    assert "is an address, but models and runs must be on a file system" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
