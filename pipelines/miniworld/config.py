"""What a drawn world is drawn from; together with the code's version it fixes every byte."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.miniworld.scene import MAX_THINGS


@dataclass(frozen=True)
class MiniworldConfig:
    """The size, the variety and the share of trouble of a drawn world."""

    seed: int = 0
    """Draws another world; the same seed gives the same bytes."""
    num_documents: int = 300
    """Lines over all shards, malformed ones included."""
    num_shards: int = 3
    """Document files. Their forms take turns: .jsonl, .jsonl.zip (as distributed), .jsonl.gz."""
    images_per_document: tuple[int, int] = (1, 5)
    """Fewest and most pictures of a document."""
    sentences_per_document: tuple[int, int] = (3, 8)
    """Fewest and most sentences; the most must leave one for each picture."""
    max_things: int = 5
    """Most shapes in a picture: the dial of difficulty, 1 to 6."""
    bad_share: float = 0.15
    """Share of documents with one trouble each; the troubles of mmc4_trouble.TROUBLES take turns."""

    def __post_init__(self) -> None:
        """Refuses values that no world can have, naming value and limit."""
        few_images, most_images = self.images_per_document
        few_sentences, most_sentences = self.sentences_per_document
        _require(self.seed >= 0, f"seed={self.seed} is negative: give 0 or more")
        _require(
            1 <= self.num_shards <= self.num_documents,
            f"num_shards={self.num_shards} is not within 1 and num_documents={self.num_documents}",
        )
        _require(
            1 <= few_images <= most_images,
            f"images_per_document={self.images_per_document} is no range that starts at 1 or above",
        )
        _require(
            3 <= few_sentences <= most_sentences,
            f"sentences_per_document={self.sentences_per_document} is no range that starts at 3 or "
            "above",
        )
        _require(
            most_images <= most_sentences,
            f"images_per_document={self.images_per_document} needs a sentence for each picture, but "
            f"sentences_per_document={self.sentences_per_document} ends at {most_sentences}",
        )
        _require(
            1 <= self.max_things <= MAX_THINGS,
            f"max_things={self.max_things} is not within 1 to {MAX_THINGS}",
        )
        _require(0 <= self.bad_share <= 1, f"bad_share={self.bad_share} is no share: give 0 to 1")


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)
