import copy
import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.core.pipeline import Rejected
from pipelines.corpora.mmc4.document import (
    DOCUMENT_REASONS,
    Document,
    parse_document,
)
from pipelines.corpora.mmc4.rules import PARSED, ParseDocuments, Rules, choose_images
from schemas.sample import LINK_TYPE

GOOD: dict[str, Any] = {
    "url": "http://s.example/page.html",
    "text_list": ["First sentence.", "Second.", "Third."],
    "image_info": [
        {
            "image_name": "1f0a.jpg",
            "raw_url": "http://s.example/a.jpg",
            "matched_text_index": 1,
            "matched_sim": 0.29,
            "face_detections": None,
        },
        {"raw_url": "http://s.example/b.jpg", "matched_text_index": 0},
    ],
    "similarity_matrix": [[0.21, 0.29, 0.18], [1, -0.5, 0]],
    "could_have_url_duplicate": 0,
    "further": {"field": [1, 2]},
}


def changed(path: str, value: Any) -> str:
    document = copy.deepcopy(GOOD)
    at: Any = document
    *way, last = [int(p) if p.isdigit() else p for p in path.split(".")]
    for step in way:
        at = at[step]
    at[last] = value
    return json.dumps(document)


def without(path: str) -> str:
    document = copy.deepcopy(GOOD)
    if "." in path:
        del document["image_info"][0][path.partition(".")[2]]
    else:
        del document[path]
    return json.dumps(document)


def test_a_good_document():
    found = parse_document(json.dumps(GOOD))
    assert found == Document(
        "http://s.example/page.html",
        ("First sentence.", "Second.", "Third."),
        ("http://s.example/a.jpg", "http://s.example/b.jpg"),
        ("1f0a.jpg", None),
        (1, 0),
        ((0.21, 0.29, 0.18), (1.0, -0.5, 0.0)),
    )


@pytest.mark.parametrize(
    ("line", "reason", "named"),
    [
        ("", "malformed_json", "Expecting value"),
        ('{"url": "http', "malformed_json", "at character 8"),
        ("\ufeff{}", "malformed_json", ""),
        ("9" * 5000, "malformed_json", "number too long"),
        ("[" * 100_000, "nested_too_deeply", ""),
        ('{"a":' * 100_000, "nested_too_deeply", ""),
        ("[1]", "not_an_object", "a list of 1"),
        ("NaN", "not_an_object", "nan"),
        ('{"url":"a","url":"b"}', "doubled_field", "url appears twice"),
        ('{"further":[{},{"a":1,"a":2}]}', "doubled_field", "further[1].a appears twice"),
        (without("url"), "missing_field", "url"),
        (without("text_list"), "missing_field", "text_list"),
        (without("image_info"), "missing_field", "image_info"),
        (without("similarity_matrix"), "missing_field", "similarity_matrix"),
        (without("image_info.raw_url"), "missing_field", "image_info[0].raw_url"),
        (changed("url", 3), "wrong_type", "url is 3, expected a string"),
        (changed("text_list", "abc"), "wrong_type", "text_list is 'abc', expected a list"),
        (changed("text_list.1", None), "wrong_type", "text_list[1] is None"),
        (changed("text_list", []), "no_text", "0 texts"),
        (changed("text_list", [" ", "\n"]), "no_text", "2 texts"),
        (changed("text_list.0", "\ud800"), "bad_unicode", "'\\ud800' at "),
        (changed("image_info", []), "no_images", ""),
        (changed("image_info.0", 7), "wrong_type", "image_info[0] is 7, expected an object"),
        (changed("image_info.0.matched_text_index", True), "wrong_type", "True"),
        (changed("image_info.0.matched_text_index", 1.0), "wrong_type", "1.0"),
        (changed("image_info.0.matched_text_index", -1), "index_out_of_range", "-1"),
        (changed("image_info.0.matched_text_index", 3), "index_out_of_range", "3 texts"),
        (changed("image_info.0.matched_text_index", 10**90), "index_out_of_range", "60 digits"),
        (changed("image_info.0.matched_sim", "0.3"), "wrong_type", "matched_sim"),
        (changed("image_info.0.image_name", 5), "wrong_type", "image_name"),
        (changed("image_info.0.raw_url", None), "wrong_type", "raw_url"),
        (changed("similarity_matrix", [[0, 0, 0]]), "matrix_shape", "1 rows, image_info 2"),
        (changed("similarity_matrix.1", [0, 0]), "matrix_shape", "[1] has 2 columns"),
        (changed("similarity_matrix.1", 0), "wrong_type", "similarity_matrix[1]"),
        (changed("similarity_matrix.1.2", True), "wrong_type", "[1][2] is True"),
        (changed("similarity_matrix.1.2", None), "wrong_type", "[1][2] is None"),
        (changed("similarity_matrix.1.2", float("nan")), "not_finite", "[1][2] is nan"),
        (changed("similarity_matrix.1.2", 10**400), "not_finite", "60 digits"),
        (changed("similarity_matrix.1.2", 1.2), "similarity_out_of_range", "1.2"),
        (changed("similarity_matrix.1.2", 29), "similarity_out_of_range", "29"),
    ],
)
def test_every_fault_has_its_reason_and_names_the_field(line: str, reason: str, named: str):
    with pytest.raises(Rejected) as raised:
        parse_document(line)
    assert raised.value.reason == reason
    assert named in raised.value.detail
    assert len(raised.value.detail) < 250
    raised.value.detail.encode("utf-8")


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
PATHS = [
    "url",
    "text_list",
    "text_list.0",
    "image_info",
    "image_info.0",
    "image_info.1.raw_url",
    "image_info.0.matched_sim",
    "image_info.0.matched_text_index",
    "similarity_matrix",
    "similarity_matrix.0",
    "similarity_matrix.1.1",
    "further",
]


