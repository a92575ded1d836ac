"""`/v1/images`: images from a text, and from images and a text, through the client library of OpenAI."""

import base64
import io
from dataclasses import replace
from typing import Any, get_type_hints

import numpy as np
import openai
import pytest
from openai.types import image_edit_params, image_generate_params
from PIL import Image

from emu.generate.engine import Engine
from emu.generate.prompts import ImageOptions
from emu.serve.backend import ModelCard
from emu.serve.limits import Limits
from emu.serve.requests import negative_prompt
from emu.serve.routes.images import KNOWN
from emu.serve.schema import ImageRequest
from tests.serve.conftest import Caller, Serve, error_of

PATH = "/v1/images/generations"
OURS = {"seed": 7, "num_inference_steps": 2, "guidance_scale": 3.0, "scheduler": "ddim"}
OPTIONS = ImageOptions(32, 48, 2, 3.0, seed=7, scheduler="ddim")


@pytest.fixture(scope="module")
def client(caller: Caller) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{caller.client.base_url}/v1", api_key="none", max_retries=0)


def opened(image: Any) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(image.b64_json)))


def are_equal(image: Image.Image, other: Image.Image) -> bool:
    """To rounding: two images that run together are computed as one batch."""
    pixels, others = (np.asarray(each.convert("RGB"), np.int16) for each in (image, other))
    return pixels.shape == others.shape and bool(np.abs(pixels - others).max() <= 2)


def test_an_image_of_a_text_is_that_of_the_engine(client: openai.OpenAI, engine: Engine) -> None:
    made = client.images.generate(
        model="tiny",
        prompt="a red circle",
        size="48x32",
        n=2,
        response_format="b64_json",
        extra_body=OURS,
    )
    assert made.data and made.size == "48x32" and made.output_format == "png"
    expected = engine.generate_image("a red circle", OPTIONS)
    assert are_equal(opened(made.data[0]), expected)
    assert not are_equal(opened(made.data[1]), expected)
    assert (
        made.usage and made.usage.total_tokens == made.usage.input_tokens + made.usage.output_tokens
    )


def test_images_are_blended_with_a_text(
    client: openai.OpenAI, engine: Engine, photo_png: bytes
) -> None:
    options: dict[str, Any] = {"size": "48x32", "extra_body": OURS}
    one = client.images.edit(image=photo_png, prompt="at night", **options)
    several = client.images.edit(
        image=[photo_png, io.BytesIO(photo_png)], prompt="at night", **options
    )
    for made, images in ((one, [photo_png]), (several, [photo_png] * 2)):
        assert made.data and made.usage
        expected = engine.generate_image([*images, "at night"], OPTIONS)
        assert are_equal(opened(made.data[0]), expected)
        assert made.usage.input_tokens_details.image_tokens == 10 * len(images)


def test_a_negative_prompt_is_that_of_the_engine(
    client: openai.OpenAI, caller: Caller, engine: Engine, photo_png: bytes
) -> None:
    extra = OURS | {"negative_prompt": "a black square"}
    options = replace(OPTIONS, negative_prompt="a black square")
    made = client.images.generate(prompt="a red circle", size="48x32", extra_body=extra)
    expected = engine.generate_image("a red circle", options)
    assert made.data and are_equal(opened(made.data[0]), expected)
    assert not are_equal(opened(made.data[0]), engine.generate_image("a red circle", OPTIONS))
    edited = client.images.edit(image=photo_png, prompt="a", size="48x32", extra_body=extra)
    assert edited.data
    assert are_equal(opened(edited.data[0]), engine.generate_image([photo_png, "a"], options))
    image = {name: value for name, value in extra.items() if name != "seed"}
    image |= {"height": 32, "width": 48}
    reply = caller.ask("a red circle", modalities=["image"], image=image, seed=7).json()
    url = reply["choices"][0]["message"]["images"][0]["image_url"]["url"]
    in_chat = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    assert are_equal(in_chat, expected)
    for nothing in ("", None):
        body = {"prompt": "a red circle", "size": "48x32", **OURS, "negative_prompt": nothing}
        without = caller.client.post(PATH, json=body).json()["data"][0]["b64_json"]
        plain = engine.generate_image("a red circle", OPTIONS)
        assert are_equal(Image.open(io.BytesIO(base64.b64decode(without))), plain)


