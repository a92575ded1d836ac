"""Links and addresses: what a link spells, and whether its host may be connected to.

- `parse_url`, `join_redirect`: the text of a link to a canonical address, as the URL standard (url.spec.whatwg.org)
  resolves it, and so as browsers do: by the library ada-url. What is already percent-encoded stays, since signed
  links depend on it. What is no http or https address is a `Rejected`, never another exception.
- `refused_address`: only global unicast addresses may be connected to. The tables follow the IANA registries of
  special-purpose addresses (RFC 6890); `ipaddress.is_global` differs between Python versions.
- `GuardedResolver`: connections are made to the very addresses that were checked, so a name that resolves
  differently the second time (DNS rebinding), or to which a redirect leads, gains nothing.
"""

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import cast

import ada_url
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from pipelines.core.pipeline import Rejected

MAX_URL_LENGTH = 8192
"""Characters; beyond this common servers refuse the request line."""

_PORTS = {"http:": 80, "https:": 443}
_PARTS = ("href", "protocol", "username", "password", "hostname", "port")
_IGNORED = "".join(map(chr, range(0x21)))  # around a link: C0 controls and spaces
_SCHEME = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]*):(.?)")
_NO_SCHEME = "no scheme (http:// or https:// must stand in front)"


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
    """The address that `text` spells. Fragments are dropped, and the dot that marks a host as complete.

    Raises:
        Rejected: url_missing, url_too_long, url_invalid, url_with_credentials or scheme_refused.
    """
    text = (text or "").strip(_IGNORED)
    if not text:
        raise Rejected("url_missing")
    if len(text) > MAX_URL_LENGTH:
        raise Rejected("url_too_long", f"{len(text)} characters, limit {MAX_URL_LENGTH}")
    try:
        parts = cast(Mapping[str, str], ada_url.parse_url(text, _PARTS))
    except ValueError:
        raise _unreadable(text) from None
    scheme = parts["protocol"]
    if scheme not in _PORTS:
        raise _scheme_rejection(text, scheme)
    if parts["username"] or parts["password"]:
        raise Rejected("url_with_credentials")
    if parts["port"] == "0":
        raise Rejected("url_invalid", "port 0")
    return _assemble(parts["href"], scheme, parts["hostname"], parts["port"])


def join_redirect(base: WebAddress, location: str) -> WebAddress:
    """The address to which a redirect with this `Location` leads from `base`.

    Raises:
        Rejected: as `parse_url`; redirect_without_target for an empty location.
    """
    location = _as_text(location).strip(_IGNORED)
    if not location:
        raise Rejected("redirect_without_target")
    if len(location) > MAX_URL_LENGTH:
        raise Rejected("url_too_long", f"{len(location)} characters, limit {MAX_URL_LENGTH}")
    try:
        joined = ada_url.join_url(str(base.url), location)
    except ValueError:
        raise Rejected("url_invalid", "the target of a redirect cannot be read") from None
    return parse_url(joined)


def _unreadable(text: str) -> Rejected:
    """Why the library refuses `text`."""
    if not _SCHEME.match(text):
        return Rejected("url_invalid", _NO_SCHEME)
    return Rejected("url_invalid", "host or port cannot be read")


def _scheme_rejection(text: str, scheme: str) -> Rejected:
    # `host.example:80/x` reads as a scheme by the letter; a person forgot http://
    found = _SCHEME.match(text)
    if "." in scheme or (found and found.group(2).isdigit()):
        return Rejected("url_invalid", _NO_SCHEME)
    return Rejected("scheme_refused", f"scheme {scheme[:-1][:32]}")


def _assemble(href: str, scheme: str, hostname: str, port: str) -> WebAddress:
    host, is_literal = _canonical_host(hostname)
    href = href.partition("#")[0]
    if hostname.endswith("."):
        href = href.replace(hostname, hostname[:-1], 1)
    url = URL(href, encoded=True)
    return WebAddress(url, host, int(port) if port else _PORTS[scheme], is_literal)