@settings(max_examples=300, deadline=None)
@given(path=st.sampled_from(PATHS), value=ANYTHING)
def test_any_value_anywhere_is_a_document_or_a_reason(path: str, value: Any):
    check(changed(path, value))


@settings(max_examples=200, deadline=None)
@given(start=st.integers(0, 500), length=st.integers(0, 30), junk=st.text(max_size=8))
def test_any_edit_of_the_line_is_a_document_or_a_reason(start: int, length: int, junk: str):
    line = json.dumps(GOOD)
    check(line[:start] + junk + line[start + length :])


def check(line: str) -> None:
    try:
        found = parse_document(line)
    except Rejected as error:
        assert error.reason in DOCUMENT_REASONS
        error.detail.encode("utf-8")
    else:
        assert len(found.similarity) == len(found.image_urls) == len(found.matched_text_index) > 0
        assert all(len(row) == len(found.texts) for row in found.similarity)
        "".join([found.url, *found.texts, *found.image_urls]).encode("utf-8")


@settings(max_examples=60, deadline=None)
@given(edits=st.lists(st.tuples(st.sampled_from(PATHS), ANYTHING), min_size=1, max_size=6))
def test_any_documents_become_rows_of_the_table(edits: list[tuple[str, Any]]):
    lines = [changed(path, value) for path, value in edits]
    table = pa.table(
        {
            "key": [f"d-{i}" for i in range(len(lines))],
            "source": ["d.jsonl"] * len(lines),
            "record": list(range(1, len(lines) + 1)),
            "links": pa.array([[]] * len(lines), pa.list_(LINK_TYPE)),
            "drop_reason": pa.nulls(len(lines), pa.string()),
            "drop_detail": pa.nulls(len(lines), pa.string()),
            "line": lines,
        }
    )
    parsed = ParseDocuments(Rules())(table)
    assert parsed.schema.equals(PARSED) and parsed["key"].equals(table["key"])
    for row in parsed.to_pylist():
        assert (row["drop_reason"] is None) == (row["texts"] is not None)
        assert row["drop_reason"] is not None or len(row["links"]) == 2


@pytest.mark.timeout(60)
def test_freak_documents_take_no_more_than_linear_time():
    many = {f"f{i}": 0 for i in range(50_000)}
    with pytest.raises(Rejected, match="last appears twice"):
        parse_document(json.dumps(many)[:-1] + ', "last": 1, "last": 2}')
    info = [{"raw_url": "", "matched_text_index": 0}] * 50_000
    document = {"url": "", "text_list": ["a"], "image_info": info}
    found = parse_document(json.dumps(document | {"similarity_matrix": [[0.5]] * 50_000}))
    outcomes = choose_images(found.similarity, found.texts, Rules())
    assert sum(o.reason is None for o in outcomes) == 256


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800", {"x": [float("nan")]}])
def test_a_field_that_is_not_used_costs_no_document(value: object):
    line = changed("face_detections", value)
    assert parse_document(line) == parse_document(changed("face_detections", None))
