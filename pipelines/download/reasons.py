"""Why a link could not be fetched: words for the `reason` column of links in the ledger.

`retryable` says whether a later run may get another result for the same link. Whether a link is
tried again within one run is another question: see `RETRYABLE` in `request.py`.
"""

from collections.abc import Mapping
from types import MappingProxyType

from pipelines.core.pipeline import Reason

FETCH_REASONS: Mapping[str, Reason] = MappingProxyType(
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
        "host_not_found": Reason("The name of the host does not exist.", retryable=True),
        "dns_failed": Reason("The name server gave no answer.", retryable=True),
        "connect_refused": Reason("The host refused the connection.", retryable=True),
        "connect_timeout": Reason("No connection within `connect_timeout_s`.", retryable=True),
        "connect_failed": Reason("The host could not be reached.", retryable=True),
        "tls_untrusted": Reason("The certificate is unknown, expired or of another host."),
        "tls_failed": Reason("The TLS handshake failed.", retryable=True),
        # A connection, but no good response.
        "timeout": Reason("Not done within `deadline_s`, retries included.", retryable=True),
        "read_timeout": Reason("Not a byte for `read_timeout_s`.", retryable=True),
        "connection_lost": Reason("The connection ended before the response did.", retryable=True),
        "response_malformed": Reason("The response is not proper HTTP."),
        "rate_limited": Reason("The host asked to slow down (408, 425, 429).", retryable=True),
        "server_error": Reason("The server failed (5xx).", retryable=True),
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
    }
)
"""Every reason of the fetcher itself; what a body is converted to has reasons of its own."""
