import gc
import io
import json
import random
from decimal import Decimal
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.readers.columns import Column, TableColumns
from pipelines.readers.files import InputError
from pipelines.readers.parquet import (
    BATCH_ROWS,
    BUFFER_BYTES,
    ParquetSource,
    RowReader,
    open_parquet,
)

COLUMNS = (Column("url", pa.string()), Column("width", pa.float64(), is_required=False))


def write(path: Path, num_rows: int, group_rows: int = 100, **others: Any) -> Path:
    urls = [f"http://a.example/{path.stem}/{n}" for n in range(num_rows)]
    pq.write_table(pa.table({"URL": urls, **others}), path, row_group_size=group_rows)
    return path


def source(*files: Path, **options: Any) -> ParquetSource:
    return ParquetSource([str(f) for f in files], columns=COLUMNS, **options)


def urls_of(parquet: ParquetSource, order: Any = lambda shards: shards) -> dict[str, list[str]]:
    return {s.name: parquet.read(s)["url"].to_pylist() for s in order(list(parquet.plan("laion")))}


@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=3),
    group_rows=st.integers(1, 25),
    per_shard=st.integers(1, 50),
    limit=st.none() | st.integers(1, 60),
    seed=st.integers(0, 9),
)
def test_shards_hold_every_row_once_in_whatever_order_they_are_read(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    group_rows: int,
    per_shard: int,
    limit: int | None,
    seed: int,
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    files = [write(folder / f"p{i}.parquet", n, group_rows) for i, n in enumerate(sizes)]
    options = {"samples_per_shard": per_shard, "limit": limit}
    in_order = urls_of(source(*files, **options))
    wanted = [url for f in files for url in pq.read_table(f)["URL"].to_pylist()][:limit]
    assert [url for urls in in_order.values() for url in urls] == wanted
    assert all(len(urls) == per_shard for urls in list(in_order.values())[:-1])
    shuffled = urls_of(source(*files, **options), lambda s: random.Random(seed).sample(s, len(s)))
    assert shuffled == in_order


def test_rows_keep_their_numbers_and_keys(tmp_path: Path) -> None:
    file = write(tmp_path / "part-00000-51.c000.snappy.parquet", 2 * BATCH_ROWS, BATCH_ROWS + 7)
    parquet = source(file, samples_per_shard=BATCH_ROWS + 3)
    second = parquet.read(parquet.plan("laion")[1])
    assert second["record"].to_pylist()[0] == BATCH_ROWS + 4
    assert second["key"][0].as_py() == f"part-00000-51_c000-{BATCH_ROWS + 4:07d}"
    assert second["url"][0].as_py().endswith(f"/{BATCH_ROWS + 3}")


class CountingFile(io.FileIO):
    """A file that counts the bytes that are read of it."""

    num_read = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(-1 if size is None else size)
        self.num_read += len(data)
        return data


def test_a_shard_reads_its_row_groups_and_no_others(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).bytes(1 << 20).hex()
    notes = [noise[n * 1000 : (n + 1) * 1000] for n in range(2000)]
    path = write(tmp_path / "f.parquet", 2000, 100, note=notes)
    file, size = CountingFile(path), path.stat().st_size
    opened = open_parquet(file, "f.parquet")
    assert isinstance(opened, pq.ParquetFile)
    assert file.num_read < size / 20, "planning reads the footer"
    columns = TableColumns(opened.schema_arrow, COLUMNS, "f.parquet")
    file.num_read = 0
    ((number, table),) = RowReader("f.parquet", file, opened, columns).rows(1101, 100)
    assert number == 1101 and isinstance(table, pa.Table)
    assert table["URL"][0].as_py().endswith("/1100")
    assert size / 40 < file.num_read < size / 8


def test_files_at_addresses_are_read_as_local_ones(tmp_path: Path) -> None:
    path = write(tmp_path / "f.parquet", 250)
    fsspec.filesystem("memory").pipe("/laion-rows/f.parquet", path.read_bytes())
    remote = ParquetSource(["memory://laion-rows/*.parquet"], 90, columns=COLUMNS)
    local = source(path, samples_per_shard=90)
    assert urls_of(remote) == urls_of(local)
    (first, *_) = remote.plan("laion")
    assert remote.read(first)["source"][0].as_py() == "memory:///laion-rows/f.parquet"


def test_other_columns_are_json_and_those_of_no_json_are_left_out(tmp_path: Path) -> None:
    table = {
        "LICENSE": ["?", None],
        "all_captions": [["a", "b"], []],
        "all_similarities": [[0.5, float("nan")], None],
        "hash": [-(2**63), 2**63 - 1],
        "score": [float("inf"), 0.25],
        "box": [{"x": 1, "y": float("nan")}, None],
        "price": [Decimal("1.50"), None],
        "seen": pa.array([0, 1], pa.timestamp("s")),
        "kind": pa.array(["a", "b"]).dictionary_encode(),
        "embedding": [b"\0\1", b""],
        "__index_level_0__": [0, 1],
        "WIDTH": pa.array([640, None], pa.int32()),
    }
    parquet = source(write(tmp_path / "f.parquet", 2, **table))
    found = parquet.read(parquet.plan("laion")[0])
    assert found["width"].to_pylist() == [640.0, None]
    first, second = map(json.loads, found["extra"].to_pylist())
    assert first == {
        "LICENSE": "?",
        "all_captions": ["a", "b"],
        "all_similarities": [0.5, None],
        "hash": -(2**63),
        "score": None,
        "box": {"x": 1, "y": None},
        "price": "1.50",
        "seen": "1970-01-01 00:00:00.000",
        "kind": "a",
    }
    assert second["hash"] == 2**63 - 1 and second["all_similarities"] is None


def test_texts_that_are_not_utf8_drop_their_rows_alone(tmp_path: Path) -> None:
    bad = pa.array([b"a", b"\xff\xfe", b"c", b"d"], pa.binary()).view(pa.string())
    nested = pa.ListArray.from_arrays(
        [0, 1, 2, 3, 4],
        pa.array([b"w", b"x", b"\xed\xa0\x80", b"z"], pa.binary()).view(pa.string()),
    )
    file = write(tmp_path / "f.parquet", 4, TEXT=bad, all_captions=nested)
    parquet = ParquetSource([str(file)], columns=(*COLUMNS, Column("text", pa.string())))
    found = parquet.read(parquet.plan("laion")[0])
    assert found["drop_reason"].to_pylist() == [None, "not_utf8", "not_utf8", None]
    assert found["drop_detail"][2].as_py() == "column 'all_captions'"
    assert found["text"].to_pylist() == ["a", None, None, "d"]
    assert found["record"].to_pylist() == [1, 2, 3, 4]


def whole_file() -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"URL": ["http://a.example/0"]}), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "reason", "detail"),
    [
        (b"", "input_truncated", "0 bytes without the footer"),
        (b"PAR1", "input_truncated", "4 bytes without the footer"),
        (whole_file()[:-20], "input_truncated", "without the footer of a Parquet file"),
        (b"URL,TEXT\n" * 9, "input_corrupt", "not a Parquet file: it begins with b'URL,'"),
        (b"PAR1" + b"\xff" * 40 + b"PAR1", "input_corrupt", "the footer: "),
        (b"PAR1" + b"\x15" * 40 + b"\x20\0\0\0PAR1", "input_corrupt", "the footer: "),
    ],
)
def test_a_file_without_a_readable_footer_is_one_row(
    tmp_path: Path, data: bytes, reason: str, detail: str
) -> None:
    (tmp_path / "a.parquet").write_bytes(data)
    parquet = source(tmp_path / "a.parquet", write(tmp_path / "b.parquet", 2))
    (shard,) = parquet.plan("laion")
    table = parquet.read(shard)
    assert table["drop_reason"].to_pylist() == [reason, None, None]
    assert detail in table["drop_detail"][0].as_py()


