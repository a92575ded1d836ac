"""What the API asks of an engine, and what comes back; light to import: no torch, no Ray.

`emu.serve.local` has the backend of an engine in this process, `emu.serve.app` that of replicas in other processes.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from emu.config import EmuConfig
from emu.decoders import DECODERS, kind_of, read_image_multiple
from emu.generate.prompts import ImageOptions, Reply, TextOptions, TokenScore
from emu.serve.errors import ErrorResponse
from emu.weights.layout import DECODER
from schemas.sample import Segment


@dataclass(frozen=True)
class EncodedImage:
    """An encoded image, and the field of the request that it came in."""

    data: bytes = field(repr=False)
    param: str


@dataclass(frozen=True)
class EncodedVideo:
    """An encoded video, the field that it came in, and how many frames of it are used."""

    data: bytes = field(repr=False)
    param: str
    num_frames: int


Content = tuple[str | EncodedImage | EncodedVideo, ...]
"""Texts, images and videos in order."""


@dataclass(frozen=True)
class GenerationRequest:
    """One request, checked as far as possible without the model."""

    prompt: Content
    text: TextOptions | None  # None: no text, only an image
    image: ImageOptions
    image_first: bool  # whether the reply holds an image, which comes first
    ids: tuple[int, ...] = ()
    """Token ids in place of `prompt`."""
    param: str = "messages"
    """The field of the prompt, for errors."""
    adapter: str = ""
    """The name of the adapter, empty for the model alone."""
    negative_param: str = "image.negative_prompt"
    """The field of the negative prompt, for errors."""


@dataclass(frozen=True)
class RankRequest:
    """How likely each candidate is as the answer to the prompt (`Engine.candidate_losses`)."""

    prompt: Content
    candidates: tuple[str, ...]
    score: Literal["released", "sum"] = "released"
    param: str = "prompt"
    adapter: str = ""


@dataclass(frozen=True)
class EmbedRequest:
    """The position of each input in the space of visual embeddings."""

    inputs: tuple[Content, ...]
    param: str = "input"
    adapter: str = ""


Work = GenerationRequest | RankRequest | EmbedRequest


@dataclass(frozen=True)
class ScoredPiece:
    """The text that one token makes certain, perhaps none, and the log-probability of the token."""

    text: str
    score: TokenScore


@dataclass(frozen=True)
class ImageBegun:
    """The embeddings of an image are known; text that follows may come before its pixels."""

    index: int


@dataclass(frozen=True)
class ImageReady:
    """An image of the reply, as PNG."""

    index: int
    segment: Segment


@dataclass(frozen=True)
class Values:
    """The result of a ranking (one row of losses) or of embeddings (one row per input)."""

    rows: tuple[tuple[float, ...], ...]
    num_prompt_tokens: int = 0


Event = str | ScoredPiece | ImageBegun | ImageReady | Reply | Values | ErrorResponse
"""Pieces of text and images as they come; at last a `Reply`, `Values`, or the reason why there is none."""


_LAST = (Reply, Values, ErrorResponse)  # a union would be made anew for every piece


def is_last(event: Event) -> bool:
    """Whether nothing follows this event."""
    return isinstance(event, _LAST)


@dataclass(frozen=True)
class Health:
    """Whether requests are answered; the reason says why not."""

    is_ready: bool
    reason: str = ""


@dataclass(frozen=True)
class EngineStats:
    """What one engine does at the moment, and its counts since it started."""

    counts: Mapping[str, int]
    """The fields of `emu.generate.scheduler.Counters`, those that wait for a thread counted as waiting."""
    replica: str = "0"


class Backend(Protocol):
    """Answers requests: in this process, or in replicas elsewhere."""

    def events(self, request: Work) -> AsyncGenerator[Event, None]:
        """What comes of a request, the last event as `is_last` says; may be closed at any time."""
        ...

    async def health(self) -> Health:
        """Whether a model is loaded that answers requests, now or when it has finished others."""
        ...

    async def stats(self) -> Sequence[EngineStats]:
        """The figures of each engine that can be reached."""
        ...


@dataclass(frozen=True)
class ModelCard:
    """What a client should know about the served model."""

    name: str
    config: EmuConfig
    image_multiple: int | None
    """Height and width of a generated image are multiples of it; None: the model generates no images."""
    schedulers: tuple[str, ...]
    """The visual decoder's schedulers by name; where there is none, those of all kinds."""
    created: int = 0
    """Seconds since 1970 at which the model was written."""
    adapters: tuple[str, ...] = ()
    """Names of LoRA adapters; requests call them `name:adapter`."""

    @property
    def names(self) -> list[str]:
        """What requests may give as `model`."""
        return [self.name, *(f"{self.name}:{adapter}" for adapter in self.adapters)]

    def uses_dialogue(self, adapter: str = "") -> bool:
        """Whether prompts take the format of instruction tuning; adapters are tuned on it."""
        return self.config.instruct or bool(adapter)

    @property
    def generates_images(self) -> bool:
        """Whether there is a visual decoder."""
        return self.image_multiple is not None

    @staticmethod
    def of(directory: Path, config: EmuConfig, name: str | None = None) -> ModelCard:
        """The card of a model directory, by default under the directory's name.

        Raises ValueError naming a broken file of the visual decoder.
        """
        folder = directory / DECODER
        multiple = read_image_multiple(folder)
        kinds = DECODERS if multiple is None else [kind_of(folder)]
        schedulers = tuple(dict.fromkeys(s for kind in kinds for s in DECODERS[kind].schedulers))
        written = directory / "config.json"
        created = int(written.stat().st_mtime) if written.is_file() else 0
        name = name or directory.resolve().name
        return ModelCard(name, config, multiple, schedulers, created)
