"""Replies in OpenAI's schema: one object, or a stream of chunks.

Of a reply with images, `message.content` is its text (null if it has none), `message.images` are the images, and
`message.parts`, an extension, says in which order they stand. A stream sends an image in `delta.images` when its
pixels are ready; `delta.parts` marks its position in the text as soon as that is known.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from json.encoder import encode_basestring as quoted
from typing import Any

from emu.generate.prompts import Reply, TokenScore
from emu.serve.backend import Event, ImageBegun, ImageReady, ScoredPiece
from emu.serve.errors import ErrorResponse
from emu.serve.server import Answer
from emu.serve.streams import DONE, Begun
from schemas.sample import Segment

MIN_LOGPROB = -9999.0
BYTE = re.compile("<0x([0-9A-F]{2})>")
MARK = "\N{NULL}"
"""Where the delta of a chunk stands; JSON never holds this character."""
ROLE = '{"role":"assistant","content":""}'
TEXT = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


@dataclass(frozen=True)
class ChatReplies:
    """Builds the response to one chat request."""

    id: str
    created: int  # seconds since 1970
    model: str

    def completion(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """All replies, one choice each."""
        choices = [
            {
                "index": index,
                "message": message_of(answer),
                "finish_reason": answer.reply.finish_reason,
                "logprobs": chat_logprobs(answer.reply.scores),
            }
            for index, answer in enumerate(answers)
        ]
        replies = [answer.reply for answer in answers]
        return self._head("chat.completion") | {"choices": choices, "usage": usage(replies)}

    async def stream(
        self, events: Begun, number: int, includes_usage: bool
    ) -> AsyncGenerator[str, None]:
        """Server-sent events: text and images as they come, the end of each choice, `[DONE]`.

        The roles come with the first piece and `[DONE]` with the last end. An error ends the stream as an event of
        its own.
        """
        head = TEXT.encode(self._head("chat.completion.chunk"))[:-1]
        end = ',"usage":null}\n\n' if includes_usage else "}\n\n"

        def chunk(
            index: int,
            delta: str,
            finish_reason: str | None = None,
            logprobs: dict[str, Any] | None = None,
        ) -> str:
            reason = "null" if finish_reason is None else quoted(finish_reason)
            scores = "null" if logprobs is None else TEXT.encode(logprobs)
            return (
                f'data: {head},"choices":[{{"index":{index},"delta":{delta},'
                f'"finish_reason":{reason},"logprobs":{scores}}}]{end}'
            )

        # most events are pieces of text: what stands around them is made once
        around = [chunk(index, MARK).split(MARK) for index in range(number)]
        replies: list[Reply] = []
        roles = "".join([chunk(index, ROLE) for index in range(number)])
        async with aclosing(events):
            async for index, event in events:
                if isinstance(event, str):
                    before, after = around[index]
                    text = f'{before}{{"content":{quoted(event)}}}{after}'
                elif isinstance(event, ScoredPiece):
                    logprobs = chat_logprobs([event.score])
                    delta = f'{{"content":{quoted(event.text)}}}'
                    text = chunk(index, delta, logprobs=logprobs)
                elif isinstance(event, ErrorResponse):
                    yield f"{roles}{sse(event.as_json())}{DONE}"
                    return
                elif isinstance(event, Reply):
                    replies.append(event)
                    text = chunk(index, "{}", event.finish_reason)
                    if len(replies) == number:
                        if includes_usage:
                            total = TEXT.encode(usage(replies))
                            text += f'data: {head},"choices":[],"usage":{total}}}\n\n'
                        yield f"{roles}{text}{DONE}"
                        return
                else:
                    text = chunk(index, TEXT.encode(_delta(event)))
                if roles:
                    text, roles = roles + text, ""
                yield text

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def message_of(answer: Answer) -> dict[str, Any]:
    """The message of a reply."""
    text = answer.reply.text
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    if answer.images:
        message["content"] = text or None
        message["images"] = [image_part(*entry) for entry in enumerate(answer.images)]
        message["parts"] = _parts(answer.reply)
    return message


def _parts(reply: Reply) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    num_images = 0
    for segment in reply.segments:
        if segment.kind == "text":
            parts.append({"type": "text", "text": segment.text})
        else:
            parts.append({"type": "image", "index": num_images})
            num_images += 1
    return parts


def _delta(event: Event) -> dict[str, Any]:
    if isinstance(event, ImageBegun):
        return {"parts": [{"type": "image", "index": event.index}]}
    assert isinstance(event, ImageReady), event
    return {"images": [image_part(event.index, event.segment)]}


def chat_logprobs(scores: Sequence[TokenScore]) -> dict[str, Any] | None:
    """The log-probabilities of the tokens of a reply; None where none were asked for."""
    if not scores:
        return None
    content = [
        _logprob(score.text, score.logprob)
        | {"top_logprobs": [_logprob(text, logprob) for _, text, logprob in score.top]}
        for score in scores
    ]
    return {"content": content, "refusal": None}


def _logprob(text: str, logprob: float | None) -> dict[str, Any]:
    return {"token": text, "logprob": finite(logprob), "bytes": bytes_of(text)}


def finite(logprob: float | None) -> float | None:
    """JSON has no infinity: a token that cannot be is given OpenAI's smallest value."""
    return None if logprob is None else max(logprob, MIN_LOGPROB)


def bytes_of(text: str) -> list[int]:
    """The bytes of a token, which may be a part of a character, such as `<0xE2>`."""
    byte = BYTE.fullmatch(text)
    return [int(byte[1], 16)] if byte else list(text.encode())


def image_part(index: int, segment: Segment) -> dict[str, Any]:
    """An image of a reply, as a part that can be sent back."""
    url = f"data:image/{segment.format};base64,{encoded(segment)}"
    return {"type": "image_url", "image_url": {"url": url}, "index": index}


def encoded(segment: Segment) -> str:
    """The bytes of an image in base64."""
    assert segment.image is not None
    return base64.b64encode(segment.image).decode()


def usage(replies: Sequence[Reply]) -> dict[str, int]:
    """Positions used, those of images included; the prompt counts once."""
    num_prompt = replies[0].num_prompt_tokens if replies else 0
    num_reply = sum(reply.num_reply_tokens for reply in replies)
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_reply,
        "total_tokens": num_prompt + num_reply,
    }


def sse(value: dict[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {TEXT.encode(value)}\n\n"
