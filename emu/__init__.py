"""Shards to a model, a model to replies."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from emu.generate.engine import Engine


def load(directory: str | Path, device: str = "cpu", dtype: str = "float32") -> Engine:
    """The `Engine` of a model directory: texts and images in, texts and images out.

    `device` is a torch device (`cpu`, `cuda`); `dtype` is `float32`, `bfloat16` or `float16`.
    Raises FileNotFoundError where a file is absent, ValueError where the files do not fit together.
    """
    from emu.generate.engine import Engine  # torch and transformers take seconds to import

    return Engine.load(directory, device, dtype)
