"""Configuration of a synthetic world; together with the version of the code it determines every byte."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from pipelines.miniworld.scene import MAX_THINGS
from schemas.validation import Checked, ConfigError

MAX_SEED = 2**63 - 1
MAX_DOCUMENTS = 1_000_000
"""The lines of a shard are held in memory, a few kilobytes each."""
MAX_IMAGES, MAX_SENTENCES = 100, 1_000

_Images = Annotated[int, Field(ge=1, le=MAX_IMAGES, description="images per document")]
_Sentences = Annotated[int, Field(ge=3, le=MAX_SENTENCES, description="sentences per document")]


@dataclass(frozen=True)
class MiniworldConfig(Checked):
    """Size, variety and faults of a synthetic world."""

    seed: Annotated[int, Field(ge=0, le=MAX_SEED, description="of the random generator")] = 0
    """Seed of the random generator, 0 to 2^63 - 1. The same seed gives the same bytes."""
    num_documents: Annotated[int, Field(ge=1, le=MAX_DOCUMENTS, description="lines")] = 300
    """Lines over all shards including malformed ones, 1 to 1,000,000. 300 documents take 7 MB."""
    num_shards: Annotated[int, Field(ge=1, description="at most num_documents")] = 3
    """Document files, 1 to num_documents. Their formats alternate: .jsonl, .jsonl.zip (as distributed), .jsonl.gz."""
    images_per_document: tuple[_Images, _Images] = (1, 5)
    """Minimum and maximum number of images per document, within 1 to 100."""
    sentences_per_document: tuple[_Sentences, _Sentences] = (3, 8)
    """Minimum and maximum number of sentences per document, within 3 to 1,000.
    The maximum must allow one sentence per image."""
    max_things: Annotated[int, Field(ge=1, le=MAX_THINGS, description="shapes per image")] = 5
    """Maximum number of shapes in an image, 1 to 6. More shapes are harder to learn."""
    bad_share: Annotated[
        float, Field(ge=0.0, le=1.0, description="a fraction of the documents")
    ] = 0.15
    """Fraction of documents, 0 to 1, with exactly one fault. The kinds of faults alternate."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_shards > self.num_documents:
            raise ConfigError(
                f"num_shards is {self.num_shards}, give a whole number from 1 to "
                f"{self.num_documents:,} (num_documents)"
            )
        for name in ("images_per_document", "sentences_per_document"):
            fewest, most = getattr(self, name)
            if fewest > most:
                raise ConfigError(f"{name} is {(fewest, most)}, give the fewest before the most")
        most_images, most_sentences = self.images_per_document[1], self.sentences_per_document[1]
        if most_images > most_sentences:
            raise ConfigError(
                f"images_per_document is {self.images_per_document}, give at most {most_sentences} images "
                f"(each needs a sentence, and sentences_per_document is {self.sentences_per_document})"
            )


@dataclass(frozen=True)
class PairsConfig(Checked):
    """Number, size and texts of synthetic pairs; determines every byte of the dataset."""

    num_pairs: Annotated[int, Field(ge=1, le=10_000_000)] = 20_000
    """Number of image-text pairs. 20,000 take about 60 MB and 20 seconds on one core."""
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 0
    """Seed of the random generator. The same seed gives the same pairs."""
    question_share: Annotated[float, Field(ge=0, le=1, description="a fraction of the pairs")] = 0.0
    """Fraction of the texts, 0 to 1, that contain questions with answers. The others are captions only."""
    side_px: Annotated[int, Field(ge=16, le=1024, description="pixels")] = 64
    """Width and height of the images in pixels, 16 to 1024."""
