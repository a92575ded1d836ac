"""Whole copies of tars from an object store: what is read is what was published, and the bound holds."""

import hashlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from emu.data.dataset import Dataset, DatasetError, ShardReader
from emu.data.tars import ShardCache
from tests.data.small_dataset import pair, write_dataset

FAR = "memory://cached"


@pytest.fixture
def far(tmp_path: Path) -> Iterator[Dataset]:
    """Six shards in memory, reached as an object store is."""
    local = write_dataset(tmp_path / "pairs", [pair(number) for number in range(30)], 5)
    system = fsspec.filesystem("memory")
    system.put(str(local), "/cached", recursive=True)
    yield Dataset(FAR)
    system.rm("/cached", recursive=True)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tars that were opened to be fetched whole."""
    names: list[str] = []
    original = MemoryFileSystem.open

    def noted(self: MemoryFileSystem, path: str, *arguments: Any, **options: Any) -> Any:
        if path.endswith(".tar"):
            names.append(path)
            time.sleep(0.05)
        return original(self, path, *arguments, **options)

    monkeypatch.setattr(MemoryFileSystem, "open", noted)
    return names


def sizes(cache: ShardCache) -> int:
    """Bytes of all copies and transfers; a file may be renamed or removed while it is looked at."""
    found: dict[str, int] = {}
    for path in cache.folder.glob("*.[tp]a*"):
        with suppress(FileNotFoundError):
            found[path.stem] = path.stat().st_size
    return sum(found.values())


def test_samples_from_copies_are_those_of_the_dataset(
    far: Dataset, tmp_path: Path, opened: list[str]
) -> None:
    total = sum(entry.num_bytes for entry in far.entries)
    cached = Dataset(FAR, cache=ShardCache(tmp_path / "cache", total))
    for _ in range(2):
        for shard, entry in enumerate(far.entries):
            for row in range(entry.num_samples):
                assert cached.sample(shard, row) == far.sample(shard, row)
    assert len(opened) == len(far.entries) == 6
    assert {p.stem for p in (tmp_path / "cache").glob("*.tar")} == {e.sha256 for e in far.entries}


def test_the_oldest_copies_make_room_and_the_bound_holds(
    far: Dataset, tmp_path: Path, opened: list[str]
) -> None:
    biggest = max(entry.num_bytes for entry in far.entries)
    cache = ShardCache(tmp_path / "cache", 2 * biggest)
    cached = Dataset(FAR, cache=cache)
    for shard in (0, 1, 0, 2, 0):  # 1 is the one that was read longest ago when 2 comes
        cached.sample(shard, 0)
        time.sleep(0.02)
        assert sizes(cache) <= cache.max_bytes
    assert [Path(name).stem for name in opened] == [far.entries[n].name for n in (0, 1, 2)]
    kept = {path.stem for path in cache.folder.glob("*.tar")}
    assert kept == {far.entries[0].sha256, far.entries[2].sha256}


def test_readers_at_the_same_time_fetch_a_tar_once_within_the_bound(
    far: Dataset, tmp_path: Path, opened: list[str]
) -> None:
    biggest = max(entry.num_bytes for entry in far.entries)
    cache = ShardCache(tmp_path / "cache", 2 * biggest)
    largest, is_over = [0], threading.Event()

    def watch() -> None:
        while not is_over.is_set():
            largest.append(sizes(cache) if cache.folder.exists() else 0)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with ThreadPoolExecutor(8) as pool:
            same = list(pool.map(lambda _: Dataset(FAR, cache=cache).sample(0, 1), range(8)))
            assert [Path(name).stem for name in opened] == [far.entries[0].name]
            each = list(pool.map(lambda n: Dataset(FAR, cache=cache).sample(n, 2), range(6)))
    finally:
        is_over.set()
        watcher.join()
    assert same == [far.sample(0, 1)] * 8
    assert each == [far.sample(n, 2) for n in range(6)]
    assert max(largest) <= cache.max_bytes


def test_a_transfer_that_was_killed_is_removed(far: Dataset, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", max(entry.num_bytes for entry in far.entries))
    cache.folder.mkdir()
    left = cache.folder / f"{'0' * 64}.partial"
    left.write_bytes(bytes(cache.max_bytes))  # takes all the room
    assert Dataset(FAR, cache=cache).sample(3, 0) == far.sample(3, 0)
    assert not left.exists()


def test_a_tar_that_arrives_damaged_is_named_and_leaves_nothing(
    far: Dataset, tmp_path: Path
) -> None:
    system = fsspec.filesystem("memory")
    path = f"/cached/{far.entries[1].tar}"
    data = bytearray(system.cat_file(path))
    data[600] ^= 1
    system.pipe_file(path, bytes(data))
    cache = ShardCache(tmp_path / "cache", 10**9)
    with pytest.raises(DatasetError, match=rf"{far.entries[1].name}\.tar.*another hash"):
        Dataset(FAR, cache=cache).sample(1, 0)
    assert sizes(cache) == 0


def test_a_cache_that_cannot_hold_what_is_read_at_a_time_is_refused(
    far: Dataset, tmp_path: Path
) -> None:
    small = ShardCache(tmp_path / "cache", 100)
    with pytest.raises(DatasetError, match=r"may hold 100; give a larger"):
        Dataset(FAR, cache=small).sample(0, 0)
    window = ShardReader(FAR, seed=0, window=4).largest_window()
    assert len(window) == 4
    with pytest.raises(DatasetError, match=r"give at least --train\.shard-cache-gb"):
        ShardCache(tmp_path, sum(e.num_bytes for e in window) - 1).check([window])
    ShardCache(tmp_path, sum(e.num_bytes for e in window)).check([window])


def test_local_tars_need_no_cache(tmp_path: Path) -> None:
    local = write_dataset(tmp_path / "pairs", [pair(number) for number in range(5)])
    cache = ShardCache(tmp_path / "cache", 10)
    reader = ShardReader(local, seed=0, cache=cache)
    assert reader.largest_window() == []
    next(iter(reader))
    assert not cache.folder.exists()


def test_the_name_of_a_copy_is_the_hash_of_its_bytes(far: Dataset, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", 10**9)
    Dataset(FAR, cache=replace(cache)).sample(4, 0)
    (copy,) = cache.folder.glob("*.tar")
    assert hashlib.sha256(copy.read_bytes()).hexdigest() == copy.stem
