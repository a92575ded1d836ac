#!/usr/bin/env python3
"""What a hostile network does to the HTTP API, beside one client that asks all the time (V10). Without Ray.

    python -m benchmarks.serve_abuse                      # all subjects
    python -m benchmarks.serve_abuse --number 1000        # fewer aborted streams
    sudo python -m benchmarks.serve_abuse --isolate       # nothing else on this machine interferes

The server, the attackers and the client are processes of their own; the attackers are paced and have a low
priority, as if they were on other machines. Prints a JSON line per attack: memory of the server, how many requests of
the client were refused, and its waiting times against those of the calm seconds right before. A bare application is
attacked in the same way: its waiting times are what the machine and uvicorn leave possible.

With `--isolate` the server has the first core, attackers and client the others, and all go before other processes, the
client first and the attackers last: a waiting time is then the server's, not that of a client that waits for a core.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import http.client
import json
import multiprocessing
import os
import statistics
import struct
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from typing import Any

from benchmarks.serve import BODY, PATH, Server, ask, run_clients, serve_bare, serve_echo

NUM_OPEN = 500
"""Connections at the same time."""
CALM_S = 6.0
HELD_S = 2.0
"""Seconds that a stream is read before it is aborted."""
SLOW_TOKENS = 1000
"""`max_tokens` of a request whose reply takes seconds."""
SIDE = 30_000
NICENESS = 5
PAUSE_S = 0.02
"""Between two requests of the client."""


def head(length: int) -> bytes:
    """The head of a request whose body has so many bytes."""
    start = f"POST {PATH} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    return f"{start}Content-Length: {length}\r\n\r\n".encode()


def large_png() -> bytes:
    """A valid PNG of 900 megapixels, grey, in less than a megabyte."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    packer = zlib.compressobj(9)
    row = bytes(SIDE + 1)
    rows = b"".join([packer.compress(row) for _ in range(SIDE)]) + packer.flush()
    size = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@dataclass(frozen=True)
class Attack:
    """What attackers do `number` times, so many at once and so many per second."""

    name: str
    number: int
    act: Callable[[int, bytes], Awaitable[None]]
    """Takes the port, and the body of the request with the large PNG."""
    num_open: int = NUM_OPEN
    per_s: float = 250.0


async def abort_stream(port: int, _: bytes) -> None:
    """Reads a stream for a while and leaves."""
    text = json.dumps(BODY | {"stream": True, "max_tokens": SLOW_TOKENS}).encode()
    async with connection(port) as (reader, writer):
        writer.write(head(len(text)) + text)
        assert (await reader.readline()).startswith(b"HTTP/1.1 200"), "a stream was refused"
        await asyncio.sleep(HELD_S)


async def send_large_body(port: int, _: bytes) -> None:
    """Announces a body of 1 GB and begins to send it; it is refused before it is read."""
    async with connection(port) as (reader, writer):
        writer.write(head(10**9) + b"{" * 1000)
        assert (await reader.readline()).startswith(b"HTTP/1.1 413"), "a large body was read"


async def send_image(port: int, text: bytes) -> None:
    """Sends an image of too many pixels; its header alone is read."""
    async with connection(port) as (reader, writer):
        writer.write(head(len(text)) + text)
        assert (await reader.readline()).startswith(b"HTTP/1.1 413"), "an image was accepted"


async def stay_silent(port: int, _: bytes) -> None:
    """Opens a connection and sends nothing."""
    async with connection(port):
        await asyncio.sleep(CALM_S)


async def drip(port: int, _: bytes) -> None:
    """Sends a body one byte per second."""
    async with connection(port) as (_reader, writer):
        writer.write(head(1000) + b"{")
        for _second in range(int(CALM_S)):
            await asyncio.sleep(1)
            writer.write(b" ")