def _canonical_host(hostname: str) -> tuple[str, bool]:
    """Host in canonical form, and whether it is a literal address; names within the limits of DNS (RFC 1035)."""
    host = hostname.removesuffix(".")
    try:
        address = literal_address(host)
    except ValueError:
        raise Rejected("url_invalid", "the host is no valid IP address") from None
    if address is not None:
        return address, True
    if len(host) > 253 or any(not 0 < len(label) < 64 for label in host.split(".")):
        raise Rejected("url_invalid", "the host is no valid name")
    return host, False


def _as_text(location: str) -> str:
    """A header value with its bytes beyond ASCII read as UTF-8, as browsers read them.

    aiohttp hands over such bytes as surrogates (RFC 9110 leaves their meaning open).
    """
    return location.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


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
    return sum(value << (8 * (3 - index)) for index, value in enumerate(leading)) + last


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


Lookup = Callable[[str], Awaitable[Sequence[str]]]
"""The IP addresses of a host name; raises `socket.gaierror` as `getaddrinfo` does."""

Refusal = Callable[[str], str | None]
"""Why an IP address may not be connected to, or None."""

_NO_SUCH_NAME = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}


def system_lookup(executor: Executor) -> Lookup:
    """Lookups by the operating system, in the threads of `executor`."""

    def addresses(host: str) -> list[str]:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))

    async def lookup(host: str) -> Sequence[str]:
        return await asyncio.get_running_loop().run_in_executor(executor, addresses, host)

    return lookup


class GuardedResolver(AbstractResolver):
    """Addresses of names, each one checked.

    Args:
        lookup: where the addresses of a name come from.
        allowed: IP address and port by host; these are not checked.
        timeout_s: seconds for one lookup.
        refusal: the check of an address.
    """

    def __init__(
        self,
        lookup: Lookup,
        allowed: Mapping[str, tuple[str, int]],
        timeout_s: float,
        refusal: Refusal = refused_address,
    ) -> None:
        self._lookup = lookup
        self._allowed = allowed
        self._timeout_s = timeout_s
        self._refusal = refusal

    def check_literal(self, address: WebAddress) -> None:
        """Nothing, if `address` is a name or an IP address that may be connected to.

        The HTTP client never asks a resolver about IP addresses, hence this second check.

        Raises:
            Rejected: address_refused.
        """
        if not address.is_literal or self._allowed.get(address.host) == address.origin:
            return
        word = self._refusal(address.host)
        if word:
            raise Rejected("address_refused", f"{word}: {address.host}")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Addresses of `host`, all of them permitted.

        Raises:
            Rejected: host_not_found, dns_failed, or address_refused if any of its addresses is.
        """
        target = self._allowed.get(host.rstrip("."))
        if target is not None:
            return [_result(host, *target)]
        addresses = checked_addresses(host, await self._addresses(host), self._refusal)
        return [_result(host, address, port) for address in addresses]

    async def _addresses(self, host: str) -> Sequence[str]:
        try:
            addresses = await asyncio.wait_for(self._lookup(host), self._timeout_s)
        except TimeoutError:
            raise Rejected("dns_failed", "no answer in time") from None
        except socket.gaierror as error:
            reason = "host_not_found" if error.errno in _NO_SUCH_NAME else "dns_failed"
            raise Rejected(reason) from None
        except UnicodeError:
            raise Rejected("url_invalid", "the host is no valid name") from None
        if not addresses:
            raise Rejected("host_not_found")
        return addresses

    async def close(self) -> None:
        """Nothing: the executor of the lookups belongs to whoever made it."""


def checked_addresses(host: str, addresses: Sequence[str], refusal: Refusal) -> Sequence[str]:
    """The addresses of a host, all of them permitted; raises `Rejected` (address_refused) if one is not."""
    words = sorted(word for word in map(refusal, addresses) if word)
    if words:
        raise Rejected("address_refused", f"{words[0]}: address of {host}")
    return addresses


def _result(host: str, ip: str, port: int) -> ResolveResult:
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    return ResolveResult(hostname=host, host=ip, port=port, family=family, proto=0, flags=flags)
