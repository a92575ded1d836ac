"""Overwriting deletes what a build wrote and nothing else, only in folders with the marks of a build."""

import json
import shutil
import signal
from pathlib import Path

import pytest
from engine_jobs import Forks
from numbers_pipeline import NumberSource, contents, numbers_pipeline

from pipelines.core.pipeline import EngineError
from pipelines.core.resume import delete_dataset
from pipelines.core.run import run
from pipelines.core.storage import Storage
from pipelines.core.workspace import Workspace
from schemas.manifest import Manifest


def build(out: Path | str, num_records: int = 10, overwrite: bool = False) -> Manifest:
    pipeline = numbers_pipeline(NumberSource(num_records))
    return run(pipeline, str(out), overwrite=overwrite, progress=False)


def write(folder: Path, *paths: str) -> dict[str, str]:
    """Files of somebody else; what is in the folder then."""
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(f"mine: {path}")
    return contents(folder)


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("shards/mine.tar", "shards/mine.tar"),
        ("shards/numbers-000000.tar", "shards/numbers-000000.tar"),
        ("index/a.parquet", "index/a.parquet"),
        ("ledger/numbers-000000.parquet", "ledger/numbers-000000.parquet"),
        ("features/all.npy", "features/"),
        ("report.html", "report.html"),
        ("manifest.json", "manifest.json"),
        (".work/plan.json", ".work/plan.json"),
    ],
)
def test_a_folder_without_marks_of_a_build_is_left_as_it_is(
    tmp_path: Path, path: str, named: str
) -> None:
    before = write(tmp_path, path, "notes.txt", ".work/tmp/draft", ".work/01-idea/x")
    with pytest.raises(EngineError, match="choose another folder"):
        build(tmp_path)
    with pytest.raises(EngineError, match="nothing was deleted") as caught:
        build(tmp_path, overwrite=True)
    assert named in str(caught.value) and "nothing that shows that a build wrote it" in str(
        caught.value
    )
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "strange",
    [
        "shards/mine.tar",
        "shards/numbers-000000.tar.bak",
        "index/mine.parquet",
        "ledger/notes",
        "shards/numbers-000007.tar",
    ],
)
def test_a_strange_file_among_the_shards_stops_the_overwriting(
    tmp_path: Path, strange: str
) -> None:
    build(tmp_path)
    before = write(tmp_path, strange)
    with pytest.raises(
        EngineError, match=f"files that no build wrote: {strange}; nothing was deleted"
    ):
        build(tmp_path, 20, overwrite=True)
    assert contents(tmp_path) == before


def test_a_folder_named_as_a_shard_is_not_deleted(tmp_path: Path) -> None:
    build(tmp_path)
    (tmp_path / "shards/numbers-000000.tar").unlink()
    write(tmp_path, "shards/numbers-000000.tar/mine")
    with pytest.raises(EngineError, match=r"no build wrote: shards/numbers-000000\.tar;"):
        build(tmp_path, overwrite=True)
    assert (tmp_path / "shards/numbers-000000.tar/mine").exists()


def test_what_lies_beside_a_dataset_stays(tmp_path: Path) -> None:
    build(tmp_path, 30)
    paths = ("notes.txt", "documents/d.jsonl", "features/mine.npy", ".work/idea", ".work/tmp/draft")
    mine = write(tmp_path, *paths)
    mine = {path: digest for path, digest in mine.items() if path in paths}
    write(tmp_path, "features/numbers-000002.arrow", "report.html", ".work/tmp/x.tar.77.0123abcd")
    assert build(tmp_path, 10, overwrite=True).records.total == 10
    after = contents(tmp_path)
    assert {path: after.get(path) for path in paths} == mine
    build(tmp_path / "fresh", 10)
    fresh = contents(tmp_path / "fresh")
    shutil.rmtree(tmp_path / "fresh")
    assert set(contents(tmp_path)) == set(fresh) | set(mine)


