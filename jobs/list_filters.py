#!/usr/bin/env python3
"""Lists the filters that every build job takes."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import tyro

from jobs.cli import run_job
from schemas.validation import Checked


@dataclass(frozen=True)
class ListFilters(Checked):
    """Lists the filters for --filters, with their parameters, defaults and reasons.

    For example, list two filters, then use them:
        emu filters image_size language
        emu build mmc4 --documents 'docs_*.zip' --out mmc4 --filters image_size:min_side=128 language:languages=en+de
    """

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Names of the filters to list. Without names, all filters are listed."""


def list_filters(options: ListFilters) -> str:
    """The list, a paragraph a filter."""
    from pipelines.filters import FILTERS
    from pipelines.filters.options import described

    unknown = [name for name in options.names if name not in FILTERS]
    if unknown:
        raise ValueError(f"no filter {unknown[0]!r}; there are {', '.join(FILTERS)}")
    return "\n\n".join("\n".join(described(name)) for name in options.names or FILTERS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code (see `jobs.cli`)."""
    return run_job(ListFilters, list_filters, arguments)


if __name__ == "__main__":
    sys.exit(main())
