"""What is left over in a JPEG: bytes that were put there are removed, blocks that damage has left are not."""

import io
import random
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from benchmarks.jpeg_damage import KINDS
from schemas.images import ImageError, decode_image
from schemas.jpeg_scans import MAX_BYTES, without_stray

FORMS = {
    "sequential": {},
    "no subsampling, own tables": {"subsampling": 0, "optimize": True},
    "half subsampling": {"subsampling": 1},
    "restart markers": {"restart_marker_blocks": 5},
    "progressive": {"progressive": True},
    "progressive, restart markers": {"progressive": True, "restart_marker_rows": 1},
    "grey": {},
    "grey, progressive": {"progressive": True},
}
LOST = {"cut", "cut, with an end marker", "zeros to the end", "zeros up to the end marker"}
HARMLESS = {"end marker missing", "padding before the end marker", "noise behind the end marker"}


@pytest.fixture(scope="module")
def files(repository: Path) -> dict[str, bytes]:
    """An image of 135 x 91 pixels, which is no whole number of MCUs, in each form."""
    image = Image.open(repository / "tests" / "bug_cases" / "control.jpg").resize((135, 91))
    return {form: encoded(image, form) for form in FORMS}


def encoded(image: Image.Image, form: str) -> bytes:
    out = io.BytesIO()
    image.convert("L" if form.startswith("grey") else "RGB").save(
        out, "JPEG", quality=90, **FORMS[form]
    )
    return out.getvalue()


def pixels(data: bytes, strict: bool) -> np.ndarray | None:
    try:
        return simplejpeg.decode_jpeg(data, strict=strict)
    except ValueError:
        return None


def is_kept(data: bytes) -> bool:
    try:
        decode_image(data)
    except ImageError as error:
        assert error.reason in ("image_corrupt", "image_truncated")
        return False
    return True


def trials(kind: str, files: dict[str, bytes], num: int) -> Iterator[tuple[str, bytes]]:
    rng = random.Random(kind)
    for form, data in files.items():
        for _ in range(num):
            yield form, KINDS[kind](data, rng)


@pytest.mark.parametrize("form", FORMS)
def test_each_bit_of_a_whole_file_is_accounted_for(form: str, files: dict[str, bytes]) -> None:
    data = files[form]
    assert without_stray(data) == data
    assert without_stray(data + b"behind the end") == data + b"behind the end"
    places = [m.start() for m in re.finditer(rb"\xff[\xc4\xd0-\xd7\xd9\xda]", data)]
    for place in places[-12:]:
        for stray in (b"\0", b"\x12" * 40, b"text, of a few words\n"):
            assert without_stray(data[:place] + stray + data[place:]) == data, (place, stray)


@pytest.mark.parametrize("kind", sorted(LOST))
def test_files_without_their_end_are_refused(kind: str, files: dict[str, bytes]) -> None:
    for form, data in trials(kind, files, 8):
        # cut between two scans and closed, a progressive image is a valid one of fewer scans
        assert not is_kept(data) or pixels(data, strict=True) is not None, form


@pytest.mark.parametrize("kind", sorted(HARMLESS))
def test_files_with_all_pixels_are_kept(kind: str, files: dict[str, bytes]) -> None:
    for form, data in trials(kind, files, 5):
        assert is_kept(data), form


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - LOST - HARMLESS))
def test_damage_is_told_from_what_was_put_there(kind: str, files: dict[str, bytes]) -> None:
    """Of what libjpeg notices; the trials are the same each time. Larger ones: `benchmarks.jpeg_damage`."""
    num_noticed = num_wrong = 0
    for form, data in trials(kind, files, 12):
        if pixels(data, strict=True) is not None:
            continue
        found = pixels(data, strict=False)
        is_whole = found is not None and np.array_equal(found, pixels(files[form], strict=True))
        num_noticed += 1
        num_wrong += is_kept(data) != is_whole
    assert num_noticed >= 20
    # noise before the end of a grey image is at times a row of valid blocks
    assert num_wrong <= num_noticed // (20 if kind.startswith("noise") else 50)


def test_a_scan_whose_header_is_lost_is_no_padding(files: dict[str, bytes]) -> None:
    """libjpeg takes it for bytes behind a table, and shows the image without it."""
    data = files["progressive"]
    starts = [m.start() for m in re.finditer(rb"\xff\xda", data)]
    for start in starts[1:]:
        lost = data[:start] + b"\0\0" + data[start + 2 :]
        assert pixels(lost, strict=False) is not None
        assert without_stray(lost) is None and not is_kept(lost)


def test_a_scan_that_ends_in_the_bytes_that_fill_the_file_up(files: dict[str, bytes]) -> None:
    """As of an interrupted download into a file of the whole length: zeros are valid blocks until there are enough."""
    data = files["sequential"]
    for place in range(len(data) // 2, len(data) // 2 + 48):
        assert not is_kept(data[:place] + bytes(20_000) + b"\xff\xd9")


def test_what_is_too_large_to_be_followed_is_refused(files: dict[str, bytes]) -> None:
    data = files["sequential"]
    noise = random.Random(0).randbytes(MAX_BYTES).replace(b"\xff", b"")
    assert (
        without_stray(data[:-2] + noise + noise[:99] + data[-2:]) is None or len(noise) < MAX_BYTES
    )


@pytest.mark.parametrize("place", range(2, 620, 7))
def test_any_header_is_answered(place: int, files: dict[str, bytes]) -> None:
    for value in (0, 1, 0x7F, 0xFF):
        for form in ("sequential", "progressive"):
            changed = bytearray(files[form])
            changed[place] = value
            found = without_stray(bytes(changed))
            assert found is None or found.startswith(b"\xff\xd8")
