"""What writes samples into a tar, in the layout of `schemas.shard`: members, headers, and rows of the index.

    writer = TarWriter(file, "mmc4-000000")
    writer.add(key, corpus, segments, meta, scores)   # for each sample
    rows = writer.end()

The values of samples are checked before they come here (`schemas.sample.checked_meta`, or a whole table at a time).
Frames of storyboards are 2 kB each: what is done per member costs as much as their pixels, so the JSON of segments is
put together from its pieces, and bytes are written in blocks of about a megabyte.
"""

import hashlib
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from json.encoder import encode_basestring
from typing import Any, BinaryIO

from schemas.sample import SAMPLE_VERSION

BLOCK = tarfile.BLOCKSIZE
_BYTES_AT_ONCE = 1 << 20

Encoded = bytes | memoryview
SegmentValues = tuple[
    str, str | None, Encoded | None, str | None, int | None, int | None, float | None, str | None
]
"""The fields of `schemas.sample.SEGMENT_TYPE`, in order."""


class TarWriter:
    """Samples of a shard, written one after another.

    Args:
        file: gets the bytes, in few calls.
        shard: its name.
    """

    def __init__(self, file: BinaryIO, shard: str) -> None:
        self._file, self._shard = file, shard
        self._rows: list[dict[str, Any]] = []
        self._pieces: list[Encoded] = []
        self._num_written = self._position = 0

    def add(
        self,
        key: str,
        corpus: str,
        segments: Sequence[SegmentValues],
        meta: str,
        scores: Mapping[str, Any],
    ) -> None:
        """Write a sample.

        Args:
            key: of the sample.
            corpus: of the sample.
            segments: its texts and images.
            meta: canonical JSON.
            scores: the field `scores` of the meta.
        """
        places = []
        for suffix, data in members_of(key, corpus, segments, meta):
            size = len(data)
            padding = -size % BLOCK
            self._pieces += (header(f"{key}.{suffix}", size), data, bytes(padding))
            places.append({"name": suffix, "offset": self._position + BLOCK, "size": size})
            self._position += BLOCK + size + padding
        self._rows.append(row_of(key, self._shard, segments, scores, places))
        if self._position - self._num_written >= _BYTES_AT_ONCE:
            self._write()

    def end(self) -> list[dict[str, Any]]:
        """Write the end of the tar, and return the rows of the index."""
        self._pieces.append(bytes(2 * BLOCK))
        self._write()
        return self._rows

    def _write(self) -> None:
        self._file.write(b"".join(self._pieces))
        self._pieces.clear()
        self._num_written = self._position


def members_of(
    key: str, corpus: str, segments: Sequence[SegmentValues], meta: str
) -> list[tuple[str, Encoded]]:
    """The tar members of a sample as (suffix, bytes), in the order of the layout."""
    if _is_pair(segments):
        image, text = sorted(segments, key=lambda values: values[0])  # by kind
        suffix = str(image[3])
        described = [_described(s, suffix if s[0] == "image" else "txt") for s in segments]
        document = _document(key, corpus, described, meta)
        return [(suffix, image[2] or b""), ("txt", (text[1] or "").encode()), ("json", document)]
    images = [(f"{n}.{s[3]}", s[2] or b"") for n, s in enumerate(_images(segments))]
    names = iter(images)
    described = [_described(s, next(names)[0] if s[0] == "image" else None) for s in segments]
    return [("json", _document(key, corpus, described, meta)), *images]


def row_of(
    key: str,
    shard: str,
    segments: Sequence[SegmentValues],
    scores: Mapping[str, Any],
    places: list[dict[str, Any]],
) -> dict[str, Any]:
    """The row of the index (see `schemas.tables.INDEX`) of a sample whose members are at `places`."""
    texts = [s[1] or "" for s in segments if s[0] == "text"]
    images = list(_images(segments))
    return {
        "key": key,
        "shard": shard,
        "members": places,
        "num_segments": len(segments),
        "num_images": len(images),
        "text_length": sum(map(len, texts)),
        "image_widths": [s[4] for s in images],
        "image_heights": [s[5] for s in images],
        "image_sha256": [hashlib.sha256(s[2] or b"").hexdigest() for s in images],
        "text_sha256": hashlib.sha256("".join(f"{t}\0" for t in texts).encode()).hexdigest(),
        "scores": sorted((name, float(value)) for name, value in scores.items()),
    }


def _images(segments: Sequence[SegmentValues]) -> Iterator[SegmentValues]:
    return (s for s in segments if s[0] == "image")


def _is_pair(segments: Sequence[SegmentValues]) -> bool:
    """One image and one text, without time or role."""
    if len(segments) != 2 or segments[0][0] == segments[1][0]:
        return False
    return all(time_s is None and role is None for *_, time_s, role in segments)


def _described(segment: SegmentValues, member: str | None) -> str:
    """The canonical JSON of a segment: names in the order of the alphabet, no spaces."""
    kind, text, _, _, width, height, time_s, role = segment
    more = "" if role is None else f',"role":"{role}"'
    time = "" if time_s is None else f',"time_s":{_number(time_s)}'
    if kind == "image":
        return (
            f'{{"height":{height},"kind":"image","member":"{member}"{more}{time},"width":{width}}}'
        )
    if member is not None:
        return f'{{"kind":"text","member":"{member}"{more}{time}}}'
    return f'{{"kind":"text"{more},"text":{encode_basestring(text or "")}{time}}}'


def _number(value: float) -> str:
    return float.__repr__(value) if isinstance(value, float) else int.__repr__(value)


def _document(key: str, corpus: str, described: Sequence[str], meta: str) -> bytes:
    """Canonical JSON; keys and names of corpora have nothing to escape."""
    segments = ",".join(described)
    return (
        f'{{"corpus":"{corpus}","key":"{key}","meta":{meta},"schema":"sample/{SAMPLE_VERSION}",'
        f'"segments":[{segments}]}}'
    ).encode()


def header(name: str, size: int) -> bytes:
    """The ustar header of a member, as `TarInfo.tobuf` writes it, with fixed time, owner and mode.

    It is put together here for names of up to 99 characters, in a tenth of the time.
    """
    encoded = name.encode()
    if len(encoded) > 99 or not name.isascii() or size >= 8**11:
        return _whole_header(name, size)
    octal = b"%011o" % size
    # The checksum counts its own field as blanks (POSIX.1-1988, ustar).
    checksum = _EMPTY_SUM + sum(encoded) + sum(octal)
    return b"%b%b%b%b%06o%b" % (
        encoded.ljust(100, b"\0"),
        _EMPTY_HEADER[100:124],
        octal,
        _EMPTY_HEADER[135:148],
        checksum,
        _BEHIND_SUM,
    )


def _whole_header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = size, 0, 0o644
    return info.tobuf(tarfile.USTAR_FORMAT)


_EMPTY_HEADER = _whole_header("", 0)
_BEHIND_SUM = b"\0 " + _EMPTY_HEADER[156:]
_EMPTY_SUM = sum(_EMPTY_HEADER[:148]) + 8 * 0x20 + sum(_EMPTY_HEADER[156:]) - 11 * 0x30
