"""X-Robots-Tag: may this fetcher use what a server sent?

Form: `X-Robots-Tag: [agent:] directive[, directive …]`, in any number of headers. An agent holds for
the directives behind it up to the next agent in the same header (several headers may have been joined
by a proxy); without an agent, or with `*`, directives are for everybody. Source: the description at
developers.google.com/search/docs/crawling-indexing/robots-meta-tag; noai and noimageai by DeviantArt.
"""

import re
from collections.abc import Iterable

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
