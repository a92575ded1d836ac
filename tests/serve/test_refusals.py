"""Requests that are refused: the status, the field, the value and the limit."""

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu.serve.errors import ApiError
from emu.serve.limits import Limits
from emu.serve.schema import parse_request
from tests.generate.bomb import bomb_png
from tests.serve.conftest import CHAT, Caller, Serve, error_of, image_part, parts

PART = "messages.0.content.0"
URL = f"{PART}.image_url.url"


def message(content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


@pytest.mark.parametrize(
    ("body", "status", "param", "words"),
    [
        ([], 400, None, "the body is [], give an object"),
        ({}, 400, "messages", "missing"),
        ({"messages": []}, 400, "messages", "at least 1"),
        ({"messages": "hello"}, 400, "messages", '"hello", give a list'),
        ({"messages": [{"content": "a"}]}, 400, "messages.0.role", "missing"),
        ({"messages": [{"role": "user"}]}, 400, "messages.0.content", "missing"),
        ({"messages": [{"role": "tool", "content": "a"}]}, 400, "messages.0.role", '"tool"'),
        (message(3), 400, "messages.0.content", "is 3, give a string or a list"),
        (message([{"type": "video"}]), 400, f"{PART}.type", '"video"'),
        (message([{"text": "a"}]), 400, f"{PART}.type", "missing"),
        (message([{"type": "text"}]), 400, f"{PART}.text", "missing"),
        (message([{"type": "text", "text": None}]), 400, f"{PART}.text", "missing"),
        (
            message([{"type": "image_url", "image_url": "x"}]),
            400,
            f"{PART}.image_url",
            '"x", give an object',
        ),
        (message([{"type": "image_url", "image_url": {}}]), 400, URL, "missing"),
        (message("a <image> b"), 400, "messages.0.content", "<image>"),
        (message(parts("fine", "[USER]: x")), 400, "messages.0.content.1.text", "[USER]"),
        (message("a") | {"max_token": 3}, 400, "max_token", "mean max_tokens"),
        (message("a") | {"max_tokens": 0}, 400, "max_tokens", "0"),
        (message("a") | {"max_tokens": "7"}, 400, "max_tokens", '"7", give a whole number'),
        (message("a") | {"max_tokens": 5000}, 400, "max_tokens", "5000, the limit is 1024"),
        (message("a") | {"max_tokens": 5, "max_completion_tokens": 6}, 400, "max_tokens", "5 and"),
        (message("a") | {"temperature": 2.5}, 400, "temperature", "2.5"),
        (message("a") | {"top_p": 0}, 400, "top_p", "0"),
        (message("a") | {"seed": 2**70}, 400, "seed", str(2**70)),
        (message("a") | {"stop": ["a"] * 5}, 400, "stop", "5 strings, the limit is 4"),
        (message("a") | {"stop": ["a", ""]}, 400, "stop.1", "at least one character"),
        (message("a") | {"n": 17}, 400, "n", "17, the limit is 16"),
        (message("a") | {"top_logprobs": 3}, 400, "top_logprobs", "3 without logprobs"),
        (message("a") | {"logprobs": True, "top_logprobs": 21}, 400, "top_logprobs", "21"),
        (message("a") | {"logprobs": True, "num_beams": 2}, 400, "logprobs", "num_beams 2"),
        (message("a") | {"logit_bias": {"1": 2}}, 400, "logit_bias", "accepts only {} or null"),
        (message("a") | {"tools": [{}]}, 400, "tools", "[]"),
        (message("a") | {"stream": "yes"}, 400, "stream", '"yes", give true or false'),
        (message("a") | {"modalities": ["audio"]}, 400, "modalities.0", '"audio"'),
        (message("a") | {"modalities": []}, 400, "modalities", "at least 1"),
        (
            message("a") | {"num_beams": 3, "temperature": 1},
            400,
            "num_beams",
            "3 and temperature 1",
        ),
        (message("a") | {"image": {"height": 4096}}, 400, "image.height", "limit is 1024"),
        (
            message("a") | {"image": {"scheduler": "pdnm"}},
            400,
            "image.scheduler",
            '"pdnm", give one of "pndm", "ddim", "dpm++", "euler"; did you mean "pndm"?',
        ),
        (message("a") | {"model": "gpt-4"}, 404, "model", '"tiny"'),
        (message("a " * 3000), 400, "messages", "1024"),
    ],
)
def test_a_wrong_request_names_its_field(
    caller: Caller, body: Any, status: int, param: str | None, words: str
) -> None:
    got_status, got_param, text = error_of(caller.send(body))
    assert (got_status, got_param) == (status, param), text
    assert words in text


@pytest.mark.parametrize(
    ("url", "status", "words"),
    [
        ("ftp://images.example/a.png", 400, "give data:"),
        ("file:///etc/passwd", 400, "give data:"),
        ("http://169.254.169.254/a.png", 400, "fetches no images"),
        ("data:image/png;base64,???", 400, "not base64"),
        ("data:image/png,abc", 400, "give data:"),
        ("data:image/png;base64,", 422, "empty"),
        ("data:image/png;base64,PGh0bWw+", 422, "not an image"),
    ],
)
def test_a_wrong_image_address_is_named(caller: Caller, url: str, status: int, words: str) -> None:
    response = caller.ask([{"type": "image_url", "image_url": {"url": url}}])
    got_status, param, text = error_of(response)
    assert (got_status, param) == (status, URL) and words in text


def test_images_beyond_the_limits_are_refused_undecoded(
    caller: Caller, serve_with: Serve, photo_png: bytes
) -> None:
    bomb = bomb_png(20000, 20000)
    assert len(bomb) < 200_000
    status, param, text = error_of(caller.ask([image_part(bomb)]))
    assert (status, param) == (413, URL) and "pixels" in text
    status, param, text = error_of(caller.ask(parts(*[photo_png] * 17)))
    assert (status, param) == (413, "messages") and "17 images, the limit is 16" in text
    with serve_with(Limits(max_image_bytes=1000, max_body_bytes=60_000)) as small:
        status, param, text = error_of(small.ask([image_part(bytes(3000))]))
        assert (status, param) == (413, URL) and "limit is 1000" in text
        status, _, text = error_of(small.ask("x" * 70_000))
        assert status == 413 and "60000 bytes" in text


def test_a_damaged_image_is_named(caller: Caller, photo_png: bytes) -> None:
    whole = bytearray(photo_png)
    del whole[len(whole) // 2 :]
    status, param, text = error_of(caller.ask(parts("a", bytes(whole))))
    assert (status, param) == (422, "messages.0.content.1.image_url.url") and "damaged" in text


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{bad", "Expecting property name"),
        (b"", "0 bytes"),
        (b'{"seed": NaN}', "NaN"),
        (b"\xff\xfe{}", "byte 0xff at index 0 is not UTF-8"),
        (b"[" * 90_000, "nested too deeply"),
        (b'{"messages":[{"role":"user","content":"\\ud800"}]}', "not valid Unicode"),
        (b'{"max_tokens": ' + b"9" * 5000 + b"}", "5,000 digits, the limit is 100"),
    ],
)
def test_invalid_bodies_are_answered(caller: Caller, body: bytes, words: str) -> None:
    response = caller.client.post(CHAT, content=body, headers={"Content-Type": "application/json"})
    status, _, text = error_of(response)
    assert status == 400 and words in text


ONE = '{"messages": [{"role": "user", "content": "a"%s}]%s}'
LISTED = "1," * 90_000 + "1"
FIELDS = ",".join(f'"k{number}": 1' for number in range(90_000))


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("path", "body", "param", "words"),
    [
        (CHAT, ONE % ("", f', "stop": [{LISTED}]'), "stop.0", "is 1, give a string"),
        (CHAT, ONE % ("", f', "modalities": [{LISTED}]'), "modalities.0", "is 1, give one of"),
        (CHAT, ONE % (f', "images": [{LISTED}]', ""), "messages.0.images.0", "an object"),
        (CHAT, ONE % (f', "parts": [{LISTED}]', ""), "messages.0.parts.0", "an object"),
        (CHAT, ONE % ("", f', "tools": [{LISTED}]'), "tools", "accepts only []"),
        (CHAT, ONE % ("", f", {FIELDS}"), None, "the body has 90,001 fields, the limit is 1,000"),
        (CHAT, ONE % (f", {FIELDS}", ""), "messages.0", "has 90,002 fields"),
        ("/v1/completions", f'{{"prompt": ["a", {LISTED}]}}', "prompt.0", 'is "a", give'),
        ("/v1/completions", f'{{"prompt": [[1.5], {LISTED}]}}', "prompt.0.0", "whole number"),
        ("/v1/rank", f'{{"prompt": "a", "candidates": [{LISTED}]}}', "candidates.0", "is 1"),
        ("/v1/embeddings", f'{{"input": [{LISTED}]}}', "input.0", "is 1, give"),
    ],
)
def test_many_wrong_values_are_refused_by_the_first(
    caller: Caller, path: str, body: str, param: str | None, words: str
) -> None:
    response = caller.client.post(path, content=body, headers={"Content-Type": "application/json"})
    status, got_param, text = error_of(response)
    assert (status, got_param) == (400, param) and words in text


