"""X-Robots-Tag: may this fetcher use what a server sent?

Form: `X-Robots-Tag: [agent:] directive[, directive …]`, in any number of headers. An agent holds for
the directives behind it up to the next agent in the same header (several headers may have been joined
by a proxy); without an agent, or with `*`, directives are for everybody. Source: the description at
developers.google.com/search/docs/crawling-indexing/robots-meta-tag; noai and noimageai by DeviantArt.

What a fetcher may do and how hard it tries: the options behind `--fetch.*`.
"""

import re
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from pipelines.download.urls import literal_address

FORBIDDING = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none"})
"""Directives that forbid the use; `none` is short for noindex and nofollow."""

_VALUED = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})
_AGENT = re.compile(r"^(\*|[a-z][a-z0-9_.-]*(/[a-z0-9_.-]*)?)$")


def agent_token(user_agent: str) -> str:
    """The word by which a server may name us: the product in front of the user agent, lower case."""
    words = re.split(r"[/\s;(]", user_agent.strip(), maxsplit=1)
    return words[0].lower()


def forbidding_directive(headers: Iterable[str], token: str) -> str | None:
    """The first directive in `headers` that forbids the use to the agent `token`, or None."""
    for header in headers:
        agent = "*"
        for part in header.lower().split(","):
            named, directive = _split_agent(part)
            agent = named or agent
            if directive in FORBIDDING and agent in ("*", token):
                return directive
    return None


def _split_agent(part: str) -> tuple[str | None, str]:
    """Agent and directive of one comma-separated part; no agent in `max-snippet: 5` or a date."""
    head, colon, rest = part.partition(":")
    name = head.strip()
    if not colon or name in _VALUED or not _AGENT.match(name):
        return None, part.strip()
    inner_agent, directive = _split_agent(rest) if ":" in rest else (None, rest.strip())
    return inner_agent or name.partition("/")[0], directive


MIB = 1 << 20
MAX_AGENT_LENGTH = 1_000


@dataclass(frozen=True)
class FetchConfig:
    """Limits and manners of fetching. Times are in seconds, sizes in bytes."""

    concurrency: int = 64
    """Links fetched at once in one process. A core is kept busy by 64 where servers take 0.2 s to answer."""
    per_host: int = 8
    """Requests at once to one host, from one worker. Small web servers suffer above a handful."""
    per_host_rate: float = 0.0
    """Requests a second to one host, from one worker; 0 sets no limit, since `per_host` already slows a crawl down."""
    deadline_s: float = 30.0
    """Seconds for one link in all: every redirect, retry and wait of it. Waits for our own limits do not count."""
    connect_timeout_s: float = 10.0
    """Seconds for the name lookup, and again for TCP and TLS together."""
    read_timeout_s: float = 10.0
    """Seconds without a byte after which an attempt is given up (and made again while the deadline allows)."""
    max_bytes: int = 16 * MIB
    """Bytes of one body, as sent and as unpacked. Photos on the web rarely reach 10 MB."""
    max_redirects: int = 5
    """Redirects followed for one link. Browsers allow 20; honest image hosts need one or two."""
    retries: int = 2
    """Further attempts after a failure that may pass: timeouts, lost connections, 429, 5xx."""
    backoff_s: float = 0.5
    """Seconds before the first retry, give or take a half; doubled each time. Retry-After goes before it."""
    dead_host_after: int = 5
    """Failed connections in a row after which a host is not tried again for `dead_host_s`."""
    dead_host_s: float = 300.0
    """Seconds for which a dead host is left alone; its links get the reason that the host died of."""
    user_agent: str = "EmuPlatform/0.1 (builds image datasets)"
    """How we name ourselves. Its first word is the agent to which an X-Robots-Tag may speak. Put a contact here."""
    respect_robots_tag: bool = True
    """Leave images alone whose X-Robots-Tag says noai, noimageai, noindex, noimageindex or none."""
    allow_host: tuple[str, ...] = ()
    """HOST=IP:PORT: connect to this address for this host, even a private one. For mirrors and tests."""
    ca_file: Path | None = None
    """PEM file of further authorities to trust in TLS, beside those of the system."""
    body_budget_bytes: int = 256 * MIB
    """Bytes of bodies held at once, from their arrival to the end of their conversion. At least `max_bytes`."""
    convert_threads: int = 1
    """Threads that convert bodies as they arrive. One a process where every core has its own process."""

    def __post_init__(self) -> None:
        for name, (low, high, hint) in _BOUNDS.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} {value!r} is not in {low:g}..{high:g}: {hint}")
        if self.body_budget_bytes < self.max_bytes:
            raise ValueError(
                f"body_budget_bytes {self.body_budget_bytes} is below max_bytes {self.max_bytes}: "
                "the largest body would never fit; raise the one or lower the other"
            )
        if not agent_token(self.user_agent) or not self.user_agent.isprintable():
            raise ValueError(
                f"user_agent {self.user_agent!r} needs a first word and printable characters, "
                "such as 'MyCrawler/1.0 (me@my.example)'"
            )
        if len(self.user_agent) > MAX_AGENT_LENGTH:
            raise ValueError(
                f"user_agent has {len(self.user_agent):,} characters, at most {MAX_AGENT_LENGTH:,} are sent: "
                "servers refuse longer headers"
            )
        if self.ca_file is not None:
            _check_authorities(self.ca_file)
        parse_allowed_hosts(self.allow_host)


