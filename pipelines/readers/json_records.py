"""Records as lines of `.jsonl` files (plain, `.gz`, `.zip`), or one to a `.json` file, as a source."""

from dataclasses import dataclass

from pipelines.readers.jsonl import SUFFIXES, LineSource


@dataclass(frozen=True)
class RecordSource(LineSource):
    """A `Source` like `LineSource`, which also takes `.json` files, each of one record."""

    suffixes = (*SUFFIXES, ".json")
    stem_length = 48  # leaves room in a key for the number of a part
