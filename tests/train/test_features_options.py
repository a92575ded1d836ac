"""What the job of features refuses, and that it does so before anything costly begins."""

from pathlib import Path

import pytest
import ray

from jobs.precompute_features import main
from tests.data.small_dataset import pair, write_dataset
from tests.exit_codes import exit_code


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--num-workers", "-1"], "num_workers is -1, give a whole number from 0 to 10,000"),
        (["--num-workers", "9" * 18], "from 0 to 10,000"),
        (["--batch-size", "0"], "batch_size is 0, give a whole number from 1 to 65,536"),
        (["--batch-size", "9" * 18], "from 1 to 65,536"),
        (["--decode-threads", "0"], "decode_threads is 0, give a whole number from 1 to 1,024"),
        (["--cpus-per-worker", "0"], "cpus_per_worker is 0.0, give a number above 0"),
        (["--gpus-per-worker", "-1"], "gpus_per_worker is -1.0, give a number above 0"),
        (["--seed", "-1"], "seed is -1, give a whole number from 0"),
        (["--seed", "9" * 30], "to 9,223,372,036,854,775,807"),
        (["--data", ""], "a path is empty"),
        (["--data", "tape://7"], "Protocol not known"),
    ],
)
def test_bad_values_are_named_with_their_limit(
    capsys: pytest.CaptureFixture[str], options: list[str], words: str
):
    status = exit_code(main, ["--data", "/nowhere", *options])
    shown = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert status == 2 and words in shown and "Traceback" not in shown


@pytest.mark.parametrize("recipe", ["tiny", "emu_14b"])
def test_a_dataset_that_is_not_there_is_named_before_ray_or_the_encoder_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], recipe: str
):
    was_there = ray.is_initialized()
    assert main(["--data", str(tmp_path), "--recipe", recipe]) == 2
    assert "no manifest.json: not a dataset" in capsys.readouterr().err
    assert ray.is_initialized() == was_there


def test_the_help_is_not_indented(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "\nTraining with --use-features" in capsys.readouterr().out


def run(capsys: pytest.CaptureFixture[str], *options: object) -> tuple[int, str, str]:
    status = main([str(option) for option in options])
    shown = capsys.readouterr()
    return status, shown.out, shown.err


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "pairs", [pair(number) for number in range(5)], 3)


def test_the_estimate_computes_nothing(data: Path, capsys: pytest.CaptureFixture[str]):
    before = sorted(data.rglob("*"))
    status, shown, _ = run(capsys, "--data", data, "--estimate")
    lines = shown.splitlines()
    assert status == 0 and sorted(data.rglob("*")) == before
    assert "tiny, seed 0: 17 tokens of width 128, embedding 64" in lines
    assert "EVA-CLIP g/14, the paper's: 257 tokens of width 1408, embedding 1024" in lines
    assert "  --patches float16     22.5 kB,    4.51 GB per million images" in lines
    assert "  --patches float16     3.63 MB,     726 GB per million images" in lines
    options = ["--data", data, "--estimate", "--model", "ViT-B-32:laion2b_s34b_b79k"]
    status, shown, _ = run(capsys, *options)
    assert status == 0 and "50 tokens of width 768, embedding 512" in shown


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("/nowhere/model", "no weights at '/nowhere/model'"),
        ("ViT-B-32", "ViT-B-32 is a model: give its weights too, ViT-B-32:TAG"),
        ("laion2b_s34b_b79k", "it is a tag of ViT-B-32: give MODEL:laion2b_s34b_b79k"),
        ("ViT-B-32:openai", "were trained with QuickGELU, the model ViT-B-32 has not it"),
        ("ViT-B-32:nope", "it is no pretrained tag of open_clip's ViT-B-32; tags are"),
        ("ViT-C-32:nope", "open_clip has no model 'ViT-C-32'"),
        ("ViT-B-32:laion2b_s34b_b79k", "neither in its cache nor can it be fetched"),
        ("hf-hub:laion/nope", "HF_HUB_OFFLINE is set; give MODEL:FILE"),
        ("convnext_base:laion400m_s13b_b51k", "no vision transformer and has no patch tokens"),
    ],
)
def test_a_model_that_cannot_be_had_is_explained(
    model: str, words: str, data: Path, capsys: pytest.CaptureFixture[str]
):
    status, _, error = run(capsys, "--data", data, "--num-workers", 0, "--model", model)
    assert status == 2 and words in error and "Traceback" not in error
    assert not (data / "features").exists()
