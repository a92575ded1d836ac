"""Which IP addresses a fetcher may connect to: global unicast ones, and nothing that hides another.

The tables follow the IANA registries of special-purpose IPv4 and IPv6 addresses (RFC 6890 and its
updates). They are written out because `ipaddress.is_global` differs between Python versions.
"""

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

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
