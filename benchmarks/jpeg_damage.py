"""What becomes of corrupted JPEGs: kept or refused, beside whether a pixel is lost.

    python -m benchmarks.jpeg_damage photos/*.jpg

Prints JSON lines: a confusion table for each kind of corruption. The oracle decodes with libjpeg-turbo, whatever it
warns of, and compares with the pixels of the whole file. Some damage no decoder can notice, because the bits stand for
other valid coefficients: what is kept with other pixels is counted apart where libjpeg has nothing to warn of.
"""

import io
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import simplejpeg
import tyro
from PIL import Image

from schemas.images import ImageError, decode_image

FORMS = ("as they are", "progressive", "restart markers")
OTHER_FORMS: dict[str, dict[str, Any]] = {
    "progressive": {"progressive": True},
    "restart markers": {"restart_marker_rows": 1},
    "no subsampling": {"subsampling": 0, "optimize": True},
    "half subsampling": {"subsampling": 1},
}
GREY = "grey"


@dataclass(frozen=True)
class DamageTrial:
    """Corrupts JPEGs at random places, and counts what is kept."""

    photos: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """JPEG files."""
    num_photos: int = 40
    """Taken at random of these."""
    num_each: int = 1
    """Corruptions of each kind for each photo in each form."""
    seed: int = 0
    """Of the choice of photos and of the corruptions."""
    forms: tuple[str, ...] = FORMS
    """In which each photo is corrupted: also "no subsampling", "half subsampling" and "grey"."""


def run_trial(options: DamageTrial) -> Iterator[dict[str, Any]]:
    """One record for each kind of corruption, then one for all."""
    rng = random.Random(options.seed)
    photos = rng.sample(sorted(options.photos), min(options.num_photos, len(options.photos)))
    total: Counter[str] = Counter()
    for kind, corrupt in KINDS.items():
        counts: Counter[str] = Counter()
        for name in photos:
            for form in options.forms:
                whole = _in_form(name.read_bytes(), form)
                pixels = _pixels(whole, strict=True)
                assert pixels is not None, f"{name}, {form}: not a whole JPEG"
                for _ in range(options.num_each):
                    counts[_fate(corrupt(whole, rng), pixels)] += 1
        total += counts
        yield {"kind": kind, **dict(sorted(counts.items()))}
    yield {
        "kind": "all",
        "photos": len(photos),
        "forms": len(options.forms),
        **dict(sorted(total.items())),
    }


def _fate(data: bytes, pixels: np.ndarray) -> str:
    try:
        image = decode_image(data)
    except ImageError:
        found = _pixels(data, strict=False)
        is_whole = found is not None and np.array_equal(found, pixels)
        return "refused, no pixel lost" if is_whole else "refused, pixels lost"
    shown = np.asarray(image.convert("RGB"))
    if np.array_equal(shown, pixels):
        return "kept, no pixel lost"
    is_silent = _pixels(data, strict=True) is not None
    return "kept, other pixels, valid JPEG" if is_silent else "kept, other pixels, libjpeg warns"


def _pixels(data: bytes, strict: bool) -> np.ndarray | None:
    try:
        return simplejpeg.decode_jpeg(data, strict=strict)
    except ValueError:
        return None


def _in_form(data: bytes, form: str) -> bytes:
    """The photo as a file of the form, without marks of an orientation."""
    image, out = Image.open(io.BytesIO(data)).convert("L" if form == GREY else "RGB"), io.BytesIO()
    if form == FORMS[0]:
        if (
            "exif" not in Image.open(io.BytesIO(data)).info
            and _pixels(data, strict=True) is not None
        ):
            return data
    elif form not in (*OTHER_FORMS, GREY):
        raise SystemExit(
            f"--forms: no form is called {form!r}; take some of {[*FORMS, *OTHER_FORMS, GREY]}"
        )
    image.save(out, "JPEG", quality=90, **OTHER_FORMS.get(form, {}))
    return out.getvalue()


def _scan(data: bytes) -> int:
    """Where the first scan begins: corruptions of headers are trivial."""
    return data.index(b"\xff\xda") + 14


def _at(data: bytes, rng: random.Random) -> int:
    return rng.randrange(_scan(data), len(data) - 2)


def _replaced(data: bytes, rng: random.Random, new: bytes) -> bytes:
    place = _at(data, rng)
    return data[:place] + new + data[place + len(new) :]


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: _at(data, rng)]


def _cut_closed(data: bytes, rng: random.Random) -> bytes:
    return data[: _at(data, rng)] + b"\xff\xd9"


def _bit(data: bytes, rng: random.Random) -> bytes:
    place = _at(data, rng)
    return _spliced(data, place, bytes([data[place] ^ 1 << rng.randrange(8)]), 1)


def _removed(data: bytes, rng: random.Random) -> bytes:
    return _spliced(data, _at(data, rng), b"", rng.choice((1, 16, 512)))


def _inserted(data: bytes, rng: random.Random) -> bytes:
    return _spliced(data, _at(data, rng), rng.randbytes(rng.choice((1, 16, 512))), 0)


def _spliced(data: bytes, place: int, new: bytes, num_gone: int) -> bytes:
    return data[:place] + new + data[place + num_gone :]


def _without_end(data: bytes, rng: random.Random) -> bytes:
    return data.removesuffix(b"\xff\xd9")


def _before_end(data: bytes, rng: random.Random) -> bytes:
    new = rng.choice((b"\0", b"\xff", b"\x20")) * rng.choice((1, 4, 500))
    return data.removesuffix(b"\xff\xd9") + new + b"\xff\xd9"


def _noise_before_end(data: bytes, rng: random.Random) -> bytes:
    new = rng.randbytes(rng.choice((1, 16, 500))).replace(b"\xff", b"\xfe")
    return data.removesuffix(b"\xff\xd9") + new + b"\xff\xd9"


def _filled_up(data: bytes, rng: random.Random) -> bytes:
    """As an interrupted transfer into a file of the whole length leaves it."""
    place = _at(data, rng)
    return data[:place] + bytes(len(data) - place)


def _filled_up_closed(data: bytes, rng: random.Random) -> bytes:
    return _filled_up(data, rng)[:-2] + b"\xff\xd9"


def _after_end(data: bytes, rng: random.Random) -> bytes:
    return data + rng.randbytes(rng.choice((1, 16, 5000)))


KINDS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "cut": _cut,
    "cut, with an end marker": _cut_closed,
    "one bit flipped": _bit,
    "16 bytes of noise": lambda data, rng: _replaced(data, rng, rng.randbytes(16)),
    "512 bytes of noise": lambda data, rng: _replaced(data, rng, rng.randbytes(512)),
    "512 bytes of zeros": lambda data, rng: _replaced(data, rng, bytes(512)),
    "bytes removed": _removed,
    "bytes inserted": _inserted,
    "end marker missing": _without_end,
    "padding before the end marker": _before_end,
    "noise before the end marker": _noise_before_end,
    "noise behind the end marker": _after_end,
    "zeros to the end": _filled_up,
    "zeros up to the end marker": _filled_up_closed,
}


if __name__ == "__main__":
    for record in run_trial(tyro.cli(DamageTrial, description=__doc__)):
        print(json.dumps(record), flush=True)
