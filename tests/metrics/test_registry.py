"""Contract of every metric in the registry: its example files are scored, faults are errors, help and docs name it."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emu.eval.metrics import METRICS, load_metric
from emu.eval.metrics.files import ScoreFiles
from emu.eval.score import main
from tests.metrics.small_wordnet import write_wordnet

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"


def write_example(folder: Path, stem: str, content: str) -> Path:
    """The example as a file: JSON, CSV, or an array of features."""
    if content.endswith(".npy"):
        path = folder / f"{stem}.npy"
        np.save(path, np.random.default_rng(len(stem)).normal(size=(20, 4)))
        return path
    path = folder / f"{stem}{'.json' if content[0] in '[{' else '.csv'}"
    path.write_text(content, encoding="utf-8")
    return path


def example_arguments(folder: Path, metric: str) -> list[str]:
    """Arguments of the command for the example files; options only where a metric cannot do without."""
    kind = load_metric(metric)
    arguments = [
        "--predictions",
        str(write_example(folder, "predictions", kind.predictions_example)),
    ]
    arguments += ["--references", str(write_example(folder, "references", kind.references_example))]
    arguments += ["--output", str(folder / "out.json"), "--num-resamples", "9"]
    if metric == "nextoe":
        (folder / "wordnet").mkdir()
        (folder / "stop_words.txt").write_text("the\n")
        arguments += ["--wordnet", str(write_wordnet(folder / "wordnet")), "--tagger", "rules"]
        arguments += ["--stop-words", str(folder / "stop_words.txt")]
    return [*arguments, "--subset-size", "10"] if metric == "kid" else arguments


def without_last(value: Any) -> Any:
    """The list or object without its last entry, that of the innermost object."""
    if isinstance(value, list):
        return value[:-1]
    *others, (key, last) = value.items()
    is_nested = isinstance(last, dict) and len(value) == 1
    return {**dict(others), key: without_last(last)} if is_nested else dict(others)


@pytest.mark.parametrize("metric", METRICS)
def test_example_files_are_scored(metric: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    main([metric, *example_arguments(tmp_path, metric)])
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["metric"] == metric
    assert written["scores"]
    printed = capsys.readouterr().out
    for score in written["scores"]:
        assert math.isfinite(score["value"])
        assert score["name"] in printed and f"{score['value']:.6f}" in printed
        assert (score["interval"] is None) == (not score["samples"])


@pytest.mark.parametrize("metric", METRICS)
def test_a_missing_prediction_is_an_error_and_nothing_is_written(metric: str, tmp_path: Path):
    arguments = example_arguments(tmp_path, metric)
    predictions = Path(arguments[1])
    if predictions.suffix == ".npy":
        np.save(predictions, np.ones((20, 3)))
        message = "error: widths differ"
    else:
        predictions.write_text(json.dumps(without_last(json.loads(predictions.read_text()))))
        message = r"error: 1 of \d references have no prediction"
    with pytest.raises(SystemExit, match=message):
        main([metric, *arguments])
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize("metric", METRICS)
def test_an_empty_file_is_an_error_with_its_name(metric: str, tmp_path: Path):
    arguments = example_arguments(tmp_path, metric)
    Path(arguments[1]).write_text("")
    with pytest.raises(SystemExit, match=r"error: .*predictions\."):
        main([metric, *arguments])


@pytest.mark.parametrize("metric", METRICS)
def test_help_shows_the_options_and_the_example_files(
    metric: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as ended:
        main([metric, "--help"])
    printed = capsys.readouterr().out
    assert ended.value.code == 0
    assert "--predictions" in printed and "--num-resamples" in printed
    assert METRICS[metric].summary in printed
    assert load_metric(metric).predictions_example in printed


def test_the_registry_the_overview_and_the_page_name_the_same_metrics(
    capsys: pytest.CaptureFixture[str],
):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    overview = capsys.readouterr().out
    assert ended.value.code == 0
    page = DOCS.read_text(encoding="utf-8")
    for metric, entry in METRICS.items():
        assert issubclass(load_metric(metric), ScoreFiles)
        assert f"  {metric} " in overview and entry.summary in overview
        assert f"`{metric}`" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bleuu"], "no metric 'bleuu'; choose from captions, bleu, "),
        (["bleu", "--predictions", "a", "--references", "b", "--subset-size", "5"], "subset-size"),
        (["bleu"], "predictions"),
    ],
)
def test_usage_errors_have_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert message in printed.err + printed.out
