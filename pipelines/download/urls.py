"""From the text of a link to an address that can be asked for, or the reason why it cannot.

What a browser would forgive (white space around, spaces and letters beyond ASCII in path and query,
an international host name) is encoded as a browser does; what is already encoded stays as it is, since
signed links depend on it. Everything else is a `Rejected`, never another exception.

Which IP addresses a fetcher may connect to: global unicast ones, and nothing that hides another.

The tables follow the IANA registries of special-purpose IPv4 and IPv6 addresses (RFC 6890 and its
updates). They are written out because `ipaddress.is_global` differs between Python versions.
"""

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from urllib.parse import quote, urljoin, urlsplit

import idna
from yarl import URL

from pipelines.core.pipeline import Rejected

_REFUSED_V4 = {
    IPv4Network(network): word
    for network, word in {
        "0.0.0.0/8": "unspecified",
        "10.0.0.0/8": "private",
        "100.64.0.0/10": "shared (carrier NAT)",
        "127.0.0.0/8": "loopback",
        "168.63.129.16/32": "metadata (Azure)",
        "169.254.0.0/16": "link-local",
        "172.16.0.0/12": "private",
        "192.0.0.0/24": "protocol assignments",
        "192.0.2.0/24": "documentation",
        "192.88.99.0/24": "6to4 relay",
        "192.168.0.0/16": "private",
        "198.18.0.0/15": "benchmarking",
        "198.51.100.0/24": "documentation",
        "203.0.113.0/24": "documentation",
        "224.0.0.0/4": "multicast",
        "240.0.0.0/4": "reserved",
    }.items()
}
_REFUSED_V6 = {
    IPv6Network(network): word
    for network, word in {
        "::/128": "unspecified",
        "::1/128": "loopback",
        "fc00::/7": "private",
        "fe80::/10": "link-local",
        "fec0::/10": "site-local",
        "ff00::/8": "multicast",
        "2001::/23": "protocol assignments",
        "2001:db8::/32": "documentation",
        "3fff::/20": "documentation",
    }.items()
}
_GLOBAL_UNICAST_V6 = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")
_NUMBER = re.compile(r"^(?:0[xX][0-9a-fA-F]*|[0-9]+)$")


def refused_address(address: str) -> str | None:
    """Why `address` may not be connected to, in a few words, or None if it may.

    Addresses that carry an IPv4 address (IPv4-mapped, NAT64, 6to4) are judged by that one. What
    cannot be read as an address, and an IPv6 address with a zone, is refused.
    """
    try:
        parsed = ip_address(address)
    except ValueError:
        return "not an address"
    return _refused_v4(parsed) if isinstance(parsed, IPv4Address) else _refused_v6(parsed)


def literal_address(host: str) -> str | None:
    """The canonical address if `host` spells one, in any of the ways that resolvers accept; else None.

    IPv4 as the URL standard reads it: one to four parts, decimal, octal (`0177.1`) or hexadecimal
    (`0x7f000001`), a final dot allowed. IPv6 in brackets or bare, without a zone.

    Raises:
        ValueError: the host must be an address by its form, but is none.
    """
    if ":" in host or host.startswith("["):
        if "%" in host:
            raise ValueError("an IPv6 address with a zone")
        return str(IPv6Address(host.removeprefix("[").removesuffix("]")))
    parts = host.removesuffix(".").split(".")
    if not _NUMBER.match(parts[-1]):
        return None
    return str(IPv4Address(_ipv4_number(parts)))


def _ipv4_number(parts: list[str]) -> int:
    if len(parts) > 4 or not all(_NUMBER.match(part) for part in parts):
        raise ValueError("not an IPv4 address")
    *leading, last = [_part_value(part) for part in parts]
    if any(value > 255 for value in leading) or last >= 256 ** (4 - len(leading)):
        raise ValueError("a part of an IPv4 address is too large")
    return sum(value << (8 * (3 - place)) for place, value in enumerate(leading)) + last


def _part_value(part: str) -> int:
    if len(part) > 24:  # Python refuses to convert very long digit strings, with its own message
        raise ValueError("a part of an IPv4 address is too large")
    if part[:2] in ("0x", "0X"):
        return int(part[2:] or "0", 16)
    return int(part, 8 if part.startswith("0") else 10)


def _refused_v4(address: IPv4Address) -> str | None:
    return next((word for network, word in _REFUSED_V4.items() if address in network), None)


def _refused_v6(address: IPv6Address) -> str | None:
    if address.scope_id is not None:
        return "an address with a zone"
    inner = address.ipv4_mapped or address.sixtofour
    if inner is None and address in _NAT64:
        inner = IPv4Address(int(address) & 0xFFFFFFFF)
    if inner is not None:
        return _refused_v4(inner)
    word = next((word for network, word in _REFUSED_V6.items() if address in network), None)
    return word if word or address in _GLOBAL_UNICAST_V6 else "outside global unicast"


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
