#!/usr/bin/env python3
"""Scores the outputs of any model: `emu evaluate METRIC --predictions FILE --references FILE`."""

import sys
from collections.abc import Sequence

from emu.eval.metrics import load_metric
from emu.eval.metrics.files import ScoreFiles
from emu.eval.score import description_of, overview, score_files
from jobs.cli import (
    BAD_VALUE,
    COMPLETE,
    checked_options,
    failing,
    program_of,
    report_error,
    run_job,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code (see `jobs.cli`); the first word names the metric."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    program = program_of(__file__)
    if not words or words[0] in ("-h", "--help"):
        print(overview(program), end="")
        return COMPLETE if words else BAD_VALUE
    metric = words[0]
    try:
        kind = load_metric(metric)
    except ValueError as error:
        return report_error(f"{error} ({program} --help describes them)", BAD_VALUE)

    def evaluate(options: ScoreFiles) -> str:
        with failing(ModuleNotFoundError), checked_options():
            return score_files(metric, options)

    whole, described = f"{program} {metric}", description_of(metric, kind)
    return run_job(kind, evaluate, words[1:], program=whole, description=described)


if __name__ == "__main__":
    sys.exit(main())
