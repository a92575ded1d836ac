"""The body of a response: read within the limits on bytes, unpacked, and paid for from a shared budget."""

import asyncio
import zlib
from collections import deque
from collections.abc import Iterable

from aiohttp import ClientResponse

from pipelines.core.pipeline import Rejected

_WINDOW = {"gzip": 31, "x-gzip": 31, "deflate": 15}  # zlib's wbits: 31 gzip, 15 zlib, -15 raw


class ByteBudget:
    """Bytes that may be in memory at once, handed out in the order of asking."""

    def __init__(self, num_bytes: int) -> None:
        self._free = num_bytes
        self._queue: deque[tuple[int, asyncio.Future[None]]] = deque()

    def take_now(self, num_bytes: int) -> bool:
        """True, and `num_bytes` less, if they are free and nobody waits."""
        if self._queue or num_bytes > self._free:
            return False
        self._free -= num_bytes
        return True

    async def take(self, num_bytes: int) -> None:
        """Waits until `num_bytes` are free, and takes them."""
        if self.take_now(num_bytes):
            return
        turn = asyncio.get_running_loop().create_future()
        entry = (num_bytes, turn)
        self._queue.append(entry)
        try:
            await turn
        except asyncio.CancelledError:
            if entry in self._queue:
                self._queue.remove(entry)
                self.give(0)
            elif not turn.cancelled():
                self.give(num_bytes)
            raise

    def give(self, num_bytes: int) -> None:
        """Gives `num_bytes` back."""
        self._free += num_bytes
        while self._queue and self._queue[0][0] <= self._free:
            num_bytes, turn = self._queue.popleft()
            if not turn.done():
                self._free -= num_bytes
                turn.set_result(None)


class Lease:
    """What one link holds of a budget."""

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self._held = 0

    def grow_now(self, num_bytes: int) -> bool:
        """True if the lease now holds `num_bytes`, without waiting. It never holds two bodies."""
        self.release()
        taken = self._budget.take_now(num_bytes)
        self._held = num_bytes if taken else 0
        return taken

    async def grow(self, num_bytes: int) -> None:
        """Waits until the lease holds `num_bytes`."""
        self.release()
        await self._budget.take(num_bytes)
        self._held = num_bytes

    def shrink(self, num_bytes: int) -> None:
        """Gives back all but `num_bytes`."""
        if num_bytes < self._held:
            self._budget.give(self._held - num_bytes)
            self._held = num_bytes

    def release(self) -> None:
        """Gives everything back."""
        self.shrink(0)


def body_bound(response: ClientResponse, max_bytes: int) -> int:
    """The most bytes that the unpacked body can have.

    Raises:
        Rejected: body_too_large or body_empty by the declared length; encoding_unsupported.
    """
    packing = _packing(response)
    declared = response.content_length
    if declared is not None and declared > max_bytes:
        raise Rejected("body_too_large", f"Content-Length {declared}, limit {max_bytes}")
    if declared == 0:
        raise Rejected("body_empty")
    return max_bytes if declared is None or packing else declared


async def read_body(response: ClientResponse, max_bytes: int) -> bytes:
    """The unpacked body.

    Raises:
        Rejected: body_too_large, body_empty, encoding_unsupported or encoding_corrupt.
        aiohttp.ClientError: the connection broke.
    """
    packing = _packing(response)
    chunks: list[bytes] = []
    num_bytes = 0
    async for chunk in response.content.iter_any():
        num_bytes += len(chunk)
        if num_bytes > max_bytes:
            raise Rejected("body_too_large", f"more than {max_bytes} bytes")
        chunks.append(chunk)
    body = _unpack(chunks, packing, max_bytes) if packing else b"".join(chunks)
    if not body:
        raise Rejected("body_empty")
    return body


def _packing(response: ClientResponse) -> str | None:
    values = ",".join(response.headers.getall("Content-Encoding", []))
    names = [name.strip().lower() for name in values.split(",")]
    named = [name for name in names if name not in ("", "identity")]
    if not named:
        return None
    if len(named) > 1 or named[0] not in _WINDOW:
        raise Rejected("encoding_unsupported", ", ".join(named)[:64])
    return named[0]


def _unpack(chunks: Iterable[bytes], packing: str, max_bytes: int) -> bytes:
    """The packed chunks unpacked, stopping at the first byte above the limit."""
    packed = b"".join(chunks)
    window = _WINDOW[packing]
    if packing == "deflate" and packed and not _has_zlib_header(packed):
        window = -15  # many servers send deflate without the zlib header that RFC 9110 asks for
    unpacker = zlib.decompressobj(window)
    try:
        body = unpacker.decompress(packed, max_bytes + 1)
    except zlib.error:
        raise Rejected("encoding_corrupt", packing) from None
    if len(body) > max_bytes:
        raise Rejected("body_too_large", f"more than {max_bytes} bytes when unpacked")
    if not unpacker.eof:
        raise Rejected("encoding_corrupt", f"{packing}, ends too early")
    return body


def _has_zlib_header(packed: bytes) -> bool:
    return packed[0] & 0x0F == 8 and len(packed) > 1 and (packed[0] << 8 | packed[1]) % 31 == 0
