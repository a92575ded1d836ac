"""Filters of samples by name: `FILTERS["min_images"](2)` is a `Filter` for any corpus.

Each reads the column `segments` (see `schemas/sample.py`) without touching the bytes of images. A new filter is one
file with its reasons, and a line in `FILTERS`; the contract test runs over the registry.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from pipelines.core.pipeline import Filter
from pipelines.filters.image_size import image_size
from pipelines.filters.min_images import min_images
from pipelines.filters.text_length import text_length

FILTERS: Mapping[str, Callable[..., Filter]] = MappingProxyType(
    {"image_size": image_size, "min_images": min_images, "text_length": text_length}
)
"""Name -> factory; with its defaults a factory makes a usable filter."""
