"""Messages to a prompt: the instruction format of Emu-I, or plain concatenation.

Instruction format (paper section 3; evaluation code of the release):

    <System Message> [USER]: <Instruction> [ASSISTANT]: <Answer></s> [USER]: …

The last turn is left open for the model. Where the last message is the assistant's, the answer goes on
from its text. Without a system message, that of the release is used where there is an image, and none
where there is not. Weights that were not instructed get the contents of all messages one after the
other, with a space between messages: what they continue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from emu.config import INSTRUCT_TOKENS
from emu.serve.errors import refuse

RESERVED = (*INSTRUCT_TOKENS, "<s>", "</s>", "<unk>")
IMAGE_SYSTEM_MESSAGE = (
    "You will be presented with an image: [IMG]ImageContent[/IMG]. You will be able to see the image "
    "after I provide it to you. Please answer my questions based on the given image."
)


@dataclass(frozen=True)
class Picture:
    """An encoded image, and the field of the request that it came in."""

    data: bytes
    param: str


Content = tuple[str | Picture, ...]


@dataclass(frozen=True)
class Turn:
    """One message, its images at hand."""

    role: Literal["system", "user", "assistant"]
    content: Content


def check_text(text: str, param: str) -> str:
    """The text; raises `ApiError` where it writes a token that means something to the model."""
    for token in RESERVED:
        if token in text:
            raise refuse(
                400,
                f"{param} contains {token}, which is a control token of the model; write it differently",
                param,
                "reserved_token",
            )
    return text


def to_prompt(turns: Sequence[Turn], instruct: bool) -> Content:
    """The pieces of the prompt."""
    return _instruction(turns) if instruct else _concatenation(turns)


def _concatenation(turns: Sequence[Turn]) -> Content:
    pieces: list[str | Picture] = []
    for number, turn in enumerate(turns):
        pieces += [" ", *turn.content] if number else turn.content
    return tuple(pieces)


def _instruction(turns: Sequence[Turn]) -> Content:
    if all(turn.role == "system" for turn in turns):
        raise refuse(400, "messages holds no message of the user", "messages")
    pieces: list[str | Picture] = [
        piece for t in turns if t.role == "system" for piece in t.content
    ]
    if not pieces and any(isinstance(piece, Picture) for turn in turns for piece in turn.content):
        pieces.append(IMAGE_SYSTEM_MESSAGE)
    spoken = [turn for turn in turns if turn.role != "system"]
    for number, turn in enumerate(spoken):
        is_last = number == len(spoken) - 1
        if turn.role == "user":
            pieces += [" [USER]: ", *turn.content]
            pieces += [" [ASSISTANT]:"] if is_last else []
        else:
            pieces += [" [ASSISTANT]: ", *turn.content]
            pieces += [] if is_last else ["</s>"]
    return tuple(pieces)
