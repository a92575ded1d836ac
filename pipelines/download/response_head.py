"""Reads responses whose heads curl, urllib and browsers accept, and aiohttp's parser refuses.

    connector = TolerantConnector(limit=0)          # in place of aiohttp.TCPConnector
    aiohttp.ClientSession(connector=connector, max_field_size=MAX_LINE_BYTES, max_headers=MAX_LINES)

Before its parser sees the head (status line and headers) of a response, what many servers send is put right:

| in the head                                     | becomes                                   | source             |
|-------------------------------------------------|-------------------------------------------|--------------------|
| `Transfer-Encoding: chunked` and Content-Length | chunked alone                             | RFC 9112, 6.3      |
| the same Content-Length more than once          | one                                       | RFC 9110, 8.6      |
| `Transfer-Encoding: identity`                   | no such header                            | RFC 2616, 3.6      |
| a line without a colon                          | left out                                  | browsers and curl  |

Different lengths stay and are refused: where the body ends is then unknown. Lines may have up to 64 KiB and heads up to
256 KiB and 1,000 lines; urllib reads lines of 64 KiB, curl heads of 300 kB.
"""

import asyncio
import functools
import re
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError

MAX_HEAD_BYTES = 1 << 18
MAX_LINE_BYTES = 1 << 16
MAX_LINES = 1000

_STATUS = b"HTTP/"
_END = re.compile(rb"\n\r?\n")
_PROPER = re.compile(rb"[^\n]*\n(?:[!-9;-~]+:[^\n]*\n)*\r?\n\Z")
_ONE_LENGTH = re.compile(rb"\ncontent-length:[ \t]*\d+[ \t]*\r?\n")
_INTERIM = re.compile(
    rb"HTTP/\d\.\d 1(?!01)\d\d"
)  # 100 Continue, 103 Early Hints: another head follows


class TolerantConnector(aiohttp.TCPConnector):
    """A `TCPConnector` whose connections read tolerantly; takes the same arguments."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._factory = functools.partial(_TolerantHandler, loop=self._loop)


class _TolerantHandler(ResponseHandler):
    """Holds a head back until it is complete, and passes it on in order."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._head: bytearray | None = None
        """What has arrived of a head; None while a body is read."""

    def set_response_params(self, **options: Any) -> None:
        """A new request begins on the connection; its response begins with a head."""
        self._head = bytearray()
        super().set_response_params(**options)

    def data_received(self, data: bytes) -> None:
        """Bytes from the server."""
        if self._head is None or not data:
            super().data_received(data)
            return
        start = max(0, len(self._head) - 2)  # of what has not been searched
        self._head += data
        while found := _END.search(self._head, start):
            head, rest, start = bytes(self._head[: found.end()]), self._head[found.end() :], 0
            if not _INTERIM.match(head):
                right = tidied(head)
                is_all = right is head and len(data) == len(head) + len(rest)
                self._pass_on(data if is_all else right + rest)
                return
            self._head = rest
        if not self._head.startswith(_STATUS[: len(self._head)]):  # the parser says what it is
            self._pass_on(bytes(self._head))
        elif len(self._head) > MAX_HEAD_BYTES:
            self._refuse()
        else:
            self._reschedule_timeout()

    def connection_lost(self, exc: BaseException | None) -> None:
        """The end of the connection; a head that is not complete goes to the parser as it is."""
        if self._head:
            self._pass_on(bytes(self._head))
        super().connection_lost(exc)

    def _pass_on(self, data: bytes) -> None:
        self._head = None
        super().data_received(data)

    def _refuse(self) -> None:
        self._head = None
        if self.transport is not None:
            self.transport.close()
        message = f"the head of the response has more than {MAX_HEAD_BYTES} bytes"
        self.set_exception(HttpProcessingError(message=message))


def tidied(head: bytes) -> bytes:
    """The head of a response, its ends of line included, with what this module accepts put right."""
    if _is_proper(head):
        return head
    status, *lines = head.split(b"\n")[:-2]
    kept: list[bytes] = []
    lengths: list[bytes] = []
    encodings: list[bytes] = []
    for line in lines:
        name, colon, value = line.partition(b":")
        if line[:1] in (b" ", b"\t"):  # continues the line before
            kept.append(line)
        elif name.lower() == b"content-length":
            lengths += [part.strip() for part in value.split(b",")]
        elif name.lower() == b"transfer-encoding":
            encodings += [part.strip().lower() for part in value.split(b",")]
        elif colon:
            kept.append(line)
    codings = [coding for coding in encodings if coding not in (b"identity", b"")]
    if codings:
        kept.append(b"Transfer-Encoding: " + b", ".join(codings))
    elif lengths:
        same = len(set(lengths)) == 1
        kept += [b"Content-Length: " + length for length in (lengths[:1] if same else lengths)]
    return b"\r\n".join(line.rstrip(b"\r") for line in [status, *kept, b"", b""])


def _is_proper(head: bytes) -> bool:
    """Whether every line has a name, and at most one of them says where the body ends; most heads are."""
    lower = head.lower()
    num_lengths = lower.count(b"\ncontent-length:")
    num_codings = lower.count(b"\ntransfer-encoding:")
    is_plain = num_codings == 0 or (num_lengths == 0 and b"identity" not in lower)
    is_single = num_lengths + num_codings < 2 and (num_lengths == 0 or _ONE_LENGTH.search(lower))
    return bool(is_plain and is_single and _PROPER.match(head))
