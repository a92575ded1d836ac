"""Hostile records cost themselves alone: in every corpus, each field of a good record holds what it should not."""

import copy
import csv
import gzip
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.__main__ import main
from pipelines.miniworld import WORLDS
from tests.corpora.test_adopted import image, ledger, tar
from tests.corpora.test_worlds import world
from tests.exit_codes import exit_code

TEXTS = {
    "a million characters": "x" * 1_000_000,
    "control characters": "\x00\x1b[31m\u202e\x7f",
    "a path that climbs": "../../../../../../etc/passwd",
    "an absolute path": "/etc/passwd",
    "blank": " \n\t",
    "empty": "",
}
VALUES = [5, -1, 10**30, 1.5, True, None, [], {}, "\ud800"]
"""Of JSON, where the kind of a value is not certain either."""
LINES = [
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'{"url": "x", "url": "y"}',
    b'{"url": "\xff\xfe"}',
    b'{"url": "cut',
    b"[[[]]]",
    b"null",
    b'{"n": 1e999}',
]


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of the texts in a record; of a list the first element stands for all."""
    if isinstance(value, str):
        yield path
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value[:1])
        if isinstance(value, list)
        else ()
    )
    for name, item in items:
        yield from leaves(item, (*path, name))


def changed(record: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """A copy of a record with another value at a path."""
    record = copy.deepcopy(record)
    inner: Any = record
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    return record


def hostile_json(record: dict[str, Any]) -> list[bytes]:
    found = []
    for path in leaves(record):
        old = record
        for name in path:
            old = old[name]
        for value in (*TEXTS.values(), *VALUES, [old], {"x": old}):
            found.append(json.dumps(changed(record, path, value)).encode())
    return [*found, *LINES]


def hostile_texts(record: dict[str, Any]) -> list[dict[str, Any]]:
    return [changed(record, path, text) for path in leaves(record) for text in TEXTS.values()]


def spoil_parquet(file: Path) -> tuple[int, int]:
    table = pq.read_table(file)
    rows = table.to_pylist()
    more = hostile_texts(rows[0]) + [dict.fromkeys(rows[0])]
    pq.write_table(pa.Table.from_pylist([*rows, *more], schema=table.schema), file)
    return len(rows), len(more)


def spoil_csv(file: Path) -> tuple[int, int]:
    rows = list(csv.DictReader(file.read_text().splitlines()))
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    # a row of nothing but spaces and line ends is quoted, and so is a row like others
    more = hostile_texts(rows[0])
    writer.writerows([*rows, *more])
    broken = [
        b"too,few\n",
        b"," * 99 + b"\n",
        b"\xff\xfe" + b"," * (len(rows[0]) - 1) + b"\n",
        b'"open\n',
    ]
    file.write_bytes(out.getvalue().encode() + b"".join(broken))
    return len(rows), len(more) + len(broken)


def spoil_lines(file: Path) -> tuple[int, int]:
    opened: Callable[..., Any] = gzip.open if file.suffix == ".gz" else open
    with opened(file, "rb") as lines:
        good = lines.read().splitlines()
    more = hostile_json(json.loads(good[0]))
    with opened(file, "wb") as lines:
        lines.write(b"\n".join([*good, *more]) + b"\n")
    return len(good), len(more)


def spoil_array(file: Path) -> tuple[int, int]:
    records = json.loads(file.read_bytes())
    if not isinstance(records, list):
        return 1, 0
    if not records:
        return 0, 0
    more = [
        record for record in hostile_json(records[0]) if not record.startswith((b"[[[[", b'{"a":{'))
    ]
    whole = [
        r for r in more if r != b'{"url": "cut'
    ]  # an open quote costs what follows, as it should
    good = [json.dumps(r).encode() for r in records]
    file.write_bytes(b"[" + b",\n".join([*good, *whole]) + b"]")
    return len(good), len(whole)


SPOIL = {
    ".parquet": spoil_parquet,
    ".csv": spoil_csv,
    ".jsonl": spoil_lines,
    ".gz": spoil_lines,
    ".json": spoil_array,
}


@pytest.mark.parametrize("corpus", WORLDS)
def test_hostile_records_cost_themselves_alone(tmp_path: Path, corpus: str) -> None:
    with world(corpus, tmp_path / "world", 4) as command:
        counts = {}
        for name in ("documents", "metadata", "dialogues", "."):
            for file in sorted((tmp_path / "world" / name).glob("*")):
                if file.suffix in SPOIL and file.stem not in ("truth", "summary"):
                    counts[str(file)] = SPOIL[file.suffix](file)
        out = tmp_path / "out"
        media = ["--media", str(tmp_path / "world/images")]
        if "--media" in command or corpus == "yt_storyboard":  # its sheets are fetched
            media = []
        options = ["--out", str(out), "--runner", "local", "--fetch.retries", "1"]
        assert exit_code(main, [*command, *options, *media]) == 0
    assert sum(more for _, more in counts.values()) > 20
    rows = [row for file in (out / "ledger").iterdir() for row in pq.read_table(file).to_pylist()]
    records = {(row["source"], row["record"]) for row in rows if row["slot"] is None}
    good = {
        (file, number)
        for file, (num_good, _) in counts.items()
        for number in range(1, num_good + 1)
    }
    for file, (num_good, num_more) in counts.items():
        own = {number for source, number in records if source == file}
        assert len(own) == num_good + num_more, "every record has its row"
    kept = {(r["source"], r["record"]) for r in rows if r["slot"] is None and r["status"] == "kept"}
    assert kept & good, "records that are good stay"
    assert exit_code(main, ["inspect", str(out), "--lint"]) == 0
    for file in (out / "shards").iterdir():
        assert b"root:" not in file.read_bytes(), "nothing comes from outside of the media folder"


def json_pair(key: str, about: bytes) -> list[tuple[str, bytes]]:
    return [(f"{key}.jpg", image()), (f"{key}.json", about)]


ADOPTED = {
    "absolute names": ([("/etc/k.jpg", image()), ("/etc/k.txt", b"x")], None),
    "names that climb": ([("../../k.jpg", image()), ("../../k.txt", b"x")], None),
    "names that are no UTF-8": ([("k\udcff.jpg", image()), ("k\udcff.txt", b"x")], None),
    "a million characters": ([("k.jpg", image()), ("k.txt", b"x" * 1_000_000)], None),
    "control characters": ([("k.jpg", image()), ("k.txt", b"\x00\x1b[31m")], None),
    "huge numbers": (json_pair("k", b'{"similarity": 1' + b"0" * 400 + b', "n": 1e999}'), None),
    "doubled keys": (json_pair("k", b'{"caption": "a", "caption": "b"}'), "doubled_field"),
    "deep JSON": (json_pair("k", b"[" * 100_000), "nested_too_deeply"),
    "half a character": (json_pair("k", b'{"caption": "\\ud800"}'), "bad_unicode"),
    "JSON of another depth": (json_pair("k", b'[[{"caption": "x"}]]'), None),
    "JSON that is no UTF-8": (json_pair("k", b'{"caption": "\xff"}'), "not_utf8"),
}


@pytest.mark.parametrize("what", ADOPTED)
def test_hostile_members_cost_their_sample_alone(tmp_path: Path, what: str) -> None:
    members, reason = ADOPTED[what]
    tar(tmp_path / "t.tar", [("good.jpg", image()), ("good.txt", b"good"), *members])
    assert exit_code(main, ["adopt", str(tmp_path)]) == 0
    assert ledger(tmp_path) == {1: None, 2: reason}
    assert exit_code(main, ["inspect", str(tmp_path), "--lint"]) == 0
