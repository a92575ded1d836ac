"""The words that say why a link gave no image: the `reason` column of links in the ledger.

`retriable` says whether a later run may fare better with the same link (`--retry-failed` takes
exactly those). It is not the rule for retries within a run, which is in `retry.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Reason:
    """What a reason word means."""

    meaning: str
    """One sentence for a person."""
    retriable: bool = False
    """True where a later run may get another answer."""


REASONS: Mapping[str, Reason] = MappingProxyType(
    {
        # The link itself; no request was made.
        "url_missing": Reason("The link is empty."),
        "url_too_long": Reason("The link is longer than 8,192 characters."),
        "url_invalid": Reason("The link, or a redirect's target, is no usable web address."),
        "url_with_credentials": Reason("The link carries a user name or password."),
        "scheme_refused": Reason("Neither http nor https; also where a redirect leads."),
        "address_refused": Reason(
            "The host is a loopback, private, link-local, multicast, metadata or otherwise "
            "special address, itself or by its name, also after a redirect."
        ),
        # No connection.
        "host_not_found": Reason("The name of the host does not exist.", retriable=True),
        "dns_failed": Reason("The name server gave no answer.", retriable=True),
        "connect_refused": Reason("The host refused the connection.", retriable=True),
        "connect_timeout": Reason("No connection within `connect_timeout_s`.", retriable=True),
        "connect_failed": Reason("The host could not be reached.", retriable=True),
        "tls_untrusted": Reason("The certificate is unknown, expired or of another host."),
        "tls_failed": Reason("The TLS handshake failed.", retriable=True),
        # A connection, but no good response.
        "timeout": Reason("Not done within `deadline_s`, retries included.", retriable=True),
        "read_timeout": Reason("Not a byte for `read_timeout_s`.", retriable=True),
        "connection_lost": Reason("The connection ended before the response did.", retriable=True),
        "response_malformed": Reason("The response is not proper HTTP."),
        "rate_limited": Reason("The host asked for patience (408, 425, 429).", retriable=True),
        "server_error": Reason("The server failed (5xx).", retriable=True),
        "not_found": Reason("The host has no such thing (404, 410)."),
        "forbidden": Reason("The host does not hand it out (401, 402, 403, 451)."),
        "status_unexpected": Reason("Another status than 200 that is no redirect."),
        "redirect_loop": Reason("The redirects came back to an address already visited."),
        "too_many_redirects": Reason("More redirects than `max_redirects`."),
        "redirect_without_target": Reason("A redirect without a Location."),
        "robots_refused": Reason("X-Robots-Tag forbids the use: noai, noimageai, noindex, …"),
        # A response, but no good body.
        "body_empty": Reason("The body has no bytes."),
        "body_too_large": Reason("More than `max_bytes`, as sent or when unpacked."),
        "encoding_unsupported": Reason("A Content-Encoding that was not asked for."),
        "encoding_corrupt": Reason("The packed body cannot be unpacked."),
        # A body, but no good image.
        "html_not_image": Reason("A page of HTML or XML instead of an image."),
        "not_an_image": Reason("The bytes begin like no image format."),
        "image_format_unsupported": Reason("An image format, colour mode or depth not decoded."),
        "image_too_many_pixels": Reason("More pixels than `max_pixels`; told by the header."),
        "image_too_many_scans": Reason("A progressive JPEG built to exhaust its decoder."),
        "image_too_small": Reason("The shorter side is below `min_side`."),
        "image_too_elongated": Reason("Longer side over shorter side exceeds `max_aspect`."),
        "image_truncated": Reason("The image data end too early.", retriable=True),
        "image_corrupt": Reason("The image data are damaged."),
    }
)


class Rejected(Exception):
    """A link, a response or a body was turned down: data, not an error of the program.

    Args:
        reason: a word of `REASONS`.
        detail: more for a person; equal for equal responses, so that two runs write the same ledger.
    """

    def __init__(self, reason: str, detail: str | None = None) -> None:
        assert reason in REASONS, reason
        super().__init__(reason if detail is None else f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type["Rejected"], tuple[str, str | None]]:
        return type(self), (self.reason, self.detail)
