"""What writes samples into a tar, in the layout of `schemas.shard`: members, headers, and rows of the index.

    writer = TarWriter(file, "mmc4-000000")
    writer.add(key, corpus, segments, meta, scores)   # for each sample
    rows = writer.end()

The values of samples are checked before they come here (`schemas.sample.checked_meta`, or a whole table at a time).
Frames of storyboards are 2 kB each: what is done per member costs as much as their pixels. So segments come as columns,
their JSON is put together from its pieces, what recurs in headers is kept, and bytes are written in large blocks.
"""

import hashlib
import tarfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from json.encoder import encode_basestring
from typing import Any, BinaryIO

from schemas.sample import SAMPLE_VERSION, Encoded, Segments

BLOCK = tarfile.BLOCKSIZE
_BYTES_AT_ONCE = 1 << 18
"""Few enough to be in the cache of a core when they are hashed and written."""


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
        self, key: str, corpus: str, segments: Segments, meta: str, scores: Mapping[str, Any]
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
        begin = f"{key}.".encode()
        begin_sum, position = sum(begin), self._position
        for suffix, data in members_of(key, corpus, segments, meta):
            size = len(data)
            padding = _PADDINGS[-size % BLOCK]
            self._pieces += (_header(begin, begin_sum, suffix, size), data, padding)
            position += BLOCK
            places.append({"name": suffix, "offset": position, "size": size})
            position += size + len(padding)
        self._position = position
        self._rows.append(row_of(key, self._shard, segments, scores, places))
        if position - self._num_written >= _BYTES_AT_ONCE:
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


def members_of(key: str, corpus: str, segments: Segments, meta: str) -> list[tuple[str, Encoded]]:
    """The tar members of a sample as (suffix, bytes), in the order of the layout."""
    if segments.is_pair:
        (suffix,), (image,), (text,) = segments.formats, segments.images, segments.texts
        document = _document(key, corpus, _described(segments, (suffix,), "txt"), meta)
        return [(suffix, image), ("txt", text.encode()), ("json", document)]
    suffixes = [f"{n}.{format}" for n, format in enumerate(segments.formats)]
    document = _document(key, corpus, _described(segments, suffixes), meta)
    return [("json", document), *zip(suffixes, segments.images, strict=True)]


def row_of(
    key: str,
    shard: str,
    segments: Segments,
    scores: Mapping[str, Any],
    places: list[dict[str, Any]],
) -> dict[str, Any]:
    """The row of the index (see `schemas.tables.INDEX`) of a sample whose members are at `places`."""
    texts = segments.texts
    ended = "\0".join([*texts, ""])
    return {
        "key": key,
        "shard": shard,
        "members": places,
        "num_segments": len(segments.is_image),
        "num_images": len(segments.images),
        "text_length": sum(map(len, texts)),
        "image_widths": segments.widths,
        "image_heights": segments.heights,
        "image_sha256": [_sha256(image).hexdigest() for image in segments.images],
        "text_sha256": _sha256(ended.encode()).hexdigest(),
        "scores": sorted((name, float(value)) for name, value in scores.items()),
    }


_sha256 = hashlib.sha256


def _described(segments: Segments, members: Sequence[str], text_member: str | None = None) -> str:
    """The canonical JSON of the segments: names in the order of the alphabet, no spaces.

    Args:
        segments: of a sample.
        members: of its images.
        text_member: of its text, if that is not in the JSON itself.
    """
    images = zip(members, segments.heights, segments.widths, strict=True)
    texts = iter(segments.texts)
    found = []
    for is_image, time_s, role in zip(
        segments.is_image, segments.times, segments.roles, strict=True
    ):
        time = "" if time_s is None else f',"time_s":{time_s!r}'
        more = time if role is None else f',"role":"{role}"{time}'
        if is_image:
            member, height, width = next(images)
            found.append(
                f'{{"height":{height},"kind":"image","member":"{member}"{more},"width":{width}}}'
            )
        elif text_member is not None:
            found.append(f'{{"kind":"text","member":"{text_member}"{more}}}')
        else:
            begin = "" if role is None else f',"role":"{role}"'
            text = encode_basestring(next(texts))
            found.append(f'{{"kind":"text"{begin},"text":{text}{time}}}')
    return ",".join(found)


def _document(key: str, corpus: str, described: str, meta: str) -> bytes:
    """Canonical JSON; keys and names of corpora have nothing to escape."""
    return (
        f'{{"corpus":"{corpus}","key":"{key}","meta":{meta},"schema":"sample/{SAMPLE_VERSION}",'
        f'"segments":[{described}]}}'
    ).encode()


def _header(begin: bytes, begin_sum: int, suffix: str, size: int) -> bytes:
    """The ustar header of a member, as `TarInfo.tobuf` writes it, with fixed time, owner and mode.

    It is put together here for ASCII names of up to 99 characters, in a tenth of the time.

    Args:
        begin: of the name.
        begin_sum: the sum of its bytes.
        suffix: the rest of the name.
        size: of the member in bytes.
    """
    end, end_sum = _encoded(suffix)
    name = begin + end
    if len(name) > 99 or not name.isascii() or size >= 8**11:
        return _whole_header(name.decode(), size)
    octal = b"%011o" % size
    # The checksum counts its own field as blanks (POSIX.1-1988, ustar).
    checksum = _EMPTY_SUM + begin_sum + end_sum + sum(octal)
    return b"%b%b%b%b%06o%b" % (
        name.ljust(100, b"\0"),
        _BEFORE_SIZE,
        octal,
        _BEHIND_SIZE,
        checksum,
        _BEHIND_SUM,
    )


@lru_cache(4096)
def _encoded(suffix: str) -> tuple[bytes, int]:
    """The bytes of a suffix and their sum; a shard has few different ones."""
    encoded = suffix.encode()
    return encoded, sum(encoded)


def _whole_header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = size, 0, 0o644
    return info.tobuf(tarfile.USTAR_FORMAT)


_PADDINGS = [bytes(size) for size in range(BLOCK)]
_EMPTY_HEADER = _whole_header("", 0)
_BEFORE_SIZE, _BEHIND_SIZE = _EMPTY_HEADER[100:124], _EMPTY_HEADER[135:148]
_BEHIND_SUM = b"\0 " + _EMPTY_HEADER[156:]
_EMPTY_SUM = sum(_EMPTY_HEADER[:148]) + 8 * 0x20 + sum(_EMPTY_HEADER[156:]) - 11 * 0x30
