"""What a drawn world is drawn from; together with the code's version it fixes every byte."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.miniworld.scene import MAX_THINGS

MAX_SEED = 2**63 - 1
MAX_DOCUMENTS = 1_000_000
"""The lines of a shard are held in memory, some kilobytes each."""
MAX_IMAGES, MAX_SENTENCES = 100, 1_000


@dataclass(frozen=True)
class MiniworldConfig:
    """The size, the variety and the share of trouble of a drawn world."""

    seed: int = 0
    """Draws another world, 0 to 2^63 - 1; the same seed gives the same bytes."""
    num_documents: int = 300
    """Lines over all shards, malformed ones included, 1 to 1,000,000. 300 take 7 MB."""
    num_shards: int = 3
    """Document files, 1 to num_documents. Their forms take turns: .jsonl, .jsonl.zip (as distributed), .jsonl.gz."""
    images_per_document: tuple[int, int] = (1, 5)
    """Fewest and most pictures of a document, within 1 to 100."""
    sentences_per_document: tuple[int, int] = (3, 8)
    """Fewest and most sentences, within 3 to 1,000; the most must leave one for each picture."""
    max_things: int = 5
    """Most shapes in a picture: the dial of difficulty, 1 to 6."""
    bad_share: float = 0.15
    """Share of documents, 0 to 1, with one trouble each; the troubles of mmc4_trouble.TROUBLES take turns."""

    def __post_init__(self) -> None:
        """Refuses values that no world can have, naming value and limit."""
        _within("seed", self.seed, 0, MAX_SEED)
        _within("num_documents", self.num_documents, 1, MAX_DOCUMENTS)
        _within("num_shards", self.num_shards, 1, self.num_documents, " (num_documents)")
        _range("images_per_document", self.images_per_document, 1, MAX_IMAGES)
        _range("sentences_per_document", self.sentences_per_document, 3, MAX_SENTENCES)
        most_images, most_sentences = self.images_per_document[1], self.sentences_per_document[1]
        if most_images > most_sentences:
            raise ValueError(
                f"images_per_document={self.images_per_document} needs a sentence for each picture, but "
                f"sentences_per_document={self.sentences_per_document} ends at {most_sentences}"
            )
        _within("max_things", self.max_things, 1, MAX_THINGS)
        _within("bad_share", self.bad_share, 0, 1)


def _within(name: str, value: float, least: int, most: int, limit: str = "") -> None:
    if not least <= value <= most:
        raise ValueError(f"{name}={value} is not within {least} to {most}{limit}")


def _range(name: str, value: tuple[int, int], least: int, most: int) -> None:
    fewest, greatest = value
    if not least <= fewest <= greatest <= most:
        raise ValueError(
            f"{name}={value} is no range from the fewest to the most within {least} to {most}"
        )
