"""One strict reader of JSON: what others accept silently is refused with a reason and the path of the field."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.strict_json import LARGE, MAX_DIGITS, REASONS, JsonError, loads

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def refused(document: str | bytes, **options: Any) -> JsonError:
    with pytest.raises(JsonError) as raised:
        loads(document, **options)
    assert raised.value.reason in REASONS and raised.value.detail
    str(raised.value).encode()
    return raised.value


@given(VALUES, st.booleans())
def test_valid_documents_are_read_as_by_the_standard_library(value: Any, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert loads(text) == loads(text.encode()) == json.loads(text)


FAULTS: list[tuple[str | bytes, str, tuple[str | int, ...] | None]] = [
    ('{"a": 1, "b": 0, "a": 1}', "doubled_field", ("a",)),
    ('{"m": [{"x": {"y": 1, "y": 2}}]}', "doubled_field", ("m", 0, "x", "y")),
    ("NaN", "not_finite", ()),
    ('{"m": [0, -Infinity]}', "not_finite", ("m", 1)),
    ('{"m": [0, 1e999]}', "not_finite", ("m", 1)),
    (f"[{'9' * 400}.0]", "not_finite", (0,)),
    (f"[{'9' * (MAX_DIGITS + 1)}]", "number_too_long", (0,)),
    ('["ok", "a\\ud83d"]', "bad_unicode", (1,)),
    ('["\\udc00\\ud83d"]', "bad_unicode", (0,)),
    ('["raw \ud83d"]', "bad_unicode", (0,)),
    ('{"k": {"\\ud83d": 1}}', "bad_unicode", ("k",)),
    ("[" * 100_000, "nested_too_deeply", None),
    ('{"a":' * 100_000, "nested_too_deeply", None),
    (b'["\xff"]', "not_utf8", None),
    ("{}".encode("utf-16"), "not_utf8", None),
    ("", "malformed_json", None),
    ('{"a": 1,}', "malformed_json", None),
    ("{} {}", "malformed_json", None),
]


@pytest.mark.parametrize(("document", "reason", "path"), FAULTS)
def test_each_fault_has_its_reason_and_path(
    document: str | bytes, reason: str, path: tuple[str | int, ...] | None
) -> None:
    error = refused(document)
    assert (error.reason, error.path) == (reason, path)


LONG = "x" * LARGE


@given(VALUES)
def test_large_documents_of_few_strings_are_read_as_by_the_standard_library(value: Any) -> None:
    text = json.dumps([value, LONG, value], ensure_ascii=False)
    assert repr(loads(text.encode())) == repr(json.loads(text))


@pytest.mark.parametrize(("document", "reason", "path"), FAULTS)
def test_each_fault_of_a_large_document_has_its_reason_and_path(
    document: str | bytes, reason: str, path: tuple[str | int, ...] | None
) -> None:
    part = document if isinstance(document, bytes) else document.encode("utf-8", "surrogatepass")
    if part != b"[" * 100_000:
        part = b'["%b", %b]' % (LONG.encode(), part)
        path = path if path is None else (1, *path)
    error = refused(part)
    if reason == "bad_unicode" and "raw" in str(document):
        reason, path = "not_utf8", None  # bytes cannot hold it otherwise
    assert (error.reason, error.path) == (reason, path)


@pytest.mark.parametrize(
    "document",
    [
        '{"long": "LONG", "a": [], "a": {}}',
        '{"long": "LONG", "long": "LONG"}',
        '{"": 1, "": 2, "long": "LONG"}',
        '[{"a": {"b": "c"}, "a": "LONG"}]',
        '[{"a": "LONG", "a": "\\""}]',
    ],
)
def test_a_double_field_of_a_large_document_is_refused(document: str) -> None:
    assert refused(document.replace("LONG", LONG).encode()).reason == "doubled_field"


@pytest.mark.parametrize("character", ["\0", "\n", "\x1f"])
def test_a_control_character_in_a_long_string_is_refused(character: str) -> None:
    error = refused(f'["{LONG}{character}"]'.encode())
    assert error.detail == f"Invalid control character at at character {2 + LARGE}"


def test_the_first_fault_in_the_order_of_the_document_is_named() -> None:
    assert refused('{"a": {"b": [NaN]}, "c": "\\ud800", "d": 1, "d": 2}').field == "a.b.0"


def test_a_number_is_named_with_its_digits_and_the_limit() -> None:
    assert loads("-" + "9" * 100, max_digits=100) == -int("9" * 100)
    error = refused('{"seed": ' + "9" * 101 + "}", max_digits=100)
    assert str(error) == "seed is a number of 101 digits, the limit is 100"


def test_whole_surrogate_pairs_and_the_largest_float_are_valid() -> None:
    assert loads('["\\ud83d\\ude00", 1.7976931348623157e308, -0.0]')[:2] == [
        "😀",
        1.7976931348623157e308,
    ]
    assert math.copysign(1, loads("-0.0")) == -1


def test_bytes_may_begin_with_a_byte_order_mark() -> None:
    assert loads(b"\xef\xbb\xbf[1]") == [1]
    assert "Unexpected UTF-8 BOM" in refused("\ufeff[1]").detail


def test_a_long_name_is_cut_in_the_field() -> None:
    assert refused('{"' + "x" * 5000 + '": NaN}').field == "x" * 60


@pytest.mark.timeout(30)
def test_a_hostile_document_takes_linear_time() -> None:
    deep = "[" * 500 + ",".join(["0"] * 300_000 + ["NaN"]) + "]" * 500
    assert len(refused(deep).path or ()) == 500
    names = ",".join(f'"f{number}": 0' for number in range(100_000))
    assert refused(f'{{{names}, "last": 0, "last": 1}}').field == "last"


def test_tolerated_values_are_read_as_python_reads_them_and_the_others_refused():
    text = '{"a": [NaN, -Infinity, 1e999], "b": "\\ud800"}'
    found = loads(text, tolerated=frozenset({"not_finite", "bad_unicode"}))
    assert math.isnan(found["a"][0]) and found["a"][1:] == [-math.inf, math.inf]
    assert found["b"] == "\ud800"
    for tolerated, reason in (("not_finite", "bad_unicode"), ("bad_unicode", "not_finite")):
        with pytest.raises(JsonError) as caught:
            loads(text, tolerated=frozenset({tolerated}))
        assert caught.value.reason == reason
    with pytest.raises(JsonError, match="twice"):
        loads('{"a": 1, "a": NaN}', tolerated=frozenset({"not_finite"}))


def test_the_fields_of_an_object_can_be_limited() -> None:
    text = '{"m": [{"a": 1, "b": 2}, {"a": 1, "b": 2, "c": 3}]}'
    assert loads(text, max_fields=3) == json.loads(text)
    error = refused(text, max_fields=2)
    assert str(error) == "m.1 has 3 fields, the limit is 2" and error.reason == "too_many_fields"