def test_a_negative_prompt_has_the_format_of_a_prompt(engine: Engine) -> None:
    card = ModelCard("tiny", engine.config, 8, ())
    image = ImageRequest(negative_prompt="a dog")
    assert negative_prompt(image, card, "") == "a dog"
    assert negative_prompt(image, card, "tuned") == " [USER]: a dog [ASSISTANT]:"
    assert negative_prompt(ImageRequest(negative_prompt=""), card, "tuned") == ""


def test_without_a_seed_images_differ_and_the_seed_is_told(caller: Caller) -> None:
    body: dict[str, Any] = {"prompt": "a", "size": "16x16", "num_inference_steps": 1}
    first, second = [caller.client.post(PATH, json=body).json()["data"][0] for _ in range(2)]
    assert first["b64_json"] != second["b64_json"]
    again = caller.client.post(PATH, json=body | {"seed": first["seed"]}).json()["data"][0]
    assert again == first


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({}, "prompt", "missing"),
        ({"prompt": ""}, "prompt", "at least 1"),
        ({"prompt": "a", "size": "large"}, "size", 'give "auto" or a size such as'),
        ({"prompt": "a", "size": "20x32"}, "size", "give a multiple of 8"),
        ({"prompt": "a", "size": "8x4096"}, "size", "limit is 1024"),
        ({"prompt": "a", "n": 17}, "n", "limit is 16"),
        ({"prompt": "a", "response_format": "url"}, "response_format", 'only "b64_json"'),
        ({"prompt": "a", "stream": True}, "stream", "only false"),
        ({"prompt": "a", "num_inference_steps": 101}, "num_inference_steps", "limit is 100"),
        ({"prompt": "a", "scheduler": "ddmi"}, "scheduler", 'mean "ddim"?'),
        ({"prompt": "a", "promt": "b"}, "promt", "mean prompt?"),
        ({"prompt": "a [IMG]"}, "prompt", "[IMG]"),
        ({"prompt": "a", "negative_prompt": "b [IMG]"}, "negative_prompt", "[IMG]"),
        ({"prompt": "a", "negative_prompt": 3}, "negative_prompt", "3"),
        ({"prompt": "a", "negative_prompt": "b " * 900}, "negative_prompt", "negative_prompt: the"),
        ({"prompt": "a", "negative_prompt": "b" * 99999}, "negative_prompt", "the prompt takes"),
    ],
)
def test_a_wrong_request_names_its_field(
    caller: Caller, body: dict[str, Any], param: str, words: str
) -> None:
    status, found, text = error_of(caller.client.post(PATH, json=body))
    assert (status, found) == (400, param) and words in text, text


def test_a_wrong_form_names_its_field(caller: Caller, serve_with: Serve, photo_png: bytes) -> None:
    def edit(who: Caller, files: Any, **fields: str) -> tuple[int, str | None, str]:
        return error_of(who.client.post("/v1/images/edits", files=files, data=fields))

    image = ("image", ("a.png", photo_png))
    assert edit(caller, [("other", ("a.png", photo_png))], prompt="a")[:2] == (400, "other")
    status, param, text = edit(caller, [image, ("mask", ("m.png", photo_png))], prompt="a")
    assert (status, param) == (400, "mask") and "only null" in text
    assert edit(caller, [image])[:2] == (400, "prompt")
    assert edit(caller, [image], prompt="a", n="many")[:2] == (400, "n")
    assert edit(caller, [("image", ("a.png", b"no image"))], prompt="a")[:2] == (422, "image.0")
    status, param, text = edit(caller, [("image[]", ("a.png", photo_png))] * 17, prompt="a")
    assert (status, param) == (413, "image") and "17 images" in text
    assert error_of(caller.client.post("/v1/images/edits", json={"prompt": "a"}))[0] == 415
    broken = {"Content-Type": "multipart/form-data"}
    response = caller.client.post("/v1/images/edits", content=b"--x", headers=broken)
    assert error_of(response)[0] == 400
    with serve_with(Limits(max_body_bytes=2000)) as small:
        assert edit(small, [("image", ("a.png", bytes(3000)))], prompt="a")[0] == 413


def test_every_field_of_the_client_is_known() -> None:
    for kind in (
        image_generate_params.ImageGenerateParamsNonStreaming,
        image_edit_params.ImageEditParamsNonStreaming,
    ):
        fields = set(get_type_hints(kind)) - {"image"}
        assert fields <= set(KNOWN[""]), fields - set(KNOWN[""])
