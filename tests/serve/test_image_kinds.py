"""Images as people send them, over HTTP: every kind is read as a viewer would show it."""

import base64
import io
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from emu.generate.sampling import to_png
from emu.serve.errors import ApiError
from emu.serve.limits import Limits
from emu.serve.media import PIECE, MediaSource, data_of_url
from schemas.images import decode_image
from tests.generate.bomb import bomb_png
from tests.serve.conftest import Caller, error_of, image_part

URL = "messages.0.content.0.image_url.url"
ROTATED = 6  # EXIF: the top of the image is at its right


def ramp() -> Image.Image:
    grey = Image.linear_gradient("L").resize((60, 40))
    return Image.merge("RGB", (grey, grey.rotate(180), Image.new("L", grey.size, 90)))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x112] = orientation
    return tags.tobytes()


KINDS = {
    "cmyk": encoded(ramp().convert("CMYK"), "JPEG"),
    "palette": encoded(ramp().convert("P"), "PNG"),
    "one bit": encoded(ramp().convert("1"), "PNG"),
    "16 bit": encoded(Image.new("I;16", (20, 20), 40_000), "PNG"),
    "alpha": encoded(ramp().convert("RGBA"), "WEBP"),
    "animated": encoded(ramp(), "GIF", save_all=True, append_images=[ramp().rotate(90)]),
    "rotated": encoded(ramp(), "JPEG", exif=exif(ROTATED)),
    "damaged exif": encoded(ramp(), "JPEG", exif=b"Exif\0\0garbage"),
    "one pixel": encoded(ramp().resize((1, 1)), "PNG"),
}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_of_image_is_read(caller: Caller, kind: str) -> None:
    asked = [image_part(KINDS[kind])]
    plain = [image_part(to_png(decode_image(KINDS[kind])))]
    assert caller.text(asked, max_tokens=4) == caller.text(plain, max_tokens=4)


def test_damaged_exif_is_ignored() -> None:
    whole = decode_image(encoded(ramp(), "JPEG"))
    assert decode_image(KINDS["damaged exif"]).tobytes() == whole.tobytes()
    assert decode_image(KINDS["rotated"]).size == (40, 60)


def test_the_bytes_and_not_the_declared_type_decide(caller: Caller) -> None:
    data = to_png(ramp())
    said = caller.text([image_part(data)], max_tokens=4)
    for kind in ("image/jpeg", "text/html", ""):
        assert caller.text([image_part(data, kind)], max_tokens=4) == said
    status, param, text = error_of(caller.ask([image_part(b"%PDF-1.4 ...", "image/png")]))
    assert (status, param) == (422, URL) and "JPEG, PNG" in text


@pytest.mark.parametrize(
    "head",
    [
        "image/png;charset=utf-8;base64",
        "image/png;name=a%20b.png;base64",
        'image/png;name="a, b;c.png";base64',
        ";a=b;base64",
        "image/svg+xml;q=1;x=!#$&'*+-.^_`|~;base64",
        "image/png; base64 ",
        "image/png;BASE64",
        ";base64",
    ],
)
def test_data_urls_take_parameters(caller: Caller, head: str) -> None:
    data = to_png(ramp())
    url = f"data:{head},{base64.b64encode(data).decode()}"
    said = caller.text([{"type": "image_url", "image_url": {"url": url}}], max_tokens=4)
    assert said == caller.text([image_part(data)], max_tokens=4)


def test_recorded_images_of_bug_reports_are_read(caller: Caller, repository: Path) -> None:
    cases = repository / "tests" / "bug_cases"
    paths = [path for path in sorted(cases.iterdir()) if path.suffix in (".jpg", ".png", ".tif")]
    assert len(paths) == 6
    for path in paths:
        assert caller.text([image_part(path.read_bytes())], max_tokens=2)
    photo = (cases / "control.jpg").read_bytes()
    for damaged in (photo[:5000], photo[:5000] + bytes(900) + photo[5900:]):
        status, param, message = error_of(caller.ask([image_part(damaged)]))
        assert (status, param) == (422, URL) and "JPEG image is damaged" in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text[:20] + "\n" + text[20:], "'\\n' at index 20; send it in one line"),
        (lambda text: "-_" + text[2:], "'-' at index 0; write + and / for - and _"),
        (lambda text: text.rstrip("=")[:-1], "pad with ="),
        (lambda text: text[:8] + "%2B" + text[8:], "'%' at index 8; send it without percent"),
        (lambda text: "é" + text, "'é' at index 0"),
    ],
)
def test_base64_that_does_not_decode_says_where(
    caller: Caller, change: Callable[[str], str], words: str
) -> None:
    text = base64.b64encode(to_png(ramp()) + b"12").decode().rstrip("=")
    text += "=" * (-len(text) % 4)
    url = f"data:image/png;base64,{change(text)}"
    response = caller.ask([{"type": "image_url", "image_url": {"url": url}}])
    status, param, message = error_of(response)
    assert (status, param) == (400, URL) and words in message


@pytest.mark.parametrize("length", [0, 1, 3 * PIECE // 4, 3 * PIECE // 4 + 1, 200_000])
def test_long_base64_is_decoded_in_pieces(length: int) -> None:
    data = random.Random(length).randbytes(length)
    url = f"data:video/mp4;base64,{base64.b64encode(data).decode()}"
    assert data_of_url(MediaSource("video", url, num_frames=1), Limits()) == data


@pytest.mark.parametrize("index", [0, PIECE - 1, PIECE, 2 * PIECE - 1, 3 * PIECE])
@pytest.mark.parametrize("character", ["\n", "=", "-", "é"])
def test_what_is_no_base64_is_found_in_every_piece(index: int, character: str) -> None:
    text = "A" * index + character + "A" * (4 * PIECE - index - 1)
    source = MediaSource("video", f"data:video/mp4;base64,{text}", num_frames=1)
    with pytest.raises(ApiError) as raised:
        data_of_url(source, Limits())
    assert f"{character!r} at index {index};" in raised.value.response.message


def test_the_size_is_read_before_the_rest_of_the_image(caller: Caller) -> None:
    url = image_part(bomb_png(30_000, 30_000))["image_url"]["url"]
    for rest in ("A" * 90_000, "?" * 90_000):
        part = {"type": "image_url", "image_url": {"url": url[: PIECE + 100] + rest}}
        status, param, message = error_of(caller.ask([part]))
        assert (status, param) == (413, URL) and "30000 x 30000 = 900,000,000 pixels" in message
    smaller = image_part(bomb_png(64, 64) + bytes(PIECE))["image_url"]["url"]
    part = {"type": "image_url", "image_url": {"url": smaller[:-4] + "A?=="}}
    status, param, message = error_of(caller.ask([part]))
    assert (status, param) == (400, URL) and "is not base64: it holds '?'" in message
