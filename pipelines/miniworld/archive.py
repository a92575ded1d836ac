"""Files of lines, plain or compressed, whose bytes depend on the lines alone (no times, no names of users)."""

from __future__ import annotations

import gzip
import io
import zipfile
from collections.abc import Iterable
from pathlib import Path

_NO_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip can say


def write_lines(path: Path, lines: Iterable[bytes]) -> None:
    """Writes the lines, each ended by a line feed; `.gz` and `.zip` (of one member) compress.

    The member of a zip is named as the file without `.zip`, as MMC4 distributes its shards.
    """
    data = b"".join(line + b"\n" for line in lines)
    path.write_bytes(_PACK[path.suffix](path, data) if path.suffix in _PACK else data)


def _zip(path: Path, data: bytes) -> bytes:
    member = zipfile.ZipInfo(path.name.removesuffix(".zip"), date_time=_NO_TIME)
    member.compress_type = zipfile.ZIP_DEFLATED
    member.create_system = 3  # Unix, whatever system writes it
    member.external_attr = 0o644 << 16
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(member, data)
    return out.getvalue()


def _gzip(path: Path, data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


_PACK = {".zip": _zip, ".gz": _gzip}
