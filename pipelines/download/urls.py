"""From the text of a link to an address that can be asked for, or the reason why it cannot.

What a browser would forgive (white space around, spaces and letters beyond ASCII in path and query,
an international host name) is encoded as a browser does; what is already encoded stays as it is, since
signed links depend on it. Everything else is a `Rejected`, never another exception.
"""

import re
from dataclasses import dataclass
from urllib.parse import quote, urljoin, urlsplit

import idna
from yarl import URL

from pipelines.download.addresses import literal_address
from pipelines.download.reasons import Rejected

MAX_URL_LENGTH = 8192
"""Characters; beyond this common servers refuse the request line."""

_PORTS = {"http": 80, "https": 443}
_CONTROL = re.compile(r"[\x00-\x1f\x7f\x80-\x9f\ud800-\udfff]")
_SCHEME = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]*):")
_HOST = re.compile(r"^[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*$")
_KEPT = "!#$%&'()*+,-./:;=?@[]_~"


@dataclass(frozen=True)
class WebAddress:
    """An http or https address in canonical form."""

    url: URL
    host: str
    """Lower case ASCII; an IP address in its canonical spelling, without brackets."""
    port: int
    is_literal: bool
    """True if the host is an IP address rather than a name."""

    @property
    def origin(self) -> tuple[str, int]:
        """Host and port: what a connection is made to."""
        return self.host, self.port


def parse_url(text: str | None) -> WebAddress:
    """The address that `text` spells.

    Raises:
        Rejected: url_missing, url_too_long, url_invalid, url_with_credentials or scheme_refused.
    """
    text = (text or "").strip(" \t\r\n\f\v")
    if not text:
        raise Rejected("url_missing")
    if len(text) > MAX_URL_LENGTH:
        raise Rejected("url_too_long", f"{len(text)} characters, limit {MAX_URL_LENGTH}")
    if _CONTROL.search(text):
        raise Rejected("url_invalid", "control character")
    scheme = _scheme_of(text)
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise Rejected("url_invalid", "host or port cannot be read") from None
    if "@" in parts.netloc:
        raise Rejected("url_with_credentials")
    if "\\" in parts.netloc:
        raise Rejected("url_invalid", "backslash in the host")
    if port == 0:
        raise Rejected("url_invalid", "port 0")
    host, is_literal = _canonical_host(parts.hostname)
    return _assemble(scheme, host, port or _PORTS[scheme], is_literal, parts.path, parts.query)


def join_redirect(base: WebAddress, location: str) -> WebAddress:
    """The address to which a redirect with this `Location` leads from `base`.

    Raises:
        Rejected: as `parse_url`; redirect_without_target for an empty location.
    """
    location = _as_text(location).strip(" \t")
    if not location:
        raise Rejected("redirect_without_target")
    if _CONTROL.search(location):
        raise Rejected("url_invalid", "control character in a redirect")
    try:
        joined = urljoin(str(base.url), location)
    except ValueError:
        raise Rejected("url_invalid", "the target of a redirect cannot be read") from None
    return parse_url(joined)


def _scheme_of(text: str) -> str:
    found = _SCHEME.match(text)
    if not found:
        raise Rejected("url_invalid", "no scheme (http:// or https:// must stand in front)")
    scheme = found.group(1).lower()
    if scheme not in _PORTS:
        # `host.example:80/x` reads as a scheme by the letter; a person forgot http://
        if "." in scheme or text[found.end() : found.end() + 1].isdigit():
            raise Rejected("url_invalid", "no scheme (http:// or https:// must stand in front)")
        raise Rejected("scheme_refused", f"scheme {scheme[:32]}")
    if not text[found.end() :].startswith("//"):
        raise Rejected("url_invalid", "no // after the scheme")
    return scheme


def _canonical_host(name: str | None) -> tuple[str, bool]:
    """Host in canonical form, and whether it is a literal address."""
    if not name:
        raise Rejected("url_invalid", "no host")
    host = name if name.isascii() else _ascii_host(name)
    host = host.lower().removesuffix(".")  # the dot that marks a name as complete
    try:
        address = literal_address(host)
    except ValueError:
        raise Rejected("url_invalid", "the host is no valid IP address") from None
    if address is not None:
        return address, True
    if not _HOST.match(host) or len(host) > 253 or any(len(x) > 63 for x in host.split(".")):
        raise Rejected("url_invalid", "the host is no valid name")
    return host, False


def _ascii_host(name: str) -> str:
    try:
        return idna.encode(name, uts46=True, transitional=False).decode("ascii")
    except (idna.IDNAError, UnicodeError, ValueError, IndexError):
        raise Rejected("url_invalid", "the host is no valid international name") from None


def _assemble(
    scheme: str, host: str, port: int, is_literal: bool, path: str, query: str
) -> WebAddress:
    shown = f"[{host}]" if ":" in host else host
    authority = shown if port == _PORTS[scheme] else f"{shown}:{port}"
    target = quote(path or "/", safe=_KEPT) + (f"?{quote(query, safe=_KEPT)}" if query else "")
    return WebAddress(URL(f"{scheme}://{authority}{target}", encoded=True), host, port, is_literal)


def _as_text(location: str) -> str:
    """A header value with its bytes beyond ASCII read as UTF-8, as browsers read them.

    aiohttp hands over such bytes as surrogates (RFC 9110 leaves their meaning open).
    """
    return location.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