@contextlib.asynccontextmanager
async def connection(
    port: int,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection that is closed without a word."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


def attacks(number: int) -> list[Attack]:
    """All attacks; `number` streams are aborted."""
    return [
        Attack("aborted streams", number, abort_stream),
        Attack("bodies of 1 GB", 1000, send_large_body, 50, 100.0),
        Attack("PNG of 30,000 x 30,000", 200, send_image, 8, 20.0),
        Attack("half-open connections", NUM_OPEN, stay_silent),
        Attack("bodies that drip", NUM_OPEN, drip),
    ]


def image_body() -> bytes:
    """The body of a request with the large PNG."""
    url = f"data:image/png;base64,{base64.b64encode(large_png()).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}]
    return json.dumps({"messages": [{"role": "user", "content": content}]}).encode()


async def attack(port: int, what: Attack, image: bytes) -> None:
    """Does it so many times; raises the first error of an attacker."""
    places = asyncio.Semaphore(what.num_open)
    begun = asyncio.get_running_loop().time()

    async def one() -> None:
        async with places:
            await what.act(port, image)

    async with asyncio.TaskGroup() as group:
        for index in range(what.number):
            wait_s = begun + index / what.per_s - asyncio.get_running_loop().time()
            await asyncio.sleep(max(wait_s, 0))
            group.create_task(one())


def run_attack(port: int, what: Attack, image: bytes, begin: Event) -> None:
    """An attack in a process of its own, with a low priority."""
    os.nice(NICENESS)
    begin.wait()
    asyncio.run(attack(port, what, image))


def ask_all_the_time(port: int, ended: Event, results: Any) -> None:
    """The client: sends when each request began, its seconds and whether it was answered."""
    client = http.client.HTTPConnection("127.0.0.1", port)
    found: list[tuple[float, float, bool]] = []
    while not ended.is_set():
        begun, is_answered = time.time(), True
        try:
            ask(client, BODY)
        except (AssertionError, http.client.HTTPException, OSError):
            is_answered = False
            client.close()
        found.append((begun, time.time() - begun, is_answered))
        time.sleep(PAUSE_S)
    results.send(found)


@dataclass(frozen=True)
class Found:
    """What one attack did to one server."""

    exitcode: int | None
    seconds: float
    cpu_s: float
    memory: Sequence[float]
    """Megabytes, before the attack and every half second."""
    calm: Sequence[tuple[float, float, bool]]
    beside: Sequence[tuple[float, float, bool]]
    """Requests of the client before and during the attack: as `ask_all_the_time` sends them."""


def isolate(pid: int | None, cores: Iterable[int], priority: int) -> None:
    """Gives a process these cores, before others of a lower priority; threads that it starts later inherit both."""
    assert pid is not None
    os.sched_setaffinity(pid, cores)
    os.sched_setscheduler(pid, os.SCHED_RR, os.sched_param(priority))


def attacked(server: Server, what: Attack, image: bytes, is_isolated: bool) -> Found:
    """The attack, with a client beside it."""
    context = multiprocessing.get_context("spawn")
    ended, begin = context.Event(), context.Event()
    here, there = context.Pipe()
    client = context.Process(target=ask_all_the_time, args=(server.port, ended, there))
    attacker = context.Process(target=run_attack, args=(server.port, what, image, begin))
    attacker.start()
    client.start()
    if is_isolated:
        cores = set(range(1, os.cpu_count() or 1))
        isolate(client.pid, cores, 3)
        isolate(server.process.pid, {0}, 2)
        isolate(attacker.pid, cores, 1)
    time.sleep(3 + CALM_S)  # both have started by then
    memory, begun, cpu_s = [server.memory_mb()], time.time(), server.cpu_s()
    begin.set()
    while attacker.is_alive():
        attacker.join(0.5)
        memory.append(server.memory_mb())
    over = time.time()
    cpu_s = server.cpu_s() - cpu_s
    ended.set()
    found = here.recv()
    client.join()
    calm = [each for each in found if begun - CALM_S < each[0] < begun]
    beside = [each for each in found if begun < each[0] < over]
    return Found(attacker.exitcode, over - begun, cpu_s, memory, calm, beside)


def abuse(number: int, names: Sequence[str], is_isolated: bool) -> Iterator[dict[str, Any]]:
    """A line per attack: what it does to the API, and in the same minute to a bare application."""
    servers = [Server(serve_echo, SLOW_TOKENS), Server(serve_bare, SLOW_TOKENS)]
    image = image_body()
    try:
        for server in servers:
            run_clients(server, 1, 500, BODY)
        for what in attacks(number):
            if names and what.name not in names:
                continue
            ours, bare = [attacked(server, what, image, is_isolated) for server in servers]
            memory = ours.memory
            yield {
                "subject": what.name,
                "number": what.number,
                "at_once": min(what.num_open, what.number),
                "attackers_failed": bool(ours.exitcode or bare.exitcode),
                "seconds": round(ours.seconds, 1),
                "memory_mb": round(memory[0], 1),
                "memory_grown_mb": round(servers[0].memory_mb() - memory[0], 1),
                "memory_grown_in_second_half_mb": round(memory[-1] - memory[len(memory) // 2], 1),
                "requests_left": requests_left(servers[0]) - 1,
                "others": len(ours.beside),
                "others_refused": sum(not is_answered for *_, is_answered in ours.beside),
                "load": round(os.getloadavg()[0], 1),
                "cpu_share": round(ours.cpu_s / ours.seconds, 2),
                "bare_cpu_share": round(bare.cpu_s / bare.seconds, 2),
                **_ratios(ours),
                **{f"bare_{name}": value for name, value in _ratios(bare).items()},
            }
    finally:
        for server in servers:
            server.stop()


def requests_left(server: Server) -> int:
    """Requests that the server handles, this one included."""
    client = http.client.HTTPConnection("127.0.0.1", server.port)
    client.request("GET", "/metrics")
    text = client.getresponse().read().decode()
    client.close()
    line = next(x for x in text.splitlines() if x.startswith("emu_requests_in_progress"))
    return int(float(line.split()[-1]))


def _ratios(found: Found) -> dict[str, float]:
    calm, beside = ([s for _, s, _ in each] for each in (found.calm, found.beside))

    def p99(values: Sequence[float]) -> float:
        return statistics.quantiles(values, n=100)[-1]

    return {
        "calm_p99_ms": round(1000 * p99(calm), 2),
        "others_p99_ms": round(1000 * p99(beside), 2),
        "others_p99_to_calm": round(p99(beside) / p99(calm), 2),
        "others_median_to_calm": round(statistics.median(beside) / statistics.median(calm), 2),
    }


def main() -> None:
    """Runs the attacks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("subjects", nargs="*", help="names of attacks; all by default")
    parser.add_argument("--number", type=int, default=10_000, help="aborted streams")
    parser.add_argument("--isolate", action="store_true", help="cores and priorities; needs root")
    options = parser.parse_args()
    for result in abuse(options.number, options.subjects, options.isolate):
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
