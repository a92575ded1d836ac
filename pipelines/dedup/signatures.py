"""What of a sample is compared with others: 64-bit hashes of addresses, images and texts, and MinHash signatures.

| column                | of                                                                                        |
|-----------------------|-------------------------------------------------------------------------------------------|
| `duplicate_url`       | the address in `meta` (`url`), else that of the only link; without scheme and fragment       |
| `duplicate_sample`    | the bytes of all images and all texts, in order                                           |
| `duplicate_image`     | the bytes of all images, in order                                                         |
| `duplicate_text`      | all texts: NFKC, case folded, single spaces                                               |
| `duplicate_near_image`| the perceptual hashes of all images, in order, as a list                                  |
| `duplicate_near_text` | 128 MinHash values over runs of 5 characters of the normalised text                       |

A sample that has no such thing has null there. Only the columns that are asked for are made.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.columns import images_of, metas_of, normalised_text, normalised_url, texts_of
from pipelines.dedup.candidates import NUM_PERMUTATIONS
from pipelines.images.perceptual_hash import perceptual_hash

PREFIX = "duplicate_"
SHINGLE = 5
"""Characters: runs of characters serve all languages, and captions of few words."""
SEED = 1
SIGNATURE = pa.binary(4 * NUM_PERMUTATIONS)


@dataclass(frozen=True)
class Signatures:
    """Transform: adds a column for each kind of duplicate."""

    kinds: tuple[str, ...]

    def __call__(self, table: pa.Table) -> pa.Table:
        """The table with its signatures; nothing is dropped."""
        for kind in self.kinds:
            table = table.append_column(PREFIX + kind, signature_column(table, kind))
        return table


def signature_column(table: pa.Table, kind: str) -> pa.Array:
    """The signatures of one kind."""
    return _MAKERS[kind](table)


def minhash(texts: Iterable[str]) -> list[bytes | None]:
    """The signature of each normalised text, 128 values of 4 bytes; null for a text without characters."""
    import rensa  # only these kinds of duplicates need it

    found: list[bytes | None] = []
    for text in texts:
        if not text:
            found.append(None)
            continue
        sketch = rensa.RMinHash(NUM_PERMUTATIONS, SEED)  # pyright: ignore[reportAttributeAccessIssue]
        sketch.update(shingles(text))
        found.append(np.array(sketch.digest(), "<u4").tobytes())
    return found


def shingles(text: str) -> list[str]:
    """The runs of `SHINGLE` characters of a text, each once, in order; a shorter text is one."""
    runs = (text[n : n + SHINGLE] for n in range(max(1, len(text) - SHINGLE + 1)))
    return list(dict.fromkeys(runs))


def _urls(table: pa.Table) -> pa.Array:
    found = []
    links_of = table["links"].to_pylist() if "links" in table.column_names else [None] * len(table)
    for meta, links in zip(metas_of(table), links_of, strict=True):
        url: Any = meta.get("url") or (links[0]["url"] if links and len(links) == 1 else None)
        is_url = isinstance(url, str) and bool(url)
        found.append(_hash([normalised_url(url).encode(errors="replace")]) if is_url else None)
    return pa.array(found, pa.uint64())


def _samples(table: pa.Table) -> pa.Array:
    rows = zip(images_of(table), texts_of(table), strict=True)
    found = [_hash([*i, b"\0texts", *(t.encode() for t in texts)]) for i, texts in rows]
    return pa.array(found, pa.uint64())


def _images(table: pa.Table) -> pa.Array:
    return pa.array([_hash(images) if images else None for images in images_of(table)], pa.uint64())


def _texts(table: pa.Table) -> pa.Array:
    found = [_hash([text.encode()]) if text else None for text in _normalised(table)]
    return pa.array(found, pa.uint64())


def _near_images(table: pa.Table) -> pa.Array:
    rows = images_of(table)
    found = [[perceptual_hash(image) for image in images] or None for images in rows]
    return pa.array(found, pa.list_(pa.uint64()))


def _near_texts(table: pa.Table) -> pa.Array:
    return pa.array(minhash(_normalised(table)), SIGNATURE)


def _normalised(table: pa.Table) -> list[str]:
    return [normalised_text(" ".join(texts)) for texts in texts_of(table)]


def _hash(parts: Iterable[bytes]) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return int.from_bytes(digest.digest(), "little")


_MAKERS: Mapping[str, Callable[[pa.Table], pa.Array]] = MappingProxyType(
    {
        "url": _urls,
        "sample": _samples,
        "image": _images,
        "text": _texts,
        "near_image": _near_images,
        "near_text": _near_texts,
    }
)
