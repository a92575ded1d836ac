"""Files are there as a whole or not at all, wherever they lie."""

import errno
import os
import pickle
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pytest

from pipelines.core.storage import (
    Storage,
    StorageError,
    read_arrow,
    read_arrow_schema,
    read_parquet,
    read_parquet_metadata,
    write_arrow,
    write_parquet,
)
from schemas.tables import LEDGER
from schemas.validation import SchemaError

ROW = {"key": "k", "source": "s", "record": 1, "stage": "x", "status": "kept"}


@pytest.fixture(params=["local", "memory", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    if request.param == "local":
        address = str(tmp_path / "out")
    elif request.param == "memory":
        address = f"memory://{uuid.uuid4().hex}/out"
    else:
        address = f"{request.getfixturevalue('s3_bucket')}/out"
    found = Storage(address)
    yield found
    found.delete("")


def test_what_is_committed_is_read_back(storage: Storage) -> None:
    assert storage.list("a") == [] and not storage.exists("a/b.txt")
    storage.commit("a/b.txt", b"first")
    storage.commit("a/b.txt", b"second")
    assert storage.commit("a/c.txt", lambda file: file.write(b"four")) == 4
    assert storage.list("a") == ["b.txt", "c.txt"] and storage.exists("a")
    assert storage.read_bytes("a/b.txt") == b"second" and storage.size("a/c.txt") == 4
    with storage.open("a/b.txt") as file:
        file.seek(3)
        assert file.read() == b"ond"
    storage.delete("a")
    storage.delete("a")
    assert not storage.exists("a/b.txt")
    with pytest.raises(FileNotFoundError):
        storage.read_bytes("a/b.txt")


def test_a_failed_write_leaves_what_was_there(storage: Storage) -> None:
    def fail(file: BinaryIO) -> None:
        file.write(b"half")
        raise RuntimeError("stop")

    storage.commit("a.txt", b"whole")
    with pytest.raises(RuntimeError, match="stop"):
        storage.commit("a.txt", fail)
    with pytest.raises(RuntimeError, match="stop"):
        storage.commit("b.txt", fail)
    assert storage.read_bytes("a.txt") == b"whole" and not storage.exists("b.txt")
    assert storage.list(".work/tmp") == []


def test_a_full_disk_is_said_in_words(storage: Storage) -> None:
    def fill(file: BinaryIO) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(
        StorageError, match=r"out/a\.txt( \(by way of .*\))?': No space left.*the disk is full"
    ) as caught:
        storage.commit("a.txt", fill)
    assert caught.value.errno == errno.ENOSPC


def test_a_folder_that_is_a_file_is_said_in_words(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(StorageError, match="out"):
        Storage(str(tmp_path / "out")).commit("a.txt", b"")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_forbidden_folder_is_said_in_words(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="no permission"):
        Storage(str(tmp_path / "out")).commit("a.txt", b"")


def test_writers_at_the_same_time_do_not_disturb_each_other(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    contents = [bytes([n]) * 10_000 for n in range(8)]

    def write(content: bytes) -> None:
        for _ in range(25):
            storage.commit("one", content)
            storage.commit(f"own{content[0]}", content)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, contents))
    assert storage.read_bytes("one") in contents
    assert [storage.read_bytes(f"own{n}") for n in range(8)] == contents
    # Nothing of the work is left, not even its folder.
    assert storage.list("") == ["one", *(f"own{n}" for n in range(8))]


def test_a_relative_root_means_the_same_in_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    storage = Storage("out")
    storage.commit("a", b"1")
    monkeypatch.chdir("/")
    assert pickle.loads(pickle.dumps(storage)).read_bytes("a") == b"1"
    assert Storage(f"file://{tmp_path}/out").read_bytes("a") == b"1"
    with pytest.raises(ValueError, match="empty"):
        Storage("")


def test_arrow_tables_keep_their_metadata(storage: Storage) -> None:
    table = pa.table({"x": pa.array([b"a" * 1000, None], pa.large_binary())})
    write_arrow(storage, "t.arrow", table.replace_schema_metadata({b"k": b"v"}))
    read = read_arrow(storage, "t.arrow")
    assert read.equals(table) and read.schema.metadata == {b"k": b"v"}
    assert read_arrow_schema(storage, "t.arrow").metadata == {b"k": b"v"}


def test_parquet_is_checked_both_ways_and_equal_for_equal_tables(storage: Storage) -> None:
    table = LEDGER.table([ROW] * 3)
    write_parquet(storage, "a.parquet", table, LEDGER, {b"k": b"v"})
    chunked = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    write_parquet(storage, "b.parquet", chunked, LEDGER, {b"k": b"v"})
    assert storage.read_bytes("a.parquet") == storage.read_bytes("b.parquet")
    assert read_parquet(storage, "a.parquet", LEDGER).equals(table)
    assert read_parquet(storage, "a.parquet", LEDGER, ["key"]).column_names == ["key"]
    assert read_parquet_metadata(storage, "a.parquet")[b"k"] == b"v"
    bad = table.set_column(0, "key", pa.array(["a", "b", "A.B"]))
    with pytest.raises(SchemaError, match=r"column 'key', row 2: 'A\.B'"):
        write_parquet(storage, "c.parquet", bad, LEDGER)
    assert not storage.exists("c.parquet")


def test_files_of_another_kind_or_version_are_named(storage: Storage) -> None:
    storage.commit("t.arrow", b"rubbish, and long enough to be looked at")
    with pytest.raises(SchemaError, match=r"out/t\.arrow: not an Arrow file"):
        read_arrow(storage, "t.arrow")
    storage.commit("t.parquet", b"rubbish, and long enough to be looked at")
    with pytest.raises(SchemaError, match=r"out/t\.parquet: not a Parquet file"):
        read_parquet(storage, "t.parquet", LEDGER)
    table = LEDGER.table([ROW])
    write_parquet(storage, "t.parquet", table, LEDGER, {b"emu.schema": b"ledger/9"})
    for columns in (None, ["key"]):
        with pytest.raises(
            SchemaError, match=r"out/t\.parquet: ledger: file is version 'ledger/9'"
        ):
            read_parquet(storage, "t.parquet", LEDGER, columns)
