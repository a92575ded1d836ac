#!/usr/bin/env python3
"""The HTTP API beside what it stands on: bare uvicorn, and the engine called directly. Without Ray.

    python -m benchmarks.serve rates            # V7: requests per second with an engine that only echoes
    python -m benchmarks.serve first_token      # V6: time to the first token, through the app and without it

Prints JSON lines. Each ratio is of two servers that take turns within one run; CPU seconds are those of the server.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import http.client
import json
import multiprocessing
import re
import secrets
import socket
import statistics
import struct
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import uvicorn

from emu.config import tiny_config
from emu.generate.prompts import Reply
from emu.serve.api import build_api
from emu.serve.backend import EngineStats, Event, GenerationRequest, Health, ModelCard, Work
from emu.serve.limits import Limits
from emu.serve.process import MANY, prepare_process
from schemas.sample import Segment

PATH = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "what is in the image?"}], "max_tokens": 32}
TEXT = "a red circle above two blue squares"
WORDS = [f" {word}" for word in (TEXT + " ").split()] * 4  # 28 pieces

SLOW_S = 0.25
"""Between two pieces of a slow reply."""
TO_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
LIMITS = Limits()
TURNS = "turns"
"""Asks the bare application for as many turns of the event loop before a whole reply as the engine takes."""
STREAM_HEADERS = [(b"cache-control", b"no-store"), (b"x-accel-buffering", b"no")]
MESSAGE = {"role": "assistant", "content": "".join(WORDS), "refusal": None}
CHOICE = {"index": 0, "message": MESSAGE, "finish_reason": "stop", "logprobs": None}
USAGE = {"prompt_tokens": 8, "completion_tokens": 28, "total_tokens": 36}


@dataclass(frozen=True)
class EchoBackend:
    """Answers at once with the same text, and slowly where as many new tokens are asked for as `slow_tokens`."""

    slow_tokens: int = 0

    async def events(self, request: Work) -> AsyncGenerator[Event, None]:
        """A piece per word, then the reply."""
        text = request.text if isinstance(request, GenerationRequest) else None
        is_slow = text is not None and text.max_new_tokens == self.slow_tokens
        for word in WORDS:
            yield word
            await asyncio.sleep(SLOW_S if is_slow else 0)
        yield Reply((Segment.of_text("".join(WORDS)),), "stop", 8, len(WORDS))

    async def health(self) -> Health:
        """Ready."""
        return Health(True)

    async def stats(self) -> Sequence[EngineStats]:
        """None."""
        return []


async def bare(scope: Any, receive: Any, send: Any, slow_tokens: int = 0) -> None:
    """The least that sends the same bytes in as many writes: the body parsed, the JSON of each reply or event made.

    It refuses a body above the limit unread, and an image of too many pixels by the header of a PNG; a stream of
    `slow_tokens` tokens is as slow as that of `EchoBackend`.
    """
    if scope["type"] != "http":
        return
    declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
    if int(declared) > LIMITS.max_body_bytes:
        await refuse(send)
        return
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    request = json.loads(body)
    content = request["messages"][0]["content"]
    if not isinstance(content, str):
        encoded = content[0]["image_url"]["url"].removeprefix("data:image/png;base64,")
        width, height = struct.unpack_from(">II", base64.b64decode(encoded[:64]), 16)
        if width * height > LIMITS.max_image_pixels:
            await refuse(send)
            return
    is_stream = request.get("stream")
    pause_s = SLOW_S if request.get("max_tokens") == slow_tokens else 0
    kind = b"text/event-stream" if is_stream else b"application/json"
    headers = [(b"content-type", kind), *(STREAM_HEADERS if is_stream else [])]
    start = {"type": "http.response.start", "status": 200, "headers": headers}
    name = f"chatcmpl-{secrets.token_hex(12)}"
    head = {"id": name, "object": "chat.completion", "created": int(time.time()), "model": "echo"}
    if not is_stream:
        if request.get("user") == TURNS:
            for _ in WORDS:
                await asyncio.sleep(0)
        text = TO_JSON.encode(head | {"choices": [CHOICE], "usage": USAGE}).encode()
        headers.append((b"content-length", str(len(text)).encode()))
        await send(start)
        await send({"type": "http.response.body", "body": text})
        return
    await send(start)
    head["object"] = "chat.completion.chunk"

    def event(delta: dict[str, str], reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        return f"data: {TO_JSON.encode(head | {'choices': [choice]})}\n\n"

    text = event({"role": "assistant", "content": ""})
    for word in WORDS:
        text += event({"content": word})
        await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
        await asyncio.sleep(pause_s)
        text = ""
    text = event({}, "stop") + "data: [DONE]\n\n"
    await send({"type": "http.response.body", "body": text.encode()})


async def refuse(send: Any) -> None:
    """Sends status 413 and closes the connection."""
    headers = [(b"content-length", b"0"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def run_app(app: Any, port: int, num_young: int | None = MANY) -> None:
    """Runs an application in this process, which is set as those of `emu serve` are."""
    prepare_process(num_young)
    uvicorn.run(app, port=port, log_level="error", lifespan="off", access_log=False)


def serve_bare(port: int, slow_tokens: int = 0) -> None:
    """Runs `bare`."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await bare(scope, receive, send, slow_tokens)

    run_app(app, port)


def serve_echo(port: int, slow_tokens: int = 0) -> None:
    """Runs the API over an engine that echoes; slowly for requests of `slow_tokens` tokens."""
    card = ModelCard("echo", tiny_config(300), None, ())
    api = build_api(EchoBackend(slow_tokens), card, LIMITS)
    run_app(api, port)


