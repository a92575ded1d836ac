"""Compressed inputs that are read once from start to end, though shard after shard asks for a part of them.

The shards of a file come to a worker in their order, each behind the one before, so a worker that keeps the file open
unpacks it once. Opened for every shard, it would be unpacked half as often as it has shards.
"""

from collections.abc import Iterator
from typing import BinaryIO, Generic, Protocol, TypeVar

MAX_OPEN = 4
"""Files kept open between shards."""


L = TypeVar("L")


class SequentialReader(Generic[L]):
    """The records of an open file, given out in pieces that follow each other.

    Args:
        name: of the file.
        file: is closed with the reader.
        records: all its records.
    """

    def __init__(self, name: str, file: BinaryIO, records: Iterator[L]) -> None:
        self.name = name
        self.next_number = 1
        self._file = file
        self._records = records

    def records_from(self, first: int) -> Iterator[L]:
        """The records from the one at `first` on, counted from 1, which must not be behind."""
        assert first >= self.next_number, (self.name, first, self.next_number)
        for record in self._records:
            self.next_number += 1
            if self.next_number > first:
                yield record

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class OpenReader(Protocol):
    """A file that is being read from its start to its end."""

    @property
    def name(self) -> str:
        """Of the file."""
        ...

    @property
    def next_number(self) -> int:
        """The record that comes next, counted from 1."""
        ...

    def close(self) -> None:
        """Close the file."""
        ...


R = TypeVar("R", bound=OpenReader)


class OpenReaders(Generic[R]):
    """The readers that this process keeps between shards; copies in other processes begin empty."""

    def __init__(self) -> None:
        self._readers: dict[str, R] = {}

    def __reduce__(self) -> tuple[type["OpenReaders[R]"], tuple[()]]:
        return type(self), ()

    def take(self, name: str, first: int) -> R | None:
        """The reader of a file, unless it has passed the record `first`."""
        reader = self._readers.pop(name, None)
        if reader is not None and reader.next_number > first:
            reader.close()
            return None
        return reader

    def keep(self, reader: R) -> None:
        """Keep a reader for the next shard; of more than `MAX_OPEN` the one kept longest is closed."""
        self._readers[reader.name] = reader
        while len(self._readers) > MAX_OPEN:
            self._readers.pop(next(iter(self._readers))).close()
