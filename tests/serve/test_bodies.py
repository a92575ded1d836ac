"""Request bodies: what JSON readers accept silently is refused with its field."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from emu.generate.sampling import to_png
from emu.serve.bodies import MAX_DIGITS, decode_json
from emu.serve.errors import ApiError, shown
from emu.serve.limits import Limits
from emu.serve.sampling import text_options
from emu.serve.schema import KNOWN, parse_request
from tests.serve.conftest import CHAT, Caller, error_of, image_part

JSON_TYPE = {"Content-Type": "application/json"}
ASK = '"messages": [{"role": "user", "content": "a"}]'


def refusal(body: str | bytes) -> tuple[str | None, str | None, str]:
    """Field, code and message with which a body is refused."""
    with pytest.raises(ApiError) as caught:
        parse_request(decode_json(body if isinstance(body, bytes) else body.encode()))
    found = caught.value.response
    assert found.status == 400
    assert found.as_json()["error"]["type"] == "invalid_request_error"
    json.dumps(found.as_json()).encode()
    return found.param, found.code, found.message


@pytest.mark.parametrize("body", ["null", "true", "3", '"hello"', "[]"])
def test_a_body_that_is_no_object_is_shown_as_it_came(caller: Caller, body: str) -> None:
    response = caller.client.post(CHAT, content=body, headers=JSON_TYPE)
    status, param, message = error_of(response)
    assert (status, param) == (400, None)
    assert message.startswith(f"the body is {body}, give an object")


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        (f'{{{ASK}, "seed": 1, "seed": 2}}', "seed", "twice"),
        (f'{{{ASK}, "image": {{"width": 8, "width": 8}}}}', "image.width", "twice"),
        ('{"messages": [{"role": "user", "role": "system"}]}', "messages.0.role", "twice"),
        (f'{{{ASK}, "metadata": {{"a": 1, "a": 1}}}}', "metadata.a", "twice"),
        (f'{{{ASK}, "temperature": NaN}}', "temperature", "NaN"),
        (f'{{{ASK}, "image": {{"guidance_scale": -Infinity}}}}', "image.guidance_scale", "-Inf"),
        (f'{{{ASK}, "temperature": 1e400}}', "temperature", "1e400"),
        (f'{{{ASK}, "seed": {"9" * 5000}}}', "seed", "5,000 digits, the limit is 100"),
        (
            f'{{{ASK}, "model": "\\ud83d"}}',
            "model",
            "\\ud83d at index 0 is half of a surrogate pair",
        ),
        (f'{{{ASK}, "stop": ["ok", "a\\udc00"]}}', "stop.1", "index 1"),
        (f'{{{ASK}, "\\ud800": 1}}', None, "\\ud800"),
    ],
)
def test_what_json_readers_overlook_is_named(body: str, param: str | None, words: str) -> None:
    found, code, message = refusal(body)
    assert found == param and words in message and code is not None


def test_doubled_keys_are_refused_over_the_wire(caller: Caller) -> None:
    body = f'{{{ASK}, "max_tokens": 1, "max_tokens": 2}}'
    status, param, message = error_of(caller.client.post(CHAT, content=body, headers=JSON_TYPE))
    assert (status, param) == (400, "max_tokens")
    assert message == "max_tokens appears twice in the same object; give it once"


def test_numbers_up_to_the_limit_of_digits_reach_the_field() -> None:
    body = f'{{{ASK}, "seed": {"9" * MAX_DIGITS}}}'
    assert "give less than 9223372036854775808" in refusal(body)[2]


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"image": {"hight": 8}}, "image.hight", "mean height?"),
        ({"image": {"steps": 3}}, "image.steps", "mean num_inference_steps?"),
        ({"image": {"guidance": 3}}, "image.guidance", "mean guidance_scale?"),
        ({"image": {"colour": 3}}, "image.colour", "known fields are height, width"),
        ({"temprature": 1}, "temprature", "mean temperature?"),
        ({"stream_options": {"include_use": True}}, "stream_options.include_use", "_usage?"),
        ({"modalities": ["Image"]}, "modalities.0", 'mean "image"?'),
        ({"x" * 5000: 1}, "x" * 60, "not a known field"),
    ],
)
def test_a_misspelt_name_gets_the_nearest(fields: dict[str, Any], param: str, words: str) -> None:
    body = {"messages": [{"role": "user", "content": "a"}], **fields}
    found, _, message = refusal(json.dumps(body))
    assert found == param and words in message and len(message) < 300


@pytest.mark.parametrize(
    ("message", "param", "words"),
    [
        ({"role": "User", "content": "a"}, "messages.0.role", 'mean "user"?'),
        ({"role": "user", "contents": "a"}, "messages.0.contents", "mean content?"),
        ({"role": "user", "content": []}, "messages.0.content", "a list of at least 1"),
        ({"role": "user", "content": ["a"]}, "messages.0.content.0", "give an object"),
        (
            {"role": "user", "content": [{"type": "txt"}]},
            "messages.0.content.0.type",
            'mean "text"?',
        ),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"ulr": "x"}}]},
            "messages.0.content.0.image_url.ulr",
            "mean url?",
        ),
        (
            {"role": "assistant", "content": "a", "tool_calls": [{}]},
            "messages.0.tool_calls",
            "accepts only [] or null",
        ),
    ],
)
def test_a_wrong_message_says_what_it_takes(
    message: dict[str, Any], param: str, words: str
) -> None:
    found, _, text = refusal(json.dumps({"messages": [message]}))
    assert found == param and words in text


def test_every_name_of_a_field_finds_itself() -> None:
    assert {"", "messages", "content", "image_url", "image", "stream_options"} <= set(KNOWN)
    assert {"messages", "n", "user"} <= set(KNOWN[""])


def test_a_long_value_is_cut_in_the_message() -> None:
    assert shown("x" * 10_000_000) == '"' + "x" * 59 + "…"
    assert shown([[1, None, {"a": True}]]) == '[[1, null, {"a": true}]]'
    assert len(shown(["y"] * 100_000)) == 61


def test_a_reply_can_be_sent_back_as_a_turn(caller: Caller) -> None:
    first = {"role": "user", "content": "describe"}
    answer = caller.send({"messages": [first], "max_tokens": 3}).json()["choices"][0]["message"]
    assert answer["refusal"] is None
    of_clients = {"annotations": [], "audio": None, "function_call": None, "tool_calls": None}
    turns = [first, answer | of_clients, {"role": "user", "content": "more"}]
    assert caller.send({"messages": turns, "max_tokens": 1}).status_code == 200


@pytest.mark.parametrize("side", ["height", "width"])
def test_a_side_that_the_decoder_cannot_generate_is_named(caller: Caller, side: str) -> None:
    for modalities in (["image"], ["text"]):
        response = caller.ask("a", modalities=modalities, image={side: 12})
        assert error_of(response) == (
            400,
            f"image.{side}",
            f"image.{side} is 12, give a multiple of 8",
        )


def test_stream_options_need_a_stream(caller: Caller) -> None:
    status, param, _ = error_of(caller.ask("a", stream_options={"include_usage": True}))
    assert (status, param) == (400, "stream_options")


def test_a_stop_beyond_the_limit_is_refused(caller: Caller) -> None:
    status, param, text = error_of(caller.ask("a", stop="x" * 1001))
    assert (status, param) == (400, "stop") and "1,001 characters, the limit is 1,000" in text
    status, param, text = error_of(caller.ask("a", stop=""))
    assert (status, param) == (400, "stop") and text.startswith('stop is ""')


def test_a_low_limit_of_tokens_also_bounds_the_default() -> None:
    asked = parse_request({"messages": [{"role": "user", "content": "a"}]})
    assert text_options(asked, Limits(max_tokens=7)).max_new_tokens == 7
    assert text_options(asked, Limits()).max_new_tokens == 256


def test_the_smallest_top_p_takes_the_likeliest_token(caller: Caller) -> None:
    sampled = caller.text("a", temperature=2, top_p=1e-300, max_tokens=6)
    assert sampled == caller.text("a", max_tokens=6)


def test_a_compressed_body_is_refused(caller: Caller) -> None:
    headers = JSON_TYPE | {"Content-Encoding": "gzip"}
    status, _, text = error_of(caller.client.post(CHAT, content=b"\x1f\x8b", headers=headers))
    assert status == 415 and "'gzip'" in text


def test_many_wrong_values_are_refused_at_once(caller: Caller) -> None:
    status, param, _ = error_of(caller.send({"messages": [1] * 90_000}))
    assert (status, param) == (400, "messages.0")
    status, param, _ = error_of(caller.ask([{"type": "text"}] * 40_000))
    assert (status, param) == (400, "messages.0.content.0.text")


def test_null_fields_of_parts_count_as_absent(caller: Caller, repository: Path) -> None:
    """Rows of Arrow tables have every column."""
    body = json.loads((repository / "tests/bug_cases/arrow_null_keys.json").read_text())
    assert body["messages"][0]["content"][0]["image_url"] is None
    text = body["messages"][0]["content"][0]["text"]
    assert caller.send(body).json()["choices"] == caller.ask(text, max_tokens=4).json()["choices"]
    nulls = {"text": None, "video": None}
    data = image_part(to_png(Image.new("RGB", (8, 8))))
    with_nulls = {**data, **nulls, "image_url": {**data["image_url"], "detail": None}}
    assert caller.text([with_nulls], max_tokens=2) == caller.text([data], max_tokens=2)
    for part, missing in (
        ({"type": "text", "text": None}, "text"),
        ({"type": "image_url", "image_url": {"url": None}}, "image_url.url"),
    ):
        found, _, message = refusal(json.dumps({"messages": [{"role": "user", "content": [part]}]}))
        assert found == f"messages.0.content.0.{missing}" and "is missing" in message