def serve_model(port: int, model: str) -> None:
    """Runs the API over a model."""
    import emu
    from emu.serve.local import LocalBackend

    engine = emu.load(model)
    card = ModelCard.of(Path(model), engine.config)
    api = build_api(LocalBackend(engine, 4), card, Limits())
    run_app(api, port, None)


class Server:
    """A server in a process of its own."""

    def __init__(self, target: Callable[..., None], *arguments: Any) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port: int = listener.getsockname()[1]
        context = multiprocessing.get_context("spawn")
        self.process = context.Process(target=target, args=(self.port, *arguments), daemon=True)
        self.process.start()
        self.usage = psutil.Process(self.process.pid)
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return
            if not self.process.is_alive():
                raise RuntimeError("the server did not start")
            time.sleep(0.05)

    def cpu_s(self) -> float:
        """CPU seconds so far."""
        times = self.usage.cpu_times()
        return times.user + times.system

    def memory_mb(self) -> float:
        """Resident megabytes."""
        return self.usage.memory_info().rss / 1e6

    def stop(self) -> None:
        """Ends the process."""
        self.process.terminate()
        self.process.join()


def ask(connection: http.client.HTTPConnection, body: dict[str, Any]) -> bytes:
    """A whole response over a connection that stays open."""
    connection.request("POST", PATH, json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    data = response.read()
    assert response.status == 200, data
    return data


def check_same(servers: Sequence[Server]) -> None:
    """Raises AssertionError unless all servers send the same bytes, ids and times aside."""
    for body in (BODY, BODY | {"stream": True}):
        texts: set[bytes] = set()
        for server in servers:
            connection = http.client.HTTPConnection("127.0.0.1", server.port)
            text = re.sub(rb'"id":"chatcmpl-[0-9a-f]{24}"', b"", ask(connection, body))
            texts.add(re.sub(rb'"created":[0-9]+', b"", text))
            connection.close()
        assert len(texts) == 1, texts


def run_clients(server: Server, num_clients: int, number: int, body: dict[str, Any]) -> float:
    """Seconds of `number` requests by each of several clients."""

    def client(_: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        for _ in range(number):
            ask(connection, body)
        connection.close()

    begun = time.perf_counter()
    with ThreadPoolExecutor(num_clients) as threads:
        list(threads.map(client, range(num_clients)))
    return time.perf_counter() - begun


def rates(rounds: int) -> Iterator[dict[str, Any]]:
    """V7: the app with an engine that echoes, against bare uvicorn."""
    servers = [Server(serve_bare), Server(serve_echo)]
    try:
        check_same(servers)
        for name, clients, number, body in (
            ("1 client, whole replies", 1, 200, BODY),
            ("1 client, whole replies, the same turns", 1, 200, BODY | {"user": TURNS}),
            ("8 clients, server-sent events", 8, 15, BODY | {"stream": True}),
        ):
            seconds: list[list[float]] = [[], []]
            cpu = [0.0, 0.0]
            for round_number in range(rounds + 1):
                for index, server in enumerate(servers):
                    before = server.cpu_s()
                    taken = run_clients(server, clients, number, body)
                    if round_number:  # the first one warms up
                        seconds[index].append(taken)
                        cpu[index] += server.cpu_s() - before
            total = clients * number
            ratios = [bare / ours for bare, ours in zip(*seconds, strict=True)]
            yield {
                "subject": name,
                "rate_to_bare": round(statistics.median(ratios), 3),
                "rates_to_bare_of_rounds": [round(ratio, 3) for ratio in ratios],
                "cpu_of_bare_to_ours": round(cpu[0] / cpu[1], 3),
                "ours_per_s": round(total / min(seconds[1]), 1),
                "ours_cpu_ms": round(1000 * cpu[1] / total / rounds, 3),
            }
    finally:
        for server in servers:
            server.stop()


def first_token(rounds: int, model: str) -> Iterator[dict[str, Any]]:
    """V6: one client, seconds to the first text through the app and from the engine called directly."""
    import emu
    from emu.generate.prompts import TextOptions

    server = Server(serve_model, model)
    engine = emu.load(model)
    prompt = "what colour is the triangle in the picture? " * 6
    body = BODY | {"messages": [{"role": "user", "content": prompt}], "stream": True}
    direct: list[float] = []
    served: list[float] = []
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    try:
        for number in range(rounds + 2):
            unlike = f"{number} {prompt}"  # no prefix that is known
            begun = time.perf_counter()
            stream = engine.stream(unlike, TextOptions(max_new_tokens=32), max_images=0)
            next(piece for piece in stream if piece)
            one = time.perf_counter() - begun
            stream.close()  # pyright: ignore[reportAttributeAccessIssue]  # a generator
            body["messages"] = [{"role": "user", "content": unlike}]
            begun = time.perf_counter()
            connection.request("POST", PATH, json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            while True:
                line = response.readline()
                if b'"content":"' in line and b'"content":""' not in line:
                    break
            other = time.perf_counter() - begun
            response.read()
            if number >= 2:
                direct.append(one)
                served.append(other)
    finally:
        server.stop()
    yield {
        "subject": "time to first token, one client",
        "served_to_direct": round(statistics.median(served) / statistics.median(direct), 3),
        "direct_ms": round(1000 * statistics.median(direct), 2),
        "served_ms": round(1000 * statistics.median(served), 2),
    }


def main() -> None:
    """Run one subject."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("subject", choices=("rates", "first_token"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default="runs/tiny/model", help="for first_token")
    options = parser.parse_args()
    subjects = {
        "rates": lambda: rates(options.rounds),
        "first_token": lambda: first_token(options.rounds, options.model),
    }
    for result in subjects[options.subject]():
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
