"""What the door of the server hands to a replica, and what comes back. Light to import: no torch."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from emu.config import EmuConfig
from emu.generate.options import ImageOptions, TextOptions
from emu.generate.reply import Reply
from emu.serve.dialogue import Content
from emu.serve.errors import Problem
from emu.serve.model_files import DECODER, read_picture_factor


@dataclass(frozen=True)
class Work:
    """One request, checked as far as that goes without the model."""

    prompt: Content
    text: TextOptions | None  # None: no text, an image alone
    image: ImageOptions
    asks_image: bool


Event = str | Reply | Problem
"""Pieces of text, then the reply or the reason why there is none."""


class Backend(Protocol):
    """Whatever answers: a worker of this process, or replicas elsewhere."""

    def events(self, work: Work) -> AsyncGenerator[Event, None]:
        """Pieces of text as they come, at last a `Reply` or a `Problem`; to be left at any time."""
        ...


@dataclass(frozen=True)
class ModelCard:
    """What a caller should know of the served model."""

    name: str
    config: EmuConfig
    picture_factor: int | None
    """What height and width of a drawn picture must be multiples of; None: it draws none."""

    @property
    def draws(self) -> bool:
        """Whether there is a visual decoder."""
        return self.picture_factor is not None

    @staticmethod
    def of(directory: Path, config: EmuConfig, name: str | None = None) -> ModelCard:
        """The card of a model directory, by default under the directory's name.

        Raises ValueError naming a file of the visual decoder that is broken.
        """
        factor = read_picture_factor(directory / DECODER)
        return ModelCard(name or directory.resolve().name, config, factor)
