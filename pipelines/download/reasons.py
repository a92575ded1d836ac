"""Why a link could not be fetched, and whether to try again.

`FETCH_REASONS` are the words for the `reason` column of links in the ledger. `retryable` says there whether a later
run may get another result for the same link; `RETRYABLE` are those that are tried again within one run.

Details are our own words or fixed ones of the system, so that equal failures read the same. Whether a reset
connection shows as a closed one, as an error or as a truncated body depends on timing, hence one word for all.
"""

import errno
import ssl
import zlib
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from types import MappingProxyType

import aiohttp

from pipelines.core.pipeline import Reason, Rejected

FETCH_REASONS: Mapping[str, Reason] = MappingProxyType(
    {
        # The link itself; no request was made.
        "url_missing": Reason("The link is empty."),
        "url_too_long": Reason("The link is longer than 8,192 characters."),
        "url_invalid": Reason("The link, or the target of a redirect, is not a valid web address."),
        "url_with_credentials": Reason("The link contains a user name or password."),
        "scheme_refused": Reason(
            "The scheme of the link, or of a redirect, is neither http nor https."
        ),
        "address_refused": Reason(
            "The address of the host (also after a redirect) is loopback, private, link-local, "
            "multicast, metadata or otherwise special."
        ),
        # No connection.
        "host_not_found": Reason("The host name does not exist.", retryable=True),
        "dns_failed": Reason("The name server did not respond.", retryable=True),
        "connect_refused": Reason("The host refused the connection.", retryable=True),
        "connect_timeout": Reason("No connection within `connect_timeout_s`.", retryable=True),
        "connect_failed": Reason("The host could not be reached.", retryable=True),
        "tls_untrusted": Reason("The certificate is not trusted, expired or for another host."),
        "tls_failed": Reason("The TLS handshake failed.", retryable=True),
        # A connection, but no good response.
        "timeout": Reason("Not finished within `deadline_s`, including retries.", retryable=True),
        "read_timeout": Reason("No byte arrived for `read_timeout_s`.", retryable=True),
        "connection_lost": Reason(
            "The connection closed before the response was complete.", retryable=True
        ),
        "response_malformed": Reason("The response is not valid HTTP."),
        "rate_limited": Reason(
            "The host asked for fewer requests (408, 425, 429).", retryable=True
        ),
        "server_error": Reason("The server failed (5xx).", retryable=True),
        "not_found": Reason("The resource does not exist (404, 410)."),
        "forbidden": Reason("Access is forbidden (401, 402, 403, 407, 451)."),
        "status_unexpected": Reason("Any other status than 200 or a redirect."),
        "redirect_loop": Reason("The redirects lead back to an address already visited."),
        "too_many_redirects": Reason("There are more redirects than `max_redirects`."),
        "redirect_without_target": Reason("A redirect without a Location header."),
        "robots_refused": Reason("X-Robots-Tag forbids use: noai, noimageai, noindex, …"),
        # A response, but no good body.
        "body_empty": Reason("The body is empty."),
        "body_too_large": Reason(
            "The body is larger than `max_bytes`, as sent or after decompression."
        ),
        "encoding_unsupported": Reason("The body has a Content-Encoding that was not requested."),
        "encoding_corrupt": Reason("The compressed body cannot be decompressed."),
        # Another engine than the native one.
        "engine_failed": Reason("img2dataset failed; see the detail.", retryable=True),
        "engine_lost": Reason("img2dataset returned no result for the link.", retryable=True),
    }
)
"""Every reason of the fetcher itself; what a body is converted to has reasons of its own."""

_BUSY = frozenset({408, 425, 429})
_FORBIDDEN = frozenset({401, 402, 403, 407, 451})
_GONE = frozenset({404, 410})
REDIRECTS = frozenset({301, 302, 303, 307, 308})


def status_rejection(status: int) -> Rejected:
    """The reason for a final response with a status that is no success."""
    detail = f"status {status}"
    if status in _BUSY:
        return Rejected("rate_limited", detail)
    if 500 <= status <= 599:
        return Rejected("server_error", detail)
    if status in REDIRECTS:
        return Rejected("redirect_without_target")
    words = {"forbidden": _FORBIDDEN, "not_found": _GONE}
    return Rejected(next((w for w, s in words.items() if status in s), "status_unexpected"), detail)


FAILURES = (aiohttp.ClientError, OSError, TimeoutError, UnicodeError)
"""What a request can raise because of the server or the network."""

_LOCAL = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}


def rejection_of(error: Exception, is_connected: bool) -> Rejected:
    """The reason for `error`; `is_connected` says whether the response had begun.

    Raises:
        OSError: this machine, not the server, has run out of file descriptors or memory.
    """
    cause = _os_error(error)
    if cause is not None and cause.errno in _LOCAL:
        raise OSError(
            cause.errno,
            "too few file descriptors or too little memory to fetch: raise `ulimit -n` or lower concurrency",
        ) from error
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return Rejected("tls_untrusted", _certificate_detail(error.certificate_error))
    if isinstance(error, aiohttp.ClientConnectorError):
        return _connect_rejection(error)
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return Rejected("connect_timeout")
    if isinstance(error, TimeoutError):
        return Rejected("read_timeout")
    if isinstance(error, aiohttp.ClientResponseError | aiohttp.InvalidURL | UnicodeError):
        return Rejected("response_malformed")
    if isinstance(error, ssl.SSLError) and not is_connected:
        return Rejected("tls_failed")
    return Rejected("connection_lost")


def _connect_rejection(error: aiohttp.ClientConnectorError) -> Rejected:
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return Rejected("dns_failed")
    cause = error.os_error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return Rejected("tls_untrusted", _certificate_detail(cause))
    if isinstance(error, aiohttp.ClientConnectorSSLError) or isinstance(cause, ssl.SSLError):
        return Rejected("tls_failed", getattr(cause, "reason", None))
    if isinstance(cause, ConnectionRefusedError):
        return Rejected("connect_refused")
    if isinstance(cause, TimeoutError):
        return Rejected("connect_timeout")
    if isinstance(cause, ConnectionResetError):
        return Rejected("connection_lost")
    return Rejected("connect_failed", errno.errorcode.get(cause.errno or 0))


def _certificate_detail(error: Exception) -> str | None:
    return getattr(error, "verify_message", None) or None


def _os_error(error: BaseException | None) -> OSError | None:
    """The error of the system behind `error`, if there is one."""
    for _ in range(8):
        if error is None:
            return None
        if isinstance(error, OSError) and error.errno is not None:
            return error
        error = getattr(error, "os_error", None) or error.__cause__
    return None


RETRYABLE = frozenset(
    {
        "dns_failed",
        "connect_timeout",
        "read_timeout",
        "connection_lost",
        "rate_limited",
        "server_error",
    }
)
"""Reasons worth another attempt in the same run: what may be gone within seconds."""

_FOREVER_S = 1e9


def backoff_s(base_s: float, attempt: int, url: str) -> float:
    """Seconds to wait after attempt number `attempt` (from 1): `base_s` doubled each time, +-50 %.

    The jitter is a hash of the link, not random: it spreads the links of a host just as well, and two runs
    behave the same.
    """
    fraction = zlib.crc32(f"{attempt} {url}".encode("utf-8", "replace")) / 2**32
    return base_s * 2 ** (attempt - 1) * (0.5 + fraction)


def retry_after_s(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds that the header Retry-After asks for; 0 for a date in the past, None if missing or unreadable.

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
