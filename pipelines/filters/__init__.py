"""Filters of samples by name: `FILTERS["min_images"](2)` is a `Filter` for any corpus.

Each reads columns of samples (`segments`, `meta`; see `schemas/sample.py` and `pipelines/columns.py`); those that
need the
bytes of images say so. A new filter is one file with its reasons, and a line in `FILTERS`: the parameters of its
factory,
with their annotations, are the options of `--filters NAME:key=value`. The contract test runs over the registry.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from pipelines.core.pipeline import Filter
from pipelines.filters.block_list import block_list
from pipelines.filters.clip_similarity import clip_similarity
from pipelines.filters.evaluation_images import evaluation_images
from pipelines.filters.evaluation_texts import evaluation_texts
from pipelines.filters.image_aspect import image_aspect
from pipelines.filters.image_bytes import image_bytes
from pipelines.filters.image_score import image_score
from pipelines.filters.image_size import image_size
from pipelines.filters.language import language
from pipelines.filters.metadata_words import metadata_words
from pipelines.filters.min_images import min_images
from pipelines.filters.repeated_captions import repeated_captions
from pipelines.filters.repetition import repetition
from pipelines.filters.score import score
from pipelines.filters.segment_count import segment_count
from pipelines.filters.tag import tag
from pipelines.filters.text_length import text_length

FILTERS: Mapping[str, Callable[..., Filter]] = MappingProxyType(
    {
        factory.__name__: factory
        for factory in (
            image_size,
            image_aspect,
            image_bytes,
            min_images,
            segment_count,
            text_length,
            language,
            metadata_words,
            repetition,
            repeated_captions,
            score,
            tag,
            image_score,
            clip_similarity,
            block_list,
            evaluation_images,
            evaluation_texts,
        )
    }
)
"""Name -> factory."""
