"""Filters of samples by name: `FILTERS["min_images"](2)` is a `Filter` for any corpus.

Each reads columns of samples (`segments`, `meta`; see `schemas/sample.py` and `pipelines/columns.py`); those that
need the bytes of images say so. A new filter is one file with its reasons, and a name in `FILTERS`: the parameters of
its factory, with their annotations, are the options of `--filters NAME:key=value`.
The contract test runs over the registry.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping

from pipelines.core.pipeline import Filter


class Filters(Mapping[str, Callable[..., Filter]]):
    """Factories by name; the file of a filter is imported when it is asked for."""

    def __init__(self, *names: str) -> None:
        self._names = names

    def __getitem__(self, name: str) -> Callable[..., Filter]:
        if name not in self._names:
            raise KeyError(name)
        return getattr(importlib.import_module(f"{__name__}.{name}"), name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


FILTERS = Filters(
    "image_size",
    "image_aspect",
    "image_bytes",
    "min_images",
    "segment_count",
    "text_length",
    "language",
    "metadata_words",
    "repetition",
    "repeated_captions",
    "score",
    "tag",
    "image_score",
    "clip_similarity",
    "block_list",
    "evaluation_images",
    "evaluation_texts",
)
"""Name -> factory: the function of that name in the file of that name."""
