"""A progress bar over shards: how many are done, and records a second."""

import sys
from collections.abc import Iterable, Iterator

from tqdm import tqdm


def with_progress(
    results: Iterable[tuple[str, int]], label: str, done: int, total: int, is_shown: bool
) -> Iterator[str]:
    """Yield the names of shards as they are done, with a bar on standard error.

    Where that is no terminal (the log of a job), a line at most every ten seconds.
    """
    interval_s = 0.2 if sys.stderr.isatty() else 10.0
    num_records = 0
    with tqdm(
        desc=label,
        initial=done,
        total=total,
        unit="shard",
        mininterval=interval_s,
        maxinterval=interval_s,
        disable=not is_shown,
    ) as bar:
        for name, count in results:
            num_records += count
            elapsed_s = bar.format_dict["elapsed"] if is_shown else 0
            rate = num_records / elapsed_s if elapsed_s else 0
            bar.set_postfix_str(f"{rate:,.0f} samples/s", refresh=False)
            bar.update()
            yield name
