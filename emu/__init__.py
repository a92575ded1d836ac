"""From shards to a model, and from prompts to replies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from emu.huggingface.registration import register

if TYPE_CHECKING:
    from pathlib import Path

    from emu.generate.engine import Engine

__version__ = "0.1.0"

register()


def load(directory: str | Path, device: str = "cpu", dtype: str = "float32") -> Engine:
    """The `Engine` of a model directory: prompts in, texts and images out.

    `device` is a torch device (`cpu`, `cuda`); `dtype` is `float32`, `bfloat16` or `float16`.
    Raises FileNotFoundError for an absent file, ValueError for files that do not fit together.
    """
    from emu.generate.engine import Engine  # importing torch and transformers takes seconds

    return Engine.load(directory, device, dtype)
