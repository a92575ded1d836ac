"""What the model answers: segments in order, why the answer ended, and what it took."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from schemas.sample import Segment

FinishReason = Literal["stop", "length", "image"]
"""`stop`: the end token or a stop string; `length`: a limit; `image`: a token that opens an image,
which ends one text inside a reply and never the reply."""


@dataclass(frozen=True)
class Reply:
    """What the model answered, in order, and what it took."""

    segments: tuple[Segment, ...]
    finish_reason: FinishReason
    num_prompt_tokens: int  # positions of the prompt, those of images included
    num_reply_tokens: int  # positions of the answer, those of images included

    @property
    def text(self) -> str:
        """All texts of the reply, joined."""
        return "".join(s.text or "" for s in self.segments if s.kind == "text")

    @property
    def images(self) -> tuple[Segment, ...]:
        """The pictures of the reply, encoded as PNG."""
        return tuple(s for s in self.segments if s.kind == "image")