@pytest.mark.timeout(60)
@pytest.mark.parametrize("unit", ["1,", "[],", "{},", "[", '{"a":1},'])
def test_more_values_than_a_request_needs_are_refused_unread(caller: Caller, unit: str) -> None:
    body = '{"messages": [' + unit * 1_000_000 + "1]}"
    response = caller.client.post(CHAT, content=body, headers={"Content-Type": "application/json"})
    status, param, text = error_of(response)
    assert (status, param) == (413, None)
    assert "commas and opening brackets, the limit is 100,000" in text


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (
            CHAT,
            {"messages": [{"role": "user", "content": "a", "parts": ["PART"]}]},
            "messages.0.parts.0.x",
        ),
        (CHAT, {"messages": [{"role": "user", "content": ["PART"]}]}, "messages.0.content.0.x"),
        ("/v1/embeddings", {"input": ["PART"]}, "input.0.x"),
        ("/v1/embeddings", {"input": [["PART"]]}, "input.0.0.x"),
        ("/v1/rank", {"prompt": ["PART"], "candidates": ["a"]}, "prompt.0.x"),
    ],
)
def test_an_unknown_field_of_a_part_is_named_wherever_parts_stand(
    caller: Caller, path: str, body: dict[str, Any], param: str
) -> None:
    part = '{"type": "text", "text": "a", "x": 1}'
    text = json.dumps(body).replace('"PART"', part)
    response = caller.client.post(path, content=text, headers={"Content-Type": "application/json"})
    status, got_param, message = error_of(response)
    assert (status, got_param) == (400, param) and "is not a known field" in message


