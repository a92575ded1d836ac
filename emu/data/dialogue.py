"""Dialogues as prompts: one template for training and serving, and which of its ids are learned.

    <System Message> [USER]: <Instruction> [ASSISTANT]: <Answer></s> [USER]: …

Source: paper section 3.4 and the released evaluation code of Emu-I. Only the answers and their `</s>` are learned. In
training the whole dialogue is tokenized as the server tokenizes its prompts, so the ids before an answer are those of
the request that asks for it. Light to import: no torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from emu.tokenizer import EmuTokenizer
from schemas.dialogue import IMAGE_SYSTEM_MESSAGE, VIDEO_SYSTEM_MESSAGE
from schemas.sample import Segment

T = TypeVar("T")
"""An image: whatever stands for it."""


@dataclass(frozen=True)
class Plain:
    """A text of a corpus; special tokens that are written in it are plain characters."""

    text: str
    is_answer: bool = False


@dataclass(frozen=True)
class Marked(Generic[T]):
    """A token id or an image, and whether it belongs to an answer."""

    atom: int | T
    is_answer: bool


def conversation(
    turns: Sequence[tuple[str, Sequence[T]]], is_closed: bool = False
) -> list[T | str]:
    """The pieces of a prompt; those of the template are `str`, and special tokens in them count as such.

    Args:
        turns: roles with their content, system messages among them.
        is_closed: the last answer ends in `</s>`. Otherwise it stays open, to be continued, and so does a last
            question, with `[ASSISTANT]:`.
    """
    pieces: list[T | str] = [p for role, content in turns if role == "system" for p in content]
    spoken = [turn for turn in turns if turn[0] != "system"]
    for number, (role, content) in enumerate(spoken):
        is_last = number == len(spoken) - 1
        if role == "user":
            pieces += [" [USER]: ", *content]
            pieces += [" [ASSISTANT]:"] if is_last else []
        else:
            pieces += [" [ASSISTANT]: ", *content]
            pieces += ["</s>"] if is_closed or not is_last else []
    return pieces


def turns_of(
    segments: Sequence[Segment], images: Sequence[T]
) -> list[tuple[str, list[Plain | str | T]]]:
    """The turns of a sample: runs of segments of one role. `images` stands for its images, in order."""
    image = iter(images)
    turns: list[tuple[str, list[Plain | str | T]]] = []
    for role, run in itertools.groupby(segments, key=lambda segment: segment.role or ""):
        content: list[Plain | str | T] = []
        for segment in run:
            if segment.kind == "image":
                content.append(next(image))
            elif role == "system":
                content += system_pieces(segment.text or "")
            else:
                content.append(Plain(segment.text or "", role == "assistant"))
        turns.append((role, content))
    return turns


def system_pieces(text: str) -> list[str | Plain]:
    """A system message: the paper's, whose `[IMG]ImageContent[/IMG]` are special tokens, and what follows it."""
    for message in (IMAGE_SYSTEM_MESSAGE, VIDEO_SYSTEM_MESSAGE):
        if text.startswith(message):
            return [message, Plain(text.removeprefix(message))]
    return [Plain(text)]


@dataclass
class _Run:
    """A text between two special tokens or images: that of the template or a question, then an answer."""

    given: str = ""
    answer: str = ""


def encoded(pieces: Iterable[Plain | str | T], tokenizer: EmuTokenizer) -> list[Marked[T]]:
    """The ids and images of a dialogue, without `<s>`, in the tokenizer's segmentation."""
    runs = _runs(pieces, tokenizer)
    marked: list[Marked[T]] = []
    for number, run in enumerate(runs):
        if not isinstance(run, _Run):
            marked.append(Marked(run, run == tokenizer.special.eos))
            continue
        is_first, is_last = number == 0, number == len(runs) - 1
        ids = tokenizer.encode_run(run.given + run.answer, is_first, is_last)
        num_given = len(ids)
        if run.answer:
            prefix = tokenizer.encode_run(run.given, is_first, False)
            same = (a == b for a, b in zip(prefix, ids, strict=False))
            num_given = sum(itertools.takewhile(bool, same))
        marked += [Marked(token, n >= num_given) for n, token in enumerate(ids)]
    return marked


def _runs(pieces: Iterable[Plain | str | T], tokenizer: EmuTokenizer) -> list[_Run | int | T]:
    """Texts that stand side by side joined, special tokens as their ids."""
    runs: list[_Run | int | T] = []

    def add(text: str, is_answer: bool) -> None:
        last = runs[-1] if runs else None
        if not isinstance(last, _Run):
            runs.append(last := _Run())
        if is_answer:
            last.answer += text
        else:
            last.given += text

    for piece in pieces:
        if isinstance(piece, Plain):
            add(piece.text, piece.is_answer)
        elif isinstance(piece, str):
            for part in tokenizer.split(piece):
                if isinstance(part, int):
                    runs.append(part)
                elif part:
                    add(part, False)
        else:
            runs.append(piece)
    return runs
