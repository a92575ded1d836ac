"""When to ask again, and how long to wait before."""

import zlib
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime

from pipelines.download.reasons import Rejected

PASSING = frozenset(
    {
        "dns_failed",
        "connect_timeout",
        "read_timeout",
        "connection_lost",
        "rate_limited",
        "server_error",
    }
)
"""Reasons worth another attempt in the same run: what may have passed within seconds."""

_FOREVER_S = 1e9


class PatienceAsked(Rejected):
    """A refusal (429 or 5xx) that names the seconds to wait (Retry-After)."""

    def __init__(self, reason: str, detail: str | None, wait_s: float = 0.0) -> None:
        super().__init__(reason, detail)
        self.wait_s = wait_s


def backoff_s(base_s: float, attempt: int, url: str) -> float:
    """Seconds to wait after attempt number `attempt` (from 1): `base_s` doubled each time, +-50 %.

    The jitter comes from the link rather than from chance: it spreads the links of a host all the same,
    and two runs behave alike.
    """
    fraction = zlib.crc32(f"{attempt} {url}".encode("utf-8", "replace")) / 2**32
    return base_s * 2 ** (attempt - 1) * (0.5 + fraction)


def retry_after_s(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds that the header Retry-After asks for, 0 for a moment gone by; None without or unreadable.

    A date is measured against the server's own Date header where there is one, else against `now`
    (seconds since 1970).
    """
    value = headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return float(value) if len(value) < 10 else _FOREVER_S
    moment = _timestamp(value)
    if moment is None:
        return None
    sent = _timestamp(headers.get("Date", ""))
    return max(0.0, moment - (now if sent is None else sent))


def _timestamp(text: str) -> float | None:
    try:
        moment = parsedate_to_datetime(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
