"""The columns of samples, as steps read them: texts, images, metadata and web addresses of a table of records.

A table that has no segments yet gives no texts and images; one without metadata gives empty metadata.
"""

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc

_SPACE = re.compile(r"\s+")
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class SegmentColumns:
    """The segments of a table, flattened: for each its row, and its fields without the bytes of images."""

    row: pa.Array
    flat: pa.Array

    @classmethod
    def of(cls, table: pa.Table) -> "SegmentColumns":
        """The segments of a table that has them."""
        column = table["segments"].combine_chunks()
        return cls(pc.list_parent_indices(column), pc.list_flatten(column))

    def field(self, name: str) -> pa.Array:
        """A field of every segment."""
        return pc.struct_field(self.flat, name)

    def of_kind(self, kind: str) -> "SegmentColumns":
        """The segments of one kind, `text` or `image`."""
        chosen = pc.equal(self.field("kind"), kind)
        return SegmentColumns(self.row.filter(chosen), self.flat.filter(chosen))


def has_segments(table: pa.Table) -> bool:
    """True once the records are samples."""
    return "segments" in table.column_names


def texts_of(table: pa.Table) -> list[list[str]]:
    """The texts of each record, in order."""
    return _gathered(table, "text", "text")


def images_of(table: pa.Table) -> list[list[bytes]]:
    """The encoded bytes of the images of each record, in order."""
    return _gathered(table, "image", "image")


def _gathered(table: pa.Table, kind: str, name: str) -> list[list[Any]]:
    found: list[list[Any]] = [[] for _ in range(table.num_rows)]
    if has_segments(table):
        segments = SegmentColumns.of(table).of_kind(kind)
        values = segments.field(name).to_pylist()
        for row, value in zip(segments.row.to_pylist(), values, strict=True):
            found[row].append(value)
    return found


def metas_of(table: pa.Table) -> Iterator[Mapping[str, Any]]:
    """The metadata of each record; of an adopted sample also the fields of its JSON (`fields`), by their own names."""
    if "meta" not in table.column_names:
        yield from ({} for _ in range(table.num_rows))
        return
    for text in table["meta"].to_pylist():
        meta = json.loads(text) if text else {}
        fields = meta.get("fields")
        yield {**fields, **meta} if isinstance(fields, dict) else meta


def urls_of(table: pa.Table) -> list[list[str]]:
    """The web addresses that each record has: of its links that were not dropped, and those of its metadata."""
    found = []
    num = table.num_rows
    pages = table["url"].to_pylist() if "url" in table.column_names else [None] * num
    links_of = table["links"].to_pylist() if "links" in table.column_names else [None] * num
    for page, links, meta in zip(pages, links_of, metas_of(table), strict=True):
        own = [link["url"] for link in links or () if link["reason"] is None and link["url"]]
        named = [page, meta.get("url"), *_strings(meta.get("image_url"))]
        found.append(list(dict.fromkeys([*own, *(u for u in named if isinstance(u, str) and u)])))
    return found


def _strings(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def normalised_url(url: str) -> str:
    """The address without what does not change the resource: scheme, case of the host, default port, fragment."""
    try:
        parts = urlsplit(url.strip())
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        return url.strip()
    if not host:
        return url.strip()
    place = host if port in (None, 80, 443) else f"{host}:{port}"
    query = f"?{parts.query}" if parts.query else ""
    return f"{place}{parts.path or '/'}{query}"


def normalised_text(text: str) -> str:
    """The text in NFKC, case folded, with single spaces: what counts as the same text."""
    return _SPACE.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()


def words_of(text: str) -> list[str]:
    """The words of a normalised text: runs of letters, digits and underscores."""
    return _WORD.findall(normalised_text(text))


def verdicts(found: list[tuple[str, str | None] | None]) -> pa.Array:
    """What the test of a filter returns: for each record null, or a reason with its detail."""
    pairs = [item or (None, None) for item in found]
    columns = [pa.array([p[n] for p in pairs], pa.string()) for n in (0, 1)]
    return pa.StructArray.from_arrays(columns, ["reason", "detail"])