def test_an_empty_or_new_folder_may_be_overwritten(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert build(tmp_path / "empty", overwrite=True).records.total == 10
    assert build(tmp_path / "new", overwrite=True).records.total == 10


def test_a_folder_of_other_files_without_a_dataset_is_not_overwritten(tmp_path: Path) -> None:
    mine = write(tmp_path, "photos/me.jpg")
    with pytest.raises(EngineError, match="holds photos, and no dataset that could be overwritten"):
        build(tmp_path, overwrite=True)
    assert contents(tmp_path).items() >= mine.items()
    build(tmp_path)  # beside other files without the wish to overwrite, and then again with it
    assert build(tmp_path, 7, overwrite=True).records.total == 7
    assert contents(tmp_path).items() >= mine.items()


def test_shards_on_another_disk_are_deleted_there(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/shards").symlink_to(tmp_path / "disk")
    build(tmp_path / "out", 20)
    build(tmp_path / "out", 10, overwrite=True)
    assert [p.name for p in (tmp_path / "disk").iterdir()] == ["numbers-000000.tar"]


@pytest.mark.parametrize("path", ["manifest.json", ".work/plan.json"])
def test_a_damaged_mark_beside_ledgers_of_ours_is_overwritten(tmp_path: Path, path: str) -> None:
    build(tmp_path, 20)
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / "manifest.json").unlink()
    (tmp_path / path).write_bytes(b"{")
    with pytest.raises(EngineError, match=f"{path}: .*or start over with --overwrite"):
        build(tmp_path)
    assert build(tmp_path, 10, overwrite=True).records.total == 10


def test_ledgers_alone_are_mark_enough(tmp_path: Path) -> None:
    build(tmp_path, 20)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(
        EngineError, match=r"holds shards/, index/, ledger/ .*or start over with --overwrite"
    ):
        build(tmp_path)
    assert build(tmp_path, 10, overwrite=True).records.total == 10
    assert len(list((tmp_path / "shards").iterdir())) == 1


@pytest.mark.parametrize("path", ["manifest.json", ".work/plan.json"])
@pytest.mark.parametrize(
    "content", [b"{", b"[]", b'{"schema": "notes/1"}', b"\xff\xfe", b"[" * 99_999]
)
def test_rubbish_in_place_of_manifest_or_plan_is_named_and_stays(
    tmp_path: Path, path: str, content: bytes
) -> None:
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).write_bytes(content)
    with pytest.raises(
        EngineError, match=f"{path}: .*choose another folder, or move these files away"
    ):
        build(tmp_path)
    with pytest.raises(EngineError, match=f"holds {path}.*nothing was deleted"):
        build(tmp_path, overwrite=True)
    assert (tmp_path / path).read_bytes() == content


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("manifest.json", {"schema": "manifest/9"}),
        ("manifest.json", {"schema": "manifest/2"}),
        ("manifest.json", {"schema": "manifest/9", "shards": {"a": [1]}}),
        ("manifest.json", {"schema": "manifest/9", "shards": [{"name": "../../notes-000000"}, 3]}),
        (".work/plan.json", {"schema": "plan/9"}),
        (".work/plan.json", {"schema": "plan/2", "shards": []}),
        (".work/plan.json", {"schema": "plan/2", "fingerprint": {"taste": "salty"}}),
    ],
)
def test_a_mark_of_another_release_is_named_and_overwritten(
    tmp_path: Path, path: str, content: dict
) -> None:
    out = tmp_path / "a/b"
    (out / path).parent.mkdir(parents=True)
    (out / path).write_text(json.dumps(content))
    mine = write(tmp_path, "notes-000000.tar", "a/notes-000000.tar")
    with pytest.raises(EngineError, match=f"{path}: .*start over with --overwrite"):
        build(out)
    assert build(out, overwrite=True).records.total == 10
    assert not (out / ".work").exists()
    assert (tmp_path / "notes-000000.tar").exists() and (tmp_path / "a/notes-000000.tar").exists()
    assert len(mine) == 3


def test_object_stores_are_treated_alike() -> None:
    address = "memory://overwriting/out"
    storage = Storage(address)
    storage.delete("")
    storage.commit("shards/mine.tar", b"mine")
    with pytest.raises(EngineError, match="nothing was deleted"):
        build(address, overwrite=True)
    assert storage.read_bytes("shards/mine.tar") == b"mine"
    storage.delete("shards")
    build(address, 20)
    assert build(address, 10, overwrite=True).records.total == 10
    assert storage.list("shards") == ["numbers-000000.tar"]
    storage.delete("")


class EndingStorage(Storage):
    """Ends the process, as far as anybody can see, instead of the n-th deletion."""

    def delete(self, path: str) -> None:
        left = LEFT.pop()
        if not left:
            raise SystemExit
        LEFT.append(left - 1)
        super().delete(path)


LEFT: list[int] = []


def test_a_deletion_that_ends_anywhere_is_resumed(tmp_path: Path) -> None:
    old, expected, is_whole, number = tmp_path / "old", tmp_path / "expected", False, 0
    build(old, 20)
    write(old, "report.html", "features/numbers-000001.arrow")
    build(expected, 10)
    while not is_whole:
        out = tmp_path / f"out{number}"
        shutil.copytree(old, out)
        LEFT[:] = [number]
        try:
            delete_dataset(
                EndingStorage(str(out)), Workspace(Storage(str(out)), ("parse", "fetch"))
            )
            is_whole = True
        except SystemExit:
            if not (out / "manifest.json").exists() and (out / "report.html").exists():
                with pytest.raises(EngineError, match=r"overwriting of .* is not finished"):
                    build(out, 20)
        build(out, 10, overwrite=True)
        assert contents(out) == contents(expected), number
        number += 1
    assert number == 12  # manifest, plan, three files each of two shards, features, report, mark


def test_kills_while_overwriting_give_the_same_bytes(forks: Forks, tmp_path: Path) -> None:
    old, expected = tmp_path / "old", tmp_path / "expected"
    forks.to_the_end(old, "--records", "30")
    forks.to_the_end(expected, "--records", "10")
    # Some 15 operations before the first deletion, some 25 while deleting, then those of the build.
    for number in (24, 38):
        out = tmp_path / f"out{number}"
        shutil.copytree(old, out)
        code = forks.run(out, "--records", "10", "--overwrite", "--kill-at", str(number))
        assert code == -signal.SIGKILL, number
        forks.to_the_end(out, "--records", "10", "--overwrite")
        assert contents(out) == contents(expected), number


def test_a_killed_overwriting_that_deleted_nothing_may_be_taken_back(tmp_path: Path) -> None:
    build(tmp_path)
    before = contents(tmp_path)
    write(tmp_path, ".work/overwrite.json")
    (tmp_path / ".work/overwrite.json").write_text('{"schema": "overwrite/1", "shards": []}')
    build(tmp_path)
    assert contents(tmp_path) == before
