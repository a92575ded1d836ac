"""Work and decoders for the tests of the process: they hang, crash and leak as decoders do."""

import ctypes
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from pipelines.core.pipeline import Rejected
from pipelines.videos.decode import Clip, pyav_frames

LEAKED: list[bytearray] = []
MARK_HANG, MARK_CRASH = b"free-hang", b"free-crash"
"""Bytes behind a clip, which FFmpeg takes for a box without a meaning, that tell what its decoder does."""


def faulty_work(config: dict[str, Any]) -> Callable[[bytes], tuple[dict[str, Any], list[bytes]]]:
    """Work that does what its body says."""
    if config.get("fails_to_start"):
        raise LookupError("no such model")

    def work(body: bytes) -> tuple[dict[str, Any], list[bytes]]:
        _do(body)
        return {"pid": os.getpid(), "suffix": config["suffix"]}, [body, b"", body[::-1]]

    return work


def _do(body: bytes) -> None:
    if body == b"sleep":
        time.sleep(600)
    if body == b"sleep with the GIL":
        ctypes.PyDLL(None).sleep(600)
    if body == b"spin":
        while True:
            pass
    if body == b"segfault":
        ctypes.string_at(0)
    if body == b"exit":
        os._exit(3)
    if body == b"print":
        print("this is no response", flush=True)
    if body == b"allocate":
        bytearray(4 << 30)
    if body == b"leak":
        LEAKED.append(bytearray(os.urandom(1 << 20) * 60))
    if body == b"reject":
        raise Rejected("not_a_video", "so it is")
    if body == b"bug":
        raise KeyError("bug")


def faulty_frames(clip: Clip, indices: Sequence[int]) -> Iterator[np.ndarray]:
    """A decoder that hangs or crashes at the clips that are marked so."""
    if clip.body.endswith(MARK_HANG):
        time.sleep(600)
    if clip.body.endswith(MARK_CRASH):
        ctypes.string_at(0)
    yield from pyav_frames(clip, indices)