def test_a_long_path_is_cut_in_the_error(caller: Caller) -> None:
    status, _, message = error_of(caller.client.get("/v2/" + "x" * 5000))
    assert status == 404 and len(message) < 300


def test_wrong_paths_methods_and_types_have_the_same_form(caller: Caller) -> None:
    assert error_of(caller.client.get("/v1/nothing"))[0] == 404
    assert error_of(caller.client.get(CHAT))[0] == 405
    status, _, text = error_of(caller.client.post(CHAT, content=b"{}"))
    assert status == 415 and "application/json" in text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    [
        "messages",
        "model",
        "max_tokens",
        "stop",
        "seed",
        "n",
        "image",
        "modalities",
        "stream",
        "tools",
    ]
)


@given(st.dictionaries(FIELDS, JSON, max_size=5))
@settings(max_examples=150, deadline=None)
def test_any_json_is_parsed_or_refused_with_a_reason(body: dict[str, Any]) -> None:
    try:
        assert parse_request(body).messages
    except ApiError as error:
        assert error.response.status == 400 and error.response.message
        json.dumps(error.response.as_json())


def test_damaged_uploads_never_break_the_server(caller: Caller, photo_png: bytes) -> None:
    generator = random.Random(3)
    for _ in range(25):
        data = bytearray(photo_png)
        for _ in range(generator.randint(1, 6)):
            data[generator.randrange(len(data))] = generator.randrange(256)
        response = caller.ask([image_part(bytes(data))], max_tokens=1)
        assert response.status_code in (200, 413, 422), response.text
