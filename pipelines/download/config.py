"""Options of a fetcher (`--fetch.*`), and what X-Robots-Tag permits it.

Form: `X-Robots-Tag: [agent:] directive[, directive …]`, in any number of headers. An agent holds for the
directives behind it up to the next agent in the same header (a proxy may have joined several headers); without
an agent, or with `*`, directives are for everybody. Source: the description at
developers.google.com/search/docs/crawling-indexing/robots-meta-tag; noai and noimageai by DeviantArt.
"""

import re
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated

from pydantic import Field

from schemas.validation import Checked, ConfigError

MIB = 1 << 20
MAX_AGENT_LENGTH = 1_000


@dataclass(frozen=True)
class FetchConfig(Checked):
    """Limits and politeness of fetching. Times are in seconds, sizes in bytes."""

    concurrency: Annotated[
        int, Field(ge=1, le=4096, description="links in flight; more cores take more processes")
    ] = 64
    """Links in flight per process. 64 keep one core busy if servers respond within 0.2 s."""
    per_host: Annotated[int, Field(ge=1, le=4096, description="requests in flight")] = 8
    """Requests in flight to one host, over all workers together. More than a few overload small web servers."""
    per_host_rate: Annotated[
        float, Field(ge=0.0, le=1e6, description="requests per second; 0 sets no limit")
    ] = 0.0
    """Requests per second to one host, over all workers together. 0: no limit.
    `per_host` alone already slows a crawl down."""
    deadline_s: Annotated[float, Field(ge=0.01, le=86400.0, description="seconds per link")] = 30.0
    """Seconds for one link, including redirects, retries and waits. Waiting for our own limits does not count."""
    connect_timeout_s: Annotated[float, Field(ge=0.01, le=3600.0, description="seconds")] = 10.0
    """Seconds for the name lookup, and the same again for TCP and TLS together."""
    read_timeout_s: Annotated[float, Field(ge=0.01, le=3600.0, description="seconds")] = 10.0
    """Seconds without a byte after which an attempt fails. It is retried while the deadline allows."""
    max_bytes: Annotated[int, Field(ge=1, le=1 << 40, description="bytes of one body")] = 16 * MIB
    """Maximum bytes of one body, both as sent and after decompression. Photos on the web rarely reach 10 MB."""
    max_shard_bytes: Annotated[
        int, Field(ge=1, le=1 << 40, description="bytes of what the links of one shard give")
    ] = 512 * MIB
    """Maximum bytes from the links of one shard; its remaining links are then dropped (`shard_full`).
    A worker needs about four times as much memory. 1,000 documents take about 100 MB.
    For larger documents, use fewer --samples-per-shard."""
    max_redirects: Annotated[int, Field(ge=0, le=50, description="redirects; 0 follows none")] = 5
    """Redirects to follow per link, 0 to 50. Browsers allow 20; most image hosts need one or two."""
    retries: Annotated[int, Field(ge=0, le=100, description="retries; 0 makes one attempt")] = 2
    """Further attempts after a retryable failure: timeout, lost connection, 429 or 5xx."""
    backoff_s: Annotated[
        float, Field(ge=0.0, le=3600.0, description="seconds before the first retry")
    ] = 0.5
    """Seconds before the first retry, varied by up to half; doubled for each further retry.
    After 429 or 503 the whole host pauses for the time in Retry-After, or for this time without one."""
    breaker_failures: Annotated[int, Field(ge=1, le=1_000_000, description="failures in a row")] = 5
    """A host gets no requests after this number of failures in a row.
    Failures are refused or lost connections, timeouts, 429 and 503."""
    breaker_pause_s: Annotated[float, Field(ge=0.0, le=1e7, description="seconds")] = 300.0
    """Seconds for which such a host gets no requests (longer if its Retry-After is longer).
    The links to it get the reason of its last failure."""
    host_budget_s: Annotated[float, Field(ge=0.0, le=1e7, description="seconds")] = 300.0
    """Maximum seconds that one host may cost a shard: pauses, plus links that timed out divided by `per_host`.
    Its remaining links then get the reason of its last failure."""
    user_agent: str = "EmuPlatform/0.1 (builds image datasets)"
    """The User-Agent header; add a contact address. Its first word is the agent name matched in X-Robots-Tag."""
    respect_robots_tag: bool = True
    """Skip images whose X-Robots-Tag contains noai, noimageai, noindex, noimageindex or none."""
    allow_host: tuple[str, ...] = ()
    """HOST=IP:PORT: connect to this address for this host, even if it is private. For mirrors and tests."""
    ca_file: Path | None = None
    """PEM file of certificate authorities to trust in addition to those of the system."""
    body_budget_bytes: Annotated[
        int, Field(ge=1, le=1 << 44, description="bytes of bodies in memory at once")
    ] = 256 * MIB
    """Maximum bytes of bodies in memory at once, from arrival to the end of conversion.
    At least `max_bytes`."""
    convert_threads: Annotated[int, Field(ge=1, le=256, description="threads")] = 1
    """Threads per process that convert bodies as they arrive. 1 is best if every core runs a process."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.body_budget_bytes < self.max_bytes:
            raise ConfigError(
                f"body_budget_bytes is {self.body_budget_bytes}, below max_bytes {self.max_bytes}: "
                "the largest body would never fit; raise the one or lower the other"
            )
        if not agent_token(self.user_agent) or not self.user_agent.isprintable():
            raise ConfigError(
                f"user_agent is {self.user_agent!r}, give a first word and printable characters, "
                "such as 'MyCrawler/1.0 (me@my.example)'"
            )
        if len(self.user_agent) > MAX_AGENT_LENGTH:
            raise ConfigError(
                f"user_agent has {len(self.user_agent):,} characters, give at most {MAX_AGENT_LENGTH:,}: "
                "servers refuse longer headers"
            )
        if self.ca_file is not None:
            _check_authorities(self.ca_file)
        parse_allowed_hosts(self.allow_host)


def _check_authorities(path: Path) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except OSError as error:  # an SSLError is one
        raise ConfigError(
            f"ca_file is {str(path)!r}: {error.strerror or error}; give a PEM file of certificates"
        ) from error


def parse_allowed_hosts(entries: tuple[str, ...]) -> Mapping[str, tuple[str, int]]:
    """IP address and port by host (lower case), from entries of the form HOST=IP:PORT or HOST=[IPv6]:PORT.

    A HOST that is itself an address stands for itself, on that port only.

    Raises:
        ConfigError: an entry of another form; a host named twice.
    """
    allowed: dict[str, tuple[str, int]] = {}
    for entry in entries:
        host, target = _parse_entry(entry)
        if allowed.setdefault(host, target) != target:
            raise ConfigError(f"allow_host {entry!r}: {host} is already mapped to another address")
    return allowed


def _parse_entry(entry: str) -> tuple[str, tuple[str, int]]:
    from pipelines.download.urls import (
        literal_address,  # brings aiohttp, which a command line need not
    )

    host, equals, target = entry.partition("=")
    ip, colon, port = target.rpartition(":")
    host, ip = host.strip().lower().rstrip("."), ip.strip().removeprefix("[").removesuffix("]")
    form = f"allow_host {entry!r}: give HOST=IP:PORT, such as images.example=127.0.0.1:8000"
    if not (host and equals and colon and port.isascii() and port.isdigit()) or "/" in host:
        raise ConfigError(form)
    if not 1 <= int(port) <= 65535:
        raise ConfigError(f"allow_host {entry!r}: port {port} is not in 1..65535")
    try:
        canonical = str(ip_address(ip))
        literal = literal_address(host)
    except ValueError:
        raise ConfigError(form) from None
    if literal is not None and literal != canonical:
        raise ConfigError(f"allow_host {entry!r}: an address as HOST can only stand for itself")
    return literal or host, (canonical, int(port))


FORBIDDING = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none"})
"""Directives of X-Robots-Tag that forbid the use; `none` is short for noindex and nofollow."""

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