def test_a_damaged_row_group_drops_its_rows_and_no_others(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", 300, 100)
    data = bytearray(path.read_bytes())
    start = pq.read_metadata(path).row_group(1).column(0).dictionary_page_offset
    data[start : start + 40] = b"\xff" * 40
    path.write_bytes(data)
    shards = source(path, samples_per_shard=70).plan("laion")
    in_order, reverse = source(path, samples_per_shard=70), source(path, samples_per_shard=70)
    tables = [in_order.read(s) for s in shards]
    assert [t.num_rows for t in tables] == [70, 70, 70, 70, 20]
    reasons = pa.concat_tables(tables)["drop_reason"].to_pylist()
    assert reasons == [None] * 100 + ["input_corrupt"] * 100 + [None] * 100
    assert [reverse.read(s) for s in reversed(shards)] == tables[::-1]


@given(st.data())
def test_damage_anywhere_is_rows_or_an_error_in_words(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = write(tmp_path_factory.mktemp("damage") / "a.parquet", 60, 20)
    content = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(4, len(content) - 9), min_size=1, max_size=5)):
        content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    parquet = source(path, samples_per_shard=25)
    try:
        shards = parquet.plan("laion")
    except InputError:
        return  # the name of a column is damaged
    if sum(s.num_records for s in shards) <= 60:  # the footer may claim any number of rows
        assert [parquet.read(s).num_rows for s in shards] == [s.num_records for s in shards]


