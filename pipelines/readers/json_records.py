"""Records as lines of `.jsonl` files (plain, `.gz`, `.zip`), or one to a `.json` file, as a source."""

from dataclasses import dataclass

from pipelines.readers.files import InputFiles
from pipelines.readers.jsonl import SUFFIXES, LineSource

_STEM_LENGTH = 48  # leaves room in a key for the number of a part


@dataclass(frozen=True)
class RecordSource(LineSource):
    """A `Source` like `LineSource`, which also takes `.json` files, each of one record."""

    @property
    def files(self) -> InputFiles:
        """The inputs."""
        return InputFiles(self.patterns, (*SUFFIXES, ".json"), self.base, _STEM_LENGTH)
