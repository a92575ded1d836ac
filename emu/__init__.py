"""From shards to a model, and from prompts to replies."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from emu.huggingface.registration import register

if TYPE_CHECKING:
    from pathlib import Path

    from emu.generate.engine import Engine

__version__ = "0.1.0"
IMPORT_THRESHOLD = (10_000, 10, 10)
"""Of `gc.set_threshold` while packages are imported: a sixth less CPU time than with Python's 700 objects."""

register()


def load(
    directory: str | Path, device: str = "cpu", dtype: str = "float32", weights: str = "full"
) -> Engine:
    """The `Engine` of a model directory: prompts in, texts and images out.

    `device` is a torch device (`cpu`, `cuda`); `dtype` is `float32`, `bfloat16` or `float16`. With
    `weights="int8"` those of the language model's layers are rounded to 8 bits (docs/decisions/0162).
    Raises FileNotFoundError for an absent file, ValueError for files that do not fit together.
    """
    with _seldom_collected():
        from emu.generate.engine import Engine  # importing torch and transformers takes seconds

        return Engine.load(directory, device, dtype, weights)


@contextmanager
def _seldom_collected() -> Iterator[None]:
    """Let the garbage collector run less often: an import makes half a million objects that all stay."""
    before = gc.get_threshold()
    gc.set_threshold(*IMPORT_THRESHOLD)
    try:
        yield
    finally:
        gc.set_threshold(*before)