def test_wrong_columns_are_named_when_the_shards_are_planned(tmp_path: Path) -> None:
    path = tmp_path / "f.parquet"
    pq.write_table(pa.table({"URLS": ["u"], "WIDTH": ["wide"]}), path)
    with pytest.raises(InputError, match=r"f\.parquet': no column 'url'; there are: URLS, WIDTH; "):
        source(path).plan("laion")
    pq.write_table(pa.table({"URL": ["u"], "WIDTH": ["wide"]}), path)
    with pytest.raises(InputError, match="column 'WIDTH' is string, expected a number"):
        source(path).plan("laion")
    pq.write_table(pa.table({"URL": [1]}), path)
    with pytest.raises(InputError, match="column 'URL' is int64, expected text"):
        source(path).plan("laion")


def test_a_file_that_changed_since_the_plan_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "f.parquet", 10)
    shards = source(path).plan("laion")
    write(path, 11)
    with pytest.raises(InputError, match="has changed: it had 10 rows"):
        source(path).read(shards[0])
    path.write_bytes(b"")
    with pytest.raises(InputError, match="has changed: 0 bytes without"):
        source(path).read(shards[0])


class Recorded(io.BytesIO):
    """A file that keeps how many bytes each read returned."""

    sizes: list[int]

    def read(self, size: int | None = -1, /) -> bytes:
        found = super().read(size)
        self.sizes.append(len(found))
        return found


@pytest.mark.parametrize("reads_ahead", [False, True])
def test_a_row_group_is_read_in_small_parts_unless_it_is_remote(
    tmp_path: Path, reads_ahead: bool
) -> None:
    noise = np.random.default_rng(0).bytes(2_000_000).hex()  # 2 MB compressed
    notes = [noise[n * 200 : (n + 1) * 200] for n in range(20_000)]
    file = Recorded(write(tmp_path / "f.parquet", 20_000, 20_000, note=notes).read_bytes())
    file.sizes = []
    opened = open_parquet(file, "f.parquet", reads_ahead)
    assert isinstance(opened, pq.ParquetFile)
    columns = TableColumns(opened.schema_arrow, COLUMNS, "f.parquet")
    pieces = [piece for _, piece in RowReader("f.parquet", file, opened, columns).rows(1, 20_000)]
    assert sum(piece.num_rows for piece in pieces) == 20_000
    assert sum(file.sizes) > 2 * BUFFER_BYTES
    assert (max(file.sizes) > BUFFER_BYTES) == reads_ahead


def test_files_that_are_read_to_their_end_hold_no_memory(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).bytes(1 << 20).hex()
    notes = [noise[n * 100 : (n + 1) * 100] for n in range(20_000)]
    files = [write(tmp_path / f"f{n}.parquet", 20_000, 20_000, note=notes) for n in range(6)]
    parquet = source(*files, samples_per_shard=6_000)  # shards cross files
    shards = parquet.plan("laion")
    gc.disable()  # memory that only the collector of cycles would free is held for long
    try:
        before = pa.total_allocated_bytes()
        for shard in shards:
            parquet.read(shard)
        assert pa.total_allocated_bytes() - before < 1 << 18
    finally:
        gc.enable()
