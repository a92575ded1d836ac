"""Filter: a table in, for each row a reason to drop it or null out."""

from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa


@dataclass(frozen=True)
class Filter:
    """A named test of records.

    The engine counts what it saw and what it dropped, by reason. A filter that drops more than
    `max_drop` of the records it saw in a whole dataset raises an alarm: a threshold in the wrong unit
    (such as a similarity of 30 where values lie in 0..1) must not pass for a clean dataset.
    """

    name: str
    reasons: Callable[[pa.Table], pa.Array | pa.ChunkedArray]
    """Null keeps; a word of `[a-z0-9_]+` is the reason."""
    max_drop: float = 0.9
    """Fraction of the records seen, from 0 to 1, above which there is an alarm."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.max_drop <= 1.0:
            raise ValueError(
                f"filter '{self.name}': max_drop {self.max_drop} is not in 0..1 (it is a fraction)"
            )
