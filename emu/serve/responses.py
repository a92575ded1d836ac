"""Replies in the forms of OpenAI's schema: one object, or a stream of chunks."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from emu.generate.options import Reply
from emu.serve.backend import Event
from emu.serve.errors import Problem
from schemas.sample import Segment


@dataclass(frozen=True)
class Envelope:
    """What every form of one answer carries."""

    id: str
    created: int  # seconds since 1970
    model: str

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def completion(self, reply: Reply) -> dict[str, Any]:
        """The whole answer; its content is a string, or a list of parts if there is an image."""
        content = [_part(s) for s in reply.segments] if reply.images else reply.text
        message = {"role": "assistant", "content": content, "refusal": None}
        choice = {
            "index": 0,
            "message": message,
            "finish_reason": reply.finish_reason,
            "logprobs": None,
        }
        return self._head("chat.completion") | {"choices": [choice], "usage": usage(reply)}

    def chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        """One chunk of a stream."""
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        return self._head("chat.completion.chunk") | {"choices": [choice]}

    async def stream(self, events: AsyncIterator[Event], with_usage: bool) -> AsyncIterator[str]:
        """Server-sent events: text as it comes, the end, `[DONE]`; an error event where it fails."""
        yield _sse(self.chunk({"role": "assistant", "content": ""}))
        async for event in events:
            if isinstance(event, str):
                yield _sse(self.chunk({"content": event}))
            elif isinstance(event, Problem):
                yield _sse(event.as_json())
            else:
                yield _sse(self.chunk({}, event.finish_reason))
                if with_usage:
                    head = self._head("chat.completion.chunk")
                    yield _sse(head | {"choices": [], "usage": usage(event)})
        yield "data: [DONE]\n\n"


def usage(reply: Reply) -> dict[str, int]:
    """Positions taken, those of images included."""
    return {
        "prompt_tokens": reply.num_prompt_tokens,
        "completion_tokens": reply.num_reply_tokens,
        "total_tokens": reply.num_prompt_tokens + reply.num_reply_tokens,
    }


def _part(segment: Segment) -> dict[str, Any]:
    if segment.kind == "text":
        return {"type": "text", "text": segment.text}
    assert segment.image is not None
    encoded = base64.b64encode(segment.image).decode()
    url = f"data:image/{segment.format};base64,{encoded}"
    return {"type": "image_url", "image_url": {"url": url}}


def _sse(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
