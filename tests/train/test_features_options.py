"""What the job of features refuses, and that it does so before anything costly begins."""

from pathlib import Path

import pytest
import ray

from jobs.precompute_features import main
from tests.exit_codes import exit_code


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--num-workers", "-1"], "num_workers is -1, give a whole number from 0 to 10,000"),
        (["--num-workers", "9" * 18], "from 0 to 10,000"),
        (["--batch-size", "0"], "batch_size is 0, give a whole number from 1 to 65,536"),
        (["--batch-size", "9" * 18], "from 1 to 65,536"),
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
    assert main(["--data", str(tmp_path), "--recipe", recipe]) == 1
    assert "no manifest.json: not a dataset" in capsys.readouterr().err
    assert ray.is_initialized() == was_there


def test_the_help_is_not_indented(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "\nTraining with --use-features" in capsys.readouterr().out
