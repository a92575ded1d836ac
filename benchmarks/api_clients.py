#!/usr/bin/env python3
"""Calls a running server with the clients that people use, unmodified: openai, litellm, langchain-openai.

    emu serve --model runs/mine/model                                # in one shell
    python -m venv /tmp/clients && /tmp/clients/bin/pip install openai litellm langchain-openai
    /tmp/clients/bin/python benchmarks/api_clients.py                 # in another: an environment of their own

Prints a line for each client and call, and ends with exit code 1 if one of them fails. Needs nothing of this project.
"""

from __future__ import annotations

import argparse
import base64
import importlib
import importlib.metadata
import json
import struct
import sys
import time
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from typing import Any

Check = tuple[str, Callable[[], object]]
SIDE = 32


def png() -> bytes:
    """A red square, without an imaging library."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checked = kind + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    rows = (b"\0" + b"\xff\0\0" * SIDE) * SIDE
    head = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


IMAGE_URL = "data:image/png;base64," + base64.b64encode(png()).decode()
QUESTION: list[dict[str, Any]] = [
    {
        "role": "user",
        "content": [
            {"type": "image_url", "image_url": {"url": IMAGE_URL}},
            {"type": "text", "text": "what colour is it?"},
        ],
    }
]


def openai_checks(url: str, key: str, model: str, generates_images: bool) -> Iterator[Check]:
    """The calls of the openai client."""
    import openai

    client = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=120)
    chat: Any = client.chat.completions.create

    def streamed() -> object:
        chunks = list(
            chat(
                model=model,
                messages=QUESTION,
                max_tokens=8,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        assert chunks[-1].usage.completion_tokens > 0
        return len(chunks)

    def refused() -> object:
        try:
            chat(model=model, messages=QUESTION, max_tokens=10**9)
        except openai.BadRequestError as error:
            assert error.param == "max_tokens", error
            return error.status_code
        raise AssertionError("10^9 tokens were not refused")

    def image() -> object:
        made: Any = client.images.generate(
            model=model, prompt="a red circle", n=2, response_format="b64_json"
        )
        assert base64.b64decode(made.data[1].b64_json).startswith(b"\x89PNG")
        return len(made.data)

    def edited() -> object:
        made: Any = client.images.edit(
            model=model, image=("a.png", png(), "image/png"), prompt="make it blue"
        )
        return len(base64.b64decode(made.data[0].b64_json))

    yield "models.list", lambda: [entry.id for entry in client.models.list()]
    yield "chat", lambda: chat(model=model, messages=QUESTION, max_tokens=8).usage.total_tokens
    yield "chat, streamed", streamed
    yield (
        "chat, n=2",
        lambda: len(chat(model=model, messages=QUESTION, max_tokens=4, n=2, temperature=1).choices),
    )
    yield (
        "chat, logprobs",
        lambda: len(
            chat(model=model, messages=QUESTION, max_tokens=4, logprobs=True, top_logprobs=3)
            .choices[0]
            .logprobs.content
        ),
    )
    yield (
        "completions",
        lambda: (
            client.completions.create(
                model=model, prompt="a red circle", max_tokens=4, logprobs=1, echo=True
            )
            .choices[0]
            .text
        ),
    )
    yield (
        "embeddings",
        lambda: len(client.embeddings.create(model=model, input="red").data[0].embedding),
    )
    yield "an error", refused
    if generates_images:
        yield "images.generate", image
        yield "images.edit", edited


def litellm_checks(url: str, key: str, model: str, generates_images: bool) -> Iterator[Check]:
    """The calls of litellm."""
    litellm: Any = importlib.import_module("litellm")

    common: dict[str, Any] = {"model": f"openai/{model}", "api_base": f"{url}/v1", "api_key": key}
    call: Any = litellm.completion

    def with_image() -> object:
        reply = call(messages=QUESTION, modalities=["text", "image"], max_tokens=4, **common)
        assert reply.choices[0].message.images, "no image in the message"
        return len(reply.choices[0].message.images)

    yield "chat", lambda: call(messages=QUESTION, max_tokens=8, **common).usage.total_tokens
    yield (
        "chat, streamed",
        lambda: (
            litellm.stream_chunk_builder(
                list(call(messages=QUESTION, max_tokens=8, stream=True, **common))
            )
            .choices[0]
            .finish_reason
        ),
    )
    yield (
        "embeddings",
        lambda: len(
            litellm.embedding(input=["red"], encoding_format="float", **common).data[0]["embedding"]
        ),
    )
    if generates_images:
        yield "chat with an image", with_image
        yield (
            "images.generate",
            lambda: len(litellm.image_generation(prompt="a red circle", **common).data),
        )


def langchain_checks(url: str, key: str, model: str, generates_images: bool) -> Iterator[Check]:
    """The calls of langchain-openai."""
    langchain: Any = importlib.import_module("langchain_openai")
    message = importlib.import_module("langchain_core.messages").HumanMessage(
        content=QUESTION[0]["content"]
    )
    common: dict[str, Any] = {"model": model, "base_url": f"{url}/v1", "api_key": key}
    chat = langchain.ChatOpenAI(**common, max_tokens=8)
    yield "invoke", lambda: chat.invoke([message]).usage_metadata
    yield "stream", lambda: len(list(chat.stream([message])))
    yield "batch", lambda: len(chat.batch([[message]] * 3))
    yield "completion", lambda: langchain.OpenAI(**common, max_tokens=4).invoke("a red circle")
    embeddings = langchain.OpenAIEmbeddings(**common, check_embedding_ctx_length=False)
    yield "embeddings", lambda: len(embeddings.embed_query("red"))


CLIENTS = {"openai": openai_checks, "litellm": litellm_checks, "langchain-openai": langchain_checks}


def main() -> int:
    """Runs every call; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="where the server listens")
    parser.add_argument("--api-key", default="none", help="a key, if the server asks for one")
    options = parser.parse_args()
    request = urllib.request.Request(
        f"{options.url}/v1/models", headers={"Authorization": f"Bearer {options.api_key}"}
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        entry = json.load(response)["data"][0]
    num_failed = 0
    for name, checks in CLIENTS.items():
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            print(f"{name:16} not installed, not tried")
            continue
        own = entry["emu"]
        for title, call in checks(
            options.url, options.api_key, entry["id"], own["generates_images"]
        ):
            begun = time.monotonic()
            try:
                shown = str(call()).replace("\n", " ")[:60]
                print(
                    f"{name:16} {version:10} {title:20} ok    {time.monotonic() - begun:6.2f} s  {shown}"
                )
            except Exception as error:  # noqa: BLE001 (a failed call; the next one is tried)
                num_failed += 1
                print(
                    f"{name:16} {version:10} {title:20} FAILED {type(error).__name__}: {str(error)[:300]}"
                )
    return 1 if num_failed else 0


if __name__ == "__main__":
    sys.exit(main())
