#!/usr/bin/env python3
"""The HTTP API beside what it stands on: bare uvicorn, and the engine called directly. Without Ray.

    python -m benchmarks.serve rates            # V7: requests per second with an engine that only echoes
    python -m benchmarks.serve first_token      # V6: time to the first token, through the app and without it
    python -m benchmarks.serve abuse            # V10: aborted requests, large bodies, drips; memory and neighbours

Prints JSON lines. Each ratio is of two servers that take turns within one run; CPU seconds are those of the server.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import multiprocessing
import socket
import statistics
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import uvicorn

from emu.config import tiny_config
from emu.generate.prompts import Reply
from emu.serve.api import build_api
from emu.serve.backend import EngineStats, Event, Health, ModelCard, Work
from emu.serve.limits import Limits
from schemas.sample import Segment

PATH = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "what is in the image?"}], "max_tokens": 32}
TEXT = "a red circle above two blue squares"
WORDS = [f" {word}" for word in (TEXT + " ").split()] * 4  # 28 pieces


class EchoBackend:
    """Answers at once with the same text."""

    async def events(self, request: Work) -> AsyncGenerator[Event, None]:
        """A piece per word, then the reply."""
        for word in WORDS:
            yield word
            await asyncio.sleep(0)
        yield Reply((Segment.of_text("".join(WORDS)),), "stop", 8, len(WORDS))

    async def health(self) -> Health:
        """Ready."""
        return Health(True)

    async def stats(self) -> Sequence[EngineStats]:
        """None."""
        return []


async def bare(scope: Any, receive: Any, send: Any) -> None:
    """The least that sends the same bytes: the body read and parsed, a reply as JSON or in the same events."""
    if scope["type"] != "http":
        return
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    request = json.loads(body)
    choice = {"index": 0, "finish_reason": "stop", "logprobs": None}
    head = {"id": "x" * 33, "object": "chat.completion", "created": 1, "model": "echo"}
    is_stream = request.get("stream")
    kind = b"text/event-stream" if is_stream else b"application/json"
    start = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]}
    if not is_stream:
        message = {"role": "assistant", "content": "".join(WORDS), "refusal": None}
        text = json.dumps(head | {"choices": [choice | {"message": message}]}).encode()
        start["headers"].append((b"content-length", str(len(text)).encode()))
        await send(start)
        await send({"type": "http.response.body", "body": text})
        return
    await send(start)
    for word in WORDS:
        chunk = head | {"choices": [choice | {"delta": {"content": word}}]}
        event = f"data: {json.dumps(chunk)}\n\n".encode()
        await send({"type": "http.response.body", "body": event, "more_body": True})
        await asyncio.sleep(0)
    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


def serve_bare(port: int) -> None:
    """Runs `bare`."""
    uvicorn.run(bare, port=port, log_level="error", lifespan="off", access_log=False)


def serve_echo(port: int) -> None:
    """Runs the API over an engine that echoes."""
    card = ModelCard("echo", tiny_config(300), None, ())
    api = build_api(EchoBackend(), card, Limits())
    uvicorn.run(api, port=port, log_level="error", lifespan="off", access_log=False)


def serve_model(port: int, model: str) -> None:
    """Runs the API over a model."""
    import emu
    from emu.serve.local import LocalBackend

    engine = emu.load(model)
    card = ModelCard.of(Path(model), engine.config)
    api = build_api(LocalBackend(engine, 4), card, Limits())
    uvicorn.run(api, port=port, log_level="error", lifespan="off", access_log=False)


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
        for name, clients, number, body in (
            ("1 client, whole replies", 1, 200, BODY),
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
            yield {
                "subject": name,
                "rate_to_bare": round(min(seconds[0]) / min(seconds[1]), 3),
                "rates_to_bare_of_rounds": [
                    round(b / e, 3) for b, e in zip(seconds[0], seconds[1], strict=True)
                ],
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


def head(length: int) -> bytes:
    """The head of a request whose body has so many bytes."""
    start = f"POST {PATH} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    return f"{start}Content-Length: {length}\r\n\r\n".encode()


def abort(port: int) -> None:
    """Asks for a stream and leaves at its first byte."""
    text = json.dumps(BODY | {"stream": True}).encode()
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(head(len(text)) + text)
        client.recv(1)


def large(port: int) -> None:
    """Announces a body of 1 GB."""
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(head(10**9))
        assert client.recv(12).endswith(b"413")


@contextlib.contextmanager
def open_connections(port: int, data: bytes) -> Iterator[None]:
    """500 connections that send no more than this."""
    held = [socket.create_connection(("127.0.0.1", port)) for _ in range(500)]
    for client in held:
        client.sendall(data)
    yield
    for client in held:
        client.close()


def abuse(number: int) -> Iterator[dict[str, Any]]:
    """V10: what a hostile network does, beside one client that asks all the time."""
    server = Server(serve_echo)
    waits: list[float] = []
    refused: list[int] = []
    ended = threading.Event()

    def ask_all_the_time() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        while not ended.is_set():
            begun = time.perf_counter()
            try:
                ask(connection, BODY)
            except AssertionError:
                refused.append(1)
            waits.append(time.perf_counter() - begun)
            time.sleep(0.01)

    thread = threading.Thread(target=ask_all_the_time)
    try:
        run_clients(server, 1, 200, BODY)
        thread.start()
        time.sleep(3)
        calm = sorted(waits)
        for name, count, act in (
            ("aborted streams", number, abort),
            ("bodies of 1 GB", 500, large),
        ):
            waits.clear()
            before = server.memory_mb()
            with ThreadPoolExecutor(32) as threads:
                list(threads.map(act, [server.port] * count))
            yield _effect(name, count, calm, sorted(waits), server.memory_mb() - before, refused)
        for name, data in (
            ("half-open connections", b""),
            ("bodies that drip", head(100) + b"{"),
        ):
            waits.clear()
            before = server.memory_mb()
            with open_connections(server.port, data):
                time.sleep(3)
                grown = server.memory_mb() - before
            yield _effect(name, 500, calm, sorted(waits), grown, refused)
    finally:
        ended.set()
        thread.join()
        server.stop()


def _effect(
    name: str,
    number: int,
    calm: Sequence[float],
    waits: Sequence[float],
    grown_mb: float,
    refused: Sequence[int],
) -> dict[str, Any]:
    def p99(values: Sequence[float]) -> float:
        return values[int(0.99 * (len(values) - 1))]

    return {
        "subject": name,
        "number": number,
        "memory_grown_mb": round(grown_mb, 1),
        "others_refused": len(refused),
        "others_p99_to_calm": round(p99(waits) / p99(calm), 2) if waits else None,
        "others_median_to_calm": round(statistics.median(waits) / statistics.median(calm), 2)
        if waits
        else None,
    }


def main() -> None:
    """Run one subject."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("subject", choices=("rates", "first_token", "abuse"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default="runs/tiny/model", help="for first_token")
    parser.add_argument("--number", type=int, default=10_000, help="aborted requests of abuse")
    options = parser.parse_args()
    subjects = {
        "rates": lambda: rates(options.rounds),
        "first_token": lambda: first_token(options.rounds, options.model),
        "abuse": lambda: abuse(options.number),
    }
    for result in subjects[options.subject]():
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
