"""From the exceptions of the HTTP client to reason words.

Details are our own words or fixed ones of the system, so that equal failures read equal. Whether a reset
connection shows as a closed one, as an error or as a body cut short depends on the moment, hence one word.
"""

import errno
import ssl

import aiohttp

from pipelines.download.reasons import Rejected

FAILURES = (aiohttp.ClientError, OSError, TimeoutError, UnicodeError)
"""What a request can raise because of the other side (or of the network between)."""

_OURS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}


def rejection_of(error: Exception, is_connected: bool) -> Rejected:
    """The reason for `error`; `is_connected` says whether the response had begun.

    Raises:
        OSError: this machine, not the other side, has run out of something; links are not to blame.
    """
    cause = _os_error(error)
    if cause is not None and cause.errno in _OURS:
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
