"""The manifest: documented field by field, the identity through JSON, refused where it does not hold."""

import json
import tracemalloc
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tables import documented

from schemas.manifest import Fingerprint, Manifest, ShardEntry, Tally, manifest_from_json
from schemas.shard import shard_name
from schemas.validation import SchemaError

WHOLE = Manifest(
    corpus="c",
    shards=(
        ShardEntry("c-000000", 2, 3, 4096, "0" * 64),
        ShardEntry("c-000001", 1, 0, 2048, "1" * 64),
    ),
    records=Tally(5, 3, {"too_small": 2}),
    links=Tally(4, 3, {"not_found": 1}),
    fingerprint=Fingerprint("a", "b", "c"),
)

counts = st.integers(0, 10**9)
dropped = st.dictionaries(st.from_regex(r"\A[a-z_]{1,12}\Z"), counts, max_size=3)
tallies = st.builds(
    lambda kept, lost: Tally(kept + sum(lost.values()), kept, lost), counts, dropped
)
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    number = draw(st.integers(0, 5))
    entries = tuple(
        ShardEntry(shard_name("c", n), draw(counts), draw(counts), draw(counts), "0" * 64)
        for n in range(number)
    )
    kept = sum(e.num_samples for e in entries)
    lost = draw(dropped)
    return Manifest(
        corpus="c",
        shards=entries,
        records=Tally(kept + sum(lost.values()), kept, lost),
        links=draw(tallies),
        fingerprint=Fingerprint(draw(words), draw(words), draw(words)),
        stages={"parse": {"seen": draw(counts), "dropped": draw(dropped)}},
        alarms=tuple(draw(st.lists(words, max_size=2))),
        config=draw(st.dictionaries(words, words, max_size=3)),
        features=draw(st.one_of(st.none(), st.just({"encoder": "eva"}))),
        modules=draw(st.dictionaries(words, words, max_size=3)),
    )


def test_json_of_many_shards_takes_little_memory() -> None:
    """The text itself has 200 bytes per shard."""
    num_shards = 10_000
    entries = tuple(
        ShardEntry(shard_name("c", n), 0, 0, 4096 + n, f"{n:064x}") for n in range(num_shards)
    )
    manifest = replace(WHOLE, shards=entries, records=Tally(0, 0), links=Tally(0, 0))
    tracemalloc.start()
    try:
        text = manifest.to_json()
        assert tracemalloc.get_traced_memory()[1] / num_shards < 1000
    finally:
        tracemalloc.stop()
    assert manifest_from_json(text) == manifest


@settings(max_examples=60, deadline=None)
@given(manifests())
def test_json_gives_the_manifest_back(manifest: Manifest) -> None:
    text = manifest.to_json()
    assert manifest_from_json(text) == manifest
    assert manifest_from_json(text).to_json() == text


def test_the_docstring_lists_exactly_the_fields() -> None:
    assert set(documented("schemas.manifest", "Version 2")) == set(json.loads(WHOLE.to_json()))


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        (
            replace(WHOLE, records=Tally(6, 3, {"a": 2})),
            r"records: total 6 is not kept 3 \+ dropped 2",
        ),
        (replace(WHOLE, links=Tally(1, 2)), "links: total 1 is not kept 2"),
        (replace(WHOLE, records=Tally(4, 4)), "4 records kept, but the shards hold 3 samples"),
        (replace(WHOLE, shards=WHOLE.shards[::-1]), "doubled or out of order"),
        (
            replace(WHOLE, shards=WHOLE.shards[:1] * 2, records=Tally(4, 4)),
            "doubled or out of order",
        ),
    ],
)
def test_a_manifest_that_does_not_hold_is_not_written(manifest: Manifest, words: str) -> None:
    with pytest.raises(SchemaError, match=words):
        manifest.to_json()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": "manifest/9"}, "'manifest/9', this release reads manifest/1 and manifest/2"),
        ({"sample": "sample/9"}, "samples of version 'sample/9', this release reads 'sample/1'"),
        ({"records": {"total": 9, "kept": 3, "dropped": {}}}, "records: total 9"),
        ({"shards": [{"name": "c-000000"}]}, "not a manifest"),
        ({"surprise": 1}, "not a manifest"),
        ({"records": None}, "not a manifest"),
    ],
)
def test_a_bad_manifest_is_named(change: dict, words: str) -> None:
    document = json.loads(WHOLE.to_json()) | change
    with pytest.raises(SchemaError, match=words):
        manifest_from_json(json.dumps(document), "out/manifest.json")


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "{}", '"manifest/1"', "7"])
def test_rubbish_is_no_manifest(text: str) -> None:
    with pytest.raises(SchemaError, match=r"out/manifest\.json: not a manifest"):
        manifest_from_json(text, "out/manifest.json")


def test_a_manifest_of_version_1_is_read() -> None:
    document = json.loads(WHOLE.to_json()) | {"schema": "manifest/1"}
    del document["modules"]
    assert manifest_from_json(json.dumps(document)) == WHOLE
