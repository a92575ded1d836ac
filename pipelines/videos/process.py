"""A child process for work that may hang, crash or leak: one body after another, each bounded in time and memory.

    with BoundedProcess("pipelines.transforms.frames:frame_work", config, DecodeLimits()) as process:
        header, blobs = process.run(body)

The function at `module:function` is called in the child with the configuration and gives the work: from a body to a
JSON object and a list of bytes. The child is started when it is first needed and replaced after `clips_per_process`
bodies, when it has kept too much memory, and when it was killed: the body after one that hung finds a new child.

| what happens                                    | what bounds it                                               |
|-------------------------------------------------|--------------------------------------------------------------|
| the work takes longer than `max_seconds`        | the parent kills the child: `video_timeout`                  |
| it asks for more memory than `max_memory_bytes` | RLIMIT_AS: `video_out_of_memory`, or the decoder dies of it  |
| the decoder crashes                             | the pipe ends: `video_decoder_died`                          |
| it keeps memory                                 | a child that has grown by half of the limit is replaced      |
| the parent dies, even of SIGKILL                | the pipe ends, which SIGIO tells; an alarm of the kernel     |

Neither SIGIO nor the alarm needs Python or the GIL in the child. Both end a process by default.

A message is a line of JSON, which holds the sizes of the blobs behind it; nothing is unpickled.
"""

import fcntl
import importlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, BinaryIO, Self

from pydantic import Field

from pipelines.core.pipeline import Reason, Rejected
from schemas.validation import Checked

PROCESS_REASONS: Mapping[str, Reason] = MappingProxyType(
    {
        "video_timeout": Reason("Decoding took longer than `max_seconds`.", retryable=True),
        "video_out_of_memory": Reason(
            "Decoding requires more memory than `max_memory_bytes`.", retryable=True
        ),
        "video_decoder_died": Reason("The decoder process crashed.", retryable=True),
    }
)
"""Why the work on a body was ended from outside."""

Work = Callable[[bytes], tuple[Mapping[str, Any], Sequence[bytes]]]
"""From a body to a JSON object and blobs; raises `Rejected` or `MemoryError` for a body that gives none."""

_START = "from pipelines.videos.process import serve; serve()"
_START_S = 120.0
_ALARM_AFTER_S = 5.0
_PIPE_BYTES = 1 << 20


@dataclass(frozen=True)
class DecodeLimits(Checked):
    """Limits on decoding one clip."""

    max_seconds: Annotated[float, Field(ge=0.01, le=86400, description="seconds per clip")] = 60.0
    """Seconds per clip after which its decoder is killed."""
    max_memory_bytes: Annotated[
        int, Field(ge=1 << 26, le=1 << 40, description="bytes; 64 MiB at least")
    ] = 1 << 30
    """Maximum bytes of memory of a decoder, not counting its code; at least 67108864 (64 MiB)."""
    clips_per_process: Annotated[int, Field(ge=1, le=1_000_000)] = 500
    """Replace the decoder process after this number of clips, because decoders leak memory."""


class BoundedProcess:
    """Runs work on bodies in a child; to be closed, or used as a context manager. Calls wait for each other.

    Args:
        work: `module:function`, called in the child with `config`; returns a `Work`.
        config: JSON values.
        limits: of the work on one body.
    """

    def __init__(self, work: str, config: Mapping[str, Any], limits: DecodeLimits) -> None:
        self._start = {"work": work, "config": config, "memory": limits.max_memory_bytes}
        self._limits = limits
        self._children: list[_Child] = []
        self._one_call = threading.Lock()
        # Also closes one that its owner forgot, at the latest when this process ends.
        self._finalizer = weakref.finalize(self, _close, self._children)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """Of the child, while there is one."""
        return self._children[0].process.pid if self._children else None

    def run(self, body: bytes) -> tuple[dict[str, Any], list[bytes]]:
        """What the work gives for a body.

        Raises:
            Rejected: with a reason of the work or of `PROCESS_REASONS`.
            RuntimeError: the work raised something else, or could not be started; with its traceback.
        """
        with self._one_call:
            if not self._children:
                self._children.append(_Child(self._start))
            child = self._children[0]
            try:
                header, blobs = child.ask(body, self._limits.max_seconds)
            except BaseException:
                self.close()
                raise
            has_grown = header.pop("grown") > self._limits.max_memory_bytes // 2
            if has_grown or child.num_asked >= self._limits.clips_per_process:
                self.close()
        if "error" in header:
            raise RuntimeError(f"the work on a clip failed in its process:\n{header['error']}")
        if "reason" in header:
            raise Rejected(header["reason"], header["detail"])
        return header["value"], blobs

    def close(self) -> None:
        """End the child."""
        _close(self._children)


def _close(children: "list[_Child]") -> None:
    while children:
        children.pop().kill()


