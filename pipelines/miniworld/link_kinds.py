"""The ways in which a link of the drawn world behaves, shared by its documents and its server.

The first part of a link's path names its kind: `http://images.miniworld.example/not_found/NAME`.
A server that knows this table therefore needs no list of links.
"""

from __future__ import annotations

from dataclasses import dataclass

IMAGE_HOST = "images.miniworld.example"
"""The host of all pictures; a reserved name (RFC 2606), to be mapped onto the local server."""

PAGE_HOST = "pages.miniworld.example"
"""The host of the pages that documents claim to come from; nobody fetches them."""

CLOSED_ADDRESS = "127.0.0.1:9"
"""A loopback address that a fetcher must refuse to visit (port 9: discard, RFC 863)."""


@dataclass(frozen=True)
class LinkKind:
    """What comes of a link: whether a usable picture arrives in the end, and whether a file lies behind it."""

    arrives: bool
    has_file: bool
    meaning: str
    url: str = f"http://{IMAGE_HOST}/{{kind}}/{{name}}"


LINK_KINDS: dict[str, LinkKind] = {
    "image": LinkKind(True, True, "answers with the picture"),
    "redirect": LinkKind(True, True, "302 to the picture under `image`"),
    "throttled": LinkKind(
        True, True, "429 with Retry-After at the first request, then the picture"
    ),
    "flaky": LinkKind(True, True, "500 at the first request, then the picture"),
    "not_found": LinkKind(False, False, "404"),
    "forbidden": LinkKind(False, False, "403"),
    "html": LinkKind(False, False, "200 with a web page that calls itself image/jpeg"),
    "empty": LinkKind(False, False, "200 without a body"),
    "truncated": LinkKind(False, True, "200 with the first half of the picture's bytes"),
    "noai": LinkKind(False, True, "the picture, with X-Robots-Tag: noai"),
    "huge": LinkKind(False, False, "a valid PNG of 400 megapixels in some 50 kB"),
    "redirect_loopback": LinkKind(False, False, "302 to a loopback address"),
    "loopback": LinkKind(
        False,
        False,
        "a loopback address in the document itself",
        f"http://{CLOSED_ADDRESS}/{{name}}",
    ),
    "local_file": LinkKind(False, False, "a file: address", "file:///{name}"),
}
"""Every kind by name. `arrives` presumes a fetcher that retries, and that honours robots tags."""


def link_url(kind: str, name: str) -> str:
    """The address of a picture file `name` whose link behaves as `kind`."""
    return LINK_KINDS[kind].url.format(kind=kind, name=name)
