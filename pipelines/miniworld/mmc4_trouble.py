"""What can be wrong with a drawn MMC4 document, one trouble a document, each with a name.

A trouble is a link kind (one picture's link behaves so), a trouble of the whole document, or a
malformed line. They take turns over the troubled documents, so that a world of some size has all.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from pipelines.miniworld.config import MiniworldConfig
from pipelines.miniworld.link_kinds import LINK_KINDS

Document = dict[str, Any]

LOW_SIMILARITY = "low_similarity"
"""One picture of which no sentence speaks: its link arrives, its similarity stays low."""
DEAD_LINKS = "dead_links"
"""Every link of the document answers 404."""
NO_IMAGES = "no_images"
"""A well-formed document without a picture."""


def to_line(document: Document) -> bytes:
    """The document as one line of JSON, without its line end."""
    return json.dumps(document, ensure_ascii=False).encode()


def _cut_line(document: Document) -> bytes:
    line = to_line(document)
    return line[: len(line) * 2 // 3]


def _not_utf8(document: Document) -> bytes:
    return to_line(document).replace(b'"text_list": ["', b'"text_list": ["\xff\xfe', 1)


def _not_an_object(document: Document) -> bytes:
    return json.dumps(document["text_list"]).encode()


def _missing_field(document: Document) -> bytes:
    return to_line({name: value for name, value in document.items() if name != "text_list"})


def _wrong_type(document: Document) -> bytes:
    return to_line(document | {"text_list": " ".join(document["text_list"])})


def _short_matrix(document: Document) -> bytes:
    first, *others = document["similarity_matrix"]
    return to_line(document | {"similarity_matrix": [first[:-1], *others]})


def _index_out_of_range(document: Document) -> bytes:
    first, *others = document["image_info"]
    first = first | {"matched_text_index": len(document["text_list"])}
    return to_line(document | {"image_info": [first, *others]})


MALFORMED: dict[str, Callable[[Document], bytes]] = {
    "cut_line": _cut_line,
    "missing_field": _missing_field,
    "short_matrix": _short_matrix,
    "index_out_of_range": _index_out_of_range,
    "wrong_type": _wrong_type,
    "not_utf8": _not_utf8,
    "not_an_object": _not_an_object,
}
"""Spoilt lines by kind: a well-formed document with a picture goes in, the bytes of a bad line come out."""

_OF_DOCUMENTS = (LOW_SIMILARITY, DEAD_LINKS, NO_IMAGES)

TROUBLES: tuple[str, ...] = (
    *("not_found", LOW_SIMILARITY, "cut_line", "throttled", "html", "missing_field", "noai"),
    *("loopback", DEAD_LINKS, "redirect", "truncated", "short_matrix", "flaky", NO_IMAGES, "huge"),
    *("index_out_of_range", "redirect_loopback", "empty", "wrong_type", "forbidden", "local_file"),
    *("not_utf8", "not_an_object"),
)
"""Every trouble, in the order in which they appear in a world: the common ones first."""

assert set(TROUBLES) == {*LINK_KINDS, *MALFORMED, *_OF_DOCUMENTS} - {"image"}


def trouble_of(config: MiniworldConfig, index: int) -> str | None:
    """The trouble of the document at `index`, or None; troubled documents are evenly spread."""
    turn = int(index * config.bad_share + 1e-9)
    is_troubled = int((index + 1) * config.bad_share + 1e-9) > turn
    return TROUBLES[turn % len(TROUBLES)] if is_troubled else None