class _Child:
    """The parent's end of a child."""

    def __init__(self, start: Mapping[str, Any]) -> None:
        paths = [str(Path(path or ".").absolute()) for path in sys.path]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(paths),
            "OMP_NUM_THREADS": "1",
            "DECORD_EOF_RETRY_MAX": "128",  # its default of 10,240 takes minutes for a damaged clip
        }
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", _START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # the libraries write a line for each damaged packet
            bufsize=0,
            env=environment,
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self._requests, self._responses = self.process.stdin, self.process.stdout
        for pipe in (self._requests, self._responses):
            _widen(pipe)
        self.num_asked = 0
        try:
            answer, _ = self._exchange(start, b"", _START_S)
        except Rejected as rejected:
            raise RuntimeError(f"a process for decoding did not start: {rejected}") from None
        if "error" in answer:
            self.kill()
            raise RuntimeError(f"a process for decoding did not start:\n{answer['error']}")

    def ask(self, body: bytes, max_seconds: float) -> tuple[dict[str, Any], list[bytes]]:
        """The response to a body; raises `Rejected` if none comes, and the child is then dead."""
        self.num_asked += 1
        return self._exchange({"sizes": [len(body)], "seconds": max_seconds}, body, max_seconds)

    def kill(self) -> None:
        """End the process, whatever it does."""
        self.process.kill()
        self.process.wait()
        for pipe in (self._requests, self._responses):
            pipe.close()

    def _exchange(
        self, header: Mapping[str, Any], body: bytes, max_seconds: float
    ) -> tuple[dict[str, Any], list[bytes]]:
        deadline = time.monotonic() + max_seconds
        try:
            self._write(json.dumps(header).encode() + b"\n")
            self._write(body)
            received = bytearray()
            while (end := received.find(b"\n")) < 0:
                received += self._read(deadline, max_seconds)
            response = json.loads(received[:end])
            sizes = response.pop("sizes", [])
            del received[: end + 1]
            while len(received) < sum(sizes):
                received += self._read(deadline, max_seconds)
        except (BrokenPipeError, ConnectionResetError, EOFError):
            raise Rejected("video_decoder_died", self._ending()) from None
        return response, _cut(bytes(received), sizes)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self._requests.write(view) or 0 :]

    def _read(self, deadline: float, max_seconds: float) -> bytes:
        ready, _, _ = select.select([self._responses], [], [], max(deadline - time.monotonic(), 0))
        if not ready:
            self.kill()
            raise Rejected("video_timeout", f"limit {max_seconds:g} s")
        data = os.read(self._responses.fileno(), _PIPE_BYTES)
        if not data:
            raise EOFError
        return data

    def _ending(self) -> str:
        code = self.process.wait()
        try:
            return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        except ValueError:
            return f"signal {-code}"


def _widen(pipe: Any) -> None:
    """A pipe that holds more: fewer switches between the processes."""
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        try:
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        except PermissionError:
            return  # the user has too many pipes; a small one serves as well


def _cut(data: bytes, sizes: Sequence[int]) -> list[bytes]:
    blobs, position = [], 0
    for size in sizes:
        blobs.append(data[position : position + size])
        position += size
    return blobs


def serve() -> None:
    """The child: answers requests on its standard input until that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal, it goes to the parent too
    requests, responses = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no response
    start = json.loads(requests.readline())
    try:
        module, _, name = start["work"].partition(":")
        work: Work = getattr(importlib.import_module(module), name)(start["config"])
    except Exception:  # noqa: BLE001 - told to the parent, which raises it
        _respond(responses, {"error": _traceback()})
        return
    baseline = _memory("VmRSS")
    _limit_memory(start["memory"])
    _respond(responses, {})
    while line := requests.readline():
        request = json.loads(line)
        body = requests.read(request["sizes"][0])
        with _Bounds(request["seconds"], requests):
            header, blobs = _done(work, body)
        header["grown"] = max(_memory("VmRSS") - baseline, 0)
        _respond(responses, header, blobs)


def _done(work: Work, body: bytes) -> tuple[dict[str, Any], Sequence[bytes]]:
    try:
        value, blobs = work(body)
    except Rejected as rejected:
        return {"reason": rejected.reason, "detail": rejected.detail}, ()
    except MemoryError:
        return {"reason": "video_out_of_memory", "detail": None}, ()
    except Exception:  # noqa: BLE001 - told to the parent, which raises it
        return {"error": _traceback()}, ()
    return {"value": value}, blobs


def _respond(responses: BinaryIO, header: Mapping[str, Any], blobs: Sequence[bytes] = ()) -> None:
    responses.write(json.dumps({**header, "sizes": [len(b) for b in blobs]}).encode() + b"\n")
    for blob in blobs:
        responses.write(blob)
    responses.flush()


def _traceback() -> str:
    import traceback

    return traceback.format_exc()


class _Bounds:
    """While it holds, the process ends when its parent does, and at the latest some time after `seconds`."""

    def __init__(self, seconds: float, requests: BinaryIO) -> None:
        self._seconds, self._requests = seconds, requests.fileno()

    def __enter__(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, self._seconds + _ALARM_AFTER_S)
        fcntl.fcntl(self._requests, fcntl.F_SETOWN, os.getpid())
        self._set_async(True)
        if select.select([self._requests], [], [], 0)[0]:  # it ended before SIGIO was asked for
            os._exit(1)

    def __exit__(self, *_: object) -> None:
        self._set_async(False)
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _set_async(self, is_on: bool) -> None:
        flags = fcntl.fcntl(self._requests, fcntl.F_GETFL)
        flags = flags | os.O_ASYNC if is_on else flags & ~os.O_ASYNC
        fcntl.fcntl(self._requests, fcntl.F_SETFL, flags)


def _memory(name: str) -> int:
    """Bytes, by the name of the kernel; 0 where it does not tell."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    line = next(line for line in status.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def _limit_memory(max_bytes: int) -> None:
    size = _memory("VmSize")
    if size:
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = size + max_bytes
        resource.setrlimit(
            resource.RLIMIT_AS,
            (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard),
        )
