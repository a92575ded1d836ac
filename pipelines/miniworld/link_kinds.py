"""How the links of the synthetic world behave; shared by its documents and its server.

The first part of a link's path names its kind: `http://images.miniworld.example/not_found/NAME`.
A server that knows this table therefore needs no list of links.
"""

from __future__ import annotations

from dataclasses import dataclass

IMAGE_HOST = "images.miniworld.example"
"""The host of all images; a reserved name (RFC 2606), to be mapped to the local server."""

PAGE_HOST = "pages.miniworld.example"
"""The host of the pages that documents claim to come from; it is never fetched."""

REFUSED_ADDRESS = "127.0.0.1:9"
"""A loopback address that a fetcher must refuse to connect to (port 9: discard, RFC 863)."""


@dataclass(frozen=True)
class LinkKind:
    """The result of a link: whether a usable image arrives in the end, and whether an image file exists for it."""

    arrives: bool
    has_file: bool
    meaning: str
    url: str = f"http://{IMAGE_HOST}/{{kind}}/{{name}}"


LINK_KINDS: dict[str, LinkKind] = {
    "image": LinkKind(True, True, "200 with the image"),
    "redirect": LinkKind(True, True, "302 to the image under `image`"),
    "throttled": LinkKind(True, True, "429 with Retry-After at the first request, then the image"),
    "flaky": LinkKind(True, True, "500 at the first request, then the image"),
    "not_found": LinkKind(False, False, "404"),
    "forbidden": LinkKind(False, False, "403"),
    "html": LinkKind(False, False, "200 with a web page declared as image/jpeg"),
    "empty": LinkKind(False, False, "200 without a body"),
    "truncated": LinkKind(False, True, "200 with the first half of the image's bytes"),
    "noai": LinkKind(False, True, "the image, with X-Robots-Tag: noai"),
    "huge": LinkKind(False, False, "a valid PNG of 400 megapixels in about 50 kB"),
    "redirect_loopback": LinkKind(False, False, "302 to a loopback address"),
    "loopback": LinkKind(
        False,
        False,
        "a loopback address in the document itself",
        f"http://{REFUSED_ADDRESS}/{{name}}",
    ),
    "local_file": LinkKind(False, False, "a file: address", "file:///{name}"),
}
"""Every kind by name. `arrives` assumes a fetcher that retries and respects robots tags."""


def link_url(kind: str, name: str) -> str:
    """The URL of the image file `name` whose link behaves as `kind`."""
    return LINK_KINDS[kind].url.format(kind=kind, name=name)