def _check_authorities(path: Path) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except OSError as error:  # an SSLError is one
        raise ValueError(
            f"ca_file {str(path)!r} cannot be used: {error.strerror or error}; name a PEM file of certificates"
        ) from error


@dataclass(frozen=True)
class AllowedHost:
    """The address that stands for a host, whatever the name servers say."""

    ip: str
    port: int


def parse_allowed_hosts(entries: tuple[str, ...]) -> Mapping[str, AllowedHost]:
    """Allowed hosts by name (lower case), from entries of the form HOST=IP:PORT or HOST=[IPv6]:PORT.

    A HOST that is itself an address stands for itself, on that port only.

    Raises:
        ValueError: an entry of another form; a host named twice.
    """
    allowed: dict[str, AllowedHost] = {}
    for entry in entries:
        host, target = _parse_entry(entry)
        if allowed.setdefault(host, target) != target:
            raise ValueError(f"allow_host {entry!r}: {host} is already mapped elsewhere")
    return allowed


def _parse_entry(entry: str) -> tuple[str, AllowedHost]:
    host, equals, target = entry.partition("=")
    ip, colon, port = target.rpartition(":")
    host, ip = host.strip().lower().rstrip("."), ip.strip().removeprefix("[").removesuffix("]")
    form = f"allow_host {entry!r} is not HOST=IP:PORT, such as images.example=127.0.0.1:8000"
    if not (host and equals and colon and port.isascii() and port.isdigit()) or "/" in host:
        raise ValueError(form)
    if not 1 <= int(port) <= 65535:
        raise ValueError(f"allow_host {entry!r}: port {port} is not in 1..65535")
    try:
        canonical = str(ip_address(ip))
        literal = literal_address(host)
    except ValueError:
        raise ValueError(form) from None
    if literal is not None and literal != canonical:
        raise ValueError(f"allow_host {entry!r}: an address as HOST can only stand for itself")
    return literal or host, AllowedHost(canonical, int(port))


_BOUNDS = {
    "concurrency": (1, 4096, "links in flight in one process; more cores take more processes"),
    "per_host": (1, 4096, "requests in flight to one host"),
    "per_host_rate": (0.0, 1e6, "requests a second, 0 for no limit"),
    "deadline_s": (0.01, 86400.0, "seconds for one link in all"),
    "connect_timeout_s": (0.01, 3600.0, "seconds"),
    "read_timeout_s": (0.01, 3600.0, "seconds"),
    "max_bytes": (1, 1 << 40, "bytes of one body"),
    "max_redirects": (0, 50, "redirects of one link; 0 follows none"),
    "retries": (0, 100, "further attempts; 0 makes one attempt only"),
    "backoff_s": (0.0, 3600.0, "seconds before the first retry"),
    "dead_host_after": (1, 1_000_000, "failed connections in a row"),
    "dead_host_s": (0.0, 1e7, "seconds"),
    "body_budget_bytes": (1, 1 << 44, "bytes of bodies in memory at once"),
    "convert_threads": (1, 256, "threads"),
}
