import itertools
import json
from pathlib import Path

import fsspec
import pytest

from emu.data.dataset import DatasetError, ShardReader
from schemas.manifest import MANIFEST_FILE
from tests.data.small_dataset import document, pair, write_dataset


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "pairs", [pair(number) for number in range(37)])


def keys(reader: ShardReader, count: int) -> list[str]:
    return [sample.key for sample in itertools.islice(reader, count)]


def test_an_epoch_holds_every_sample_once_and_the_next_in_another_order(dataset: Path):
    reader = ShardReader(dataset, seed=1)
    first, second = keys(reader, 37), keys(reader, 37)
    assert sorted(first) == sorted(second) == [f"pair-{n:05d}" for n in range(37)]
    assert first != second and first != sorted(first)


def test_samples_are_whole(tmp_path: Path):
    samples = [document(number) for number in range(12)]
    reader = ShardReader(write_dataset(tmp_path / "docs", samples, 5), seed=0)
    assert {s.key: s for s in itertools.islice(reader, 12)} == {s.key: s for s in samples}


def test_without_shuffle_the_order_is_that_of_the_shards(dataset: Path):
    assert keys(ShardReader(dataset, seed=9, shuffle=False), 37) == [
        f"pair-{n:05d}" for n in range(37)
    ]


@pytest.mark.parametrize("stop", [0, 1, 36, 37, 50, 111])
def test_a_saved_position_resumes_exactly(dataset: Path, stop: int):
    reader = ShardReader(dataset, seed=5)
    keys(reader, stop)
    state = json.loads(json.dumps(reader.state()))
    assert (state["epoch"], state["position"]) == divmod(stop, 37)
    resumed = ShardReader(dataset, seed=5)
    resumed.load(state)
    assert keys(resumed, 60) == keys(reader, 60)


def test_small_windows_keep_reads_near_and_still_visit_everything_once(dataset: Path):
    reader = ShardReader(dataset, seed=2, window=1)
    visits = [reader.visit(position) for position in range(37)]
    assert len({visit.sample.key for visit in visits}) == 37
    shards = [shard for shard, _ in itertools.groupby(visit.shard for visit in visits)]
    assert sorted(shards) == [0, 1, 2, 3]  # each shard is read in one go


def test_a_state_of_another_dataset_or_seed_is_refused(dataset: Path, tmp_path: Path):
    state = ShardReader(dataset, seed=5).state()
    with pytest.raises(DatasetError, match="saved position is for seed 5, here it is 6"):
        ShardReader(dataset, seed=6).load(state)
    other = write_dataset(tmp_path / "other", [pair(number) for number in range(36)])
    with pytest.raises(DatasetError, match="dataset"):
        ShardReader(other, seed=5).load(state)


@pytest.mark.parametrize("scheme", ["memory", "s3"])
def test_a_dataset_is_read_from_any_fsspec_address(
    dataset: Path, scheme: str, request: pytest.FixtureRequest
):
    root = "memory://far" if scheme == "memory" else request.getfixturevalue("s3_bucket")
    fsspec.filesystem(scheme).put(f"{dataset}/", f"{root}/pairs/", recursive=True)
    far, near = ShardReader(f"{root}/pairs", seed=1), ShardReader(dataset, seed=1)
    assert list(itertools.islice(far, 40)) == list(itertools.islice(near, 40))


def test_an_incomplete_dataset_is_refused_with_a_hint(dataset: Path):
    (dataset / MANIFEST_FILE).unlink()
    with pytest.raises(DatasetError, match=r"no manifest.json.*run the build again"):
        ShardReader(dataset, seed=0)


def test_a_dataset_without_samples_is_refused(tmp_path: Path):
    with pytest.raises(DatasetError, match="holds no samples"):
        ShardReader(write_dataset(tmp_path / "empty", []), seed=0)


def test_an_unknown_version_is_named(dataset: Path):
    manifest = dataset / MANIFEST_FILE
    manifest.write_text(manifest.read_text().replace("manifest/2", "manifest/9"))
    with pytest.raises(DatasetError, match="manifest/9"):
        ShardReader(dataset, seed=0)


def test_a_cut_or_missing_tar_is_named(dataset: Path):
    tar = dataset / "shards" / "pairs-000001.tar"
    tar.write_bytes(tar.read_bytes()[:-700])
    with pytest.raises(DatasetError, match=r"pairs-000001.tar: \d+ bytes, the manifest says"):
        keys(ShardReader(dataset, seed=0), 37)
    tar.unlink()
    with pytest.raises(DatasetError, match=r"pairs-000001.tar.*missing"):
        keys(ShardReader(dataset, seed=0), 37)


def test_an_index_that_does_not_fit_is_named(dataset: Path):
    index = dataset / "index"
    (index / "pairs-000001.parquet").write_bytes((index / "pairs-000003.parquet").read_bytes())
    with pytest.raises(DatasetError, match=r"pairs-000001.parquet: 7 rows.*10 samples"):
        keys(ShardReader(dataset, seed=0), 37)
