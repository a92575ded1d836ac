"""Scores the outputs of any model: `python -m emu.eval.score METRIC --predictions FILE --references FILE`.

Prints a table and writes JSON with the score of every sample. docs/metrics.md shows the files of each metric.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from emu.eval.metrics import METRICS, load_metric
from emu.eval.metrics.files import ScoreFiles
from emu.eval.metrics.metric import Score

_PROGRAM = "python -m emu.eval.score"
_USAGE_ERROR = 2


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; exits with a message if the inputs cannot be scored."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        sys.stdout.write(overview())
        raise SystemExit(0 if words else _USAGE_ERROR)
    try:
        files_class = load_metric(words[0])
    except ValueError as error:
        sys.stderr.write(f"error: {error} ({_PROGRAM} --help describes them)\n")
        raise SystemExit(_USAGE_ERROR) from error
    options = tyro.cli(
        files_class,
        args=words[1:],
        prog=f"{_PROGRAM} {words[0]}",
        description=description_of(words[0], files_class),
    )
    try:
        sys.stdout.write(score_files(words[0], options) + "\n")
    except (ValueError, OSError, ModuleNotFoundError) as error:
        raise SystemExit(f"error: {error}") from error


def score_files(metric: str, options: ScoreFiles) -> str:
    """Score the files and write the scores of all samples as JSON; returns the table of the scores.

    Raises ValueError, FileNotFoundError or ModuleNotFoundError if the inputs cannot be scored.
    """
    output = _checked_output(options)
    scores = options.scores(metric)
    output.write_text(as_json(metric, options, scores), encoding="utf-8")
    return f"{table(scores)}scores of all samples: {output}"


def overview(program: str = _PROGRAM) -> str:
    """The command's help: its form and every metric with a line of description."""
    width = max(map(len, METRICS))
    lines = [f"  {name.ljust(width)}  {entry.summary}" for name, entry in METRICS.items()]
    return "\n".join(
        [
            f"usage: {program} METRIC --predictions FILE --references FILE [OPTIONS]",
            "",
            "Scores the outputs of any model against references, with the numbers of the official scorers.",
            "Prints a table and writes JSON with the score of every sample.",
            "",
            "metrics:",
            *lines,
            "",
            f"{program} METRIC --help shows the options and the files of a metric; see also docs/metrics.md.",
            "",
        ]
    )


def description_of(metric: str, files_class: type[ScoreFiles]) -> str:
    """The help of a metric: what it scores, and an example of its files."""
    return "\n\n".join(
        [
            f"{METRICS[metric].summary}. {files_class.__doc__}",
            f"Predictions: {files_class.predictions_example}",
            f"References: {files_class.references_example}",
        ]
    )


def table(scores: Sequence[Score]) -> str:
    """The scores as a table."""
    rows = [("metric", "score", "95% interval", "samples")]
    for score in scores:
        bounds = score.interval
        interval = "" if bounds is None else f"{bounds.low:.6g} .. {bounds.high:.6g}"
        rows.append((score.name, f"{score.value:.6f}", interval, str(len(score.samples) or "")))
        rows.extend((f"  {group}", f"{value:.6f}", "", "") for group, value in score.groups.items())
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def as_json(metric: str, options: ScoreFiles, scores: Sequence[Score]) -> str:
    """The scores, with those of all samples, as JSON."""
    found: dict[str, Any] = {
        "metric": metric,
        "predictions": str(options.predictions),
        "references": str(options.references),
        "scores": [
            {
                "name": score.name,
                "value": score.value,
                "interval": None if score.interval is None else vars(score.interval),
                "groups": dict(score.groups),
                "samples": {str(key): value for key, value in score.samples.items()},
            }
            for score in scores
        ],
    }
    return json.dumps(found, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def _checked_output(options: ScoreFiles) -> Path:
    """The file of the scores; raises an error, before anything is computed, if it cannot be written."""
    inputs = options.inputs()
    for path in inputs:
        if not path.exists():
            raise FileNotFoundError(f"no file {path}; check the path")
    output = options.output or options.predictions.with_suffix(".scores.json")
    if output.exists() and any(output.samefile(path) for path in inputs):
        raise ValueError(
            f"the scores would overwrite the input {output}; choose another file with --output"
        )
    if output.is_dir() or not output.parent.is_dir():
        raise ValueError(
            f"cannot write {output}: its folder must exist, and it must not be a folder itself"
        )
    return output


if __name__ == "__main__":
    main()
