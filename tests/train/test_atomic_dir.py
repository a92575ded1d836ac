"""Directories that are written atomically: kills at every step, locks, links, and what is refused."""

import json
from pathlib import Path

import pytest

import emu
from emu.weights.layout import (
    check_space,
    new_directory,
    restore,
)
from tests.train.killed_writer import kill_at_every_step
from tests.train.processes import start


def write(final: Path, text: str, overwrite: bool = True) -> None:
    with new_directory(final, lambda folder: True, overwrite) as new:
        (new / "a").write_text(text)


def never(folder: Path) -> bool:
    return False


@pytest.mark.parametrize(
    ("writer", "has_exchange"),
    [("model", True), ("model", False), ("checkpoint", True), ("files", True), ("files", False)],
)
def test_killed_at_every_step_a_complete_one_loads(
    tmp_path: Path, writer: str, has_exchange: bool
) -> None:
    process = start(kill_at_every_step, tmp_path, writer, has_exchange)
    process.join(280)
    assert process.exitcode == 0
    counts = json.loads((tmp_path / "kills.json").read_text())
    assert counts["kills"] >= 8 and 0 < counts["new"] < counts["kills"], "kills before and after"


def test_a_failed_write_leaves_the_one_before(tmp_path: Path) -> None:
    write(tmp_path / "x", "before")
    with (
        pytest.raises(KeyboardInterrupt),
        new_directory(tmp_path / "x", lambda folder: True, overwrite=True) as new,
    ):
        (new / "a").write_text("half of the next")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x" / "a").read_text() == "before"


def test_the_one_before_is_put_back_by_a_reader_and_by_a_writer(tmp_path: Path) -> None:
    final, old = tmp_path / "x", tmp_path / ".x.old"
    write(final, "before")
    final.rename(old)  # as after a kill between two renames
    (tmp_path / ".x.partial").mkdir()
    restore(final)
    assert (final / "a").read_text() == "before"
    final.rename(old)
    with pytest.raises(FileExistsError, match="exists already; give another --out, or --overwrite"):
        write(final, "next", overwrite=False)
    assert (final / "a").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_reader_leaves_the_directories_of_an_active_writer(tmp_path: Path) -> None:
    with new_directory(tmp_path / "x", never) as new:
        (tmp_path / ".x.old").mkdir()
        restore(tmp_path / "x")
        assert new.is_dir() and (tmp_path / ".x.old").is_dir() and not (tmp_path / "x").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_model_that_cannot_be_put_back_is_named(tmp_path: Path) -> None:
    (tmp_path / ".model.old").mkdir()
    (
        tmp_path / ".model.lock"
    ).mkdir()  # no file can be locked there, as on a disk that cannot be written
    with pytest.raises(OSError, match=rf"the one before is {tmp_path}/\.model\.old: rename it"):
        emu.load(tmp_path / "model")


def test_two_writers_at_once(tmp_path: Path) -> None:
    with (
        new_directory(tmp_path / "x", never) as new,
        pytest.raises(BlockingIOError, match=f"another process is writing {tmp_path}/x"),
        new_directory(tmp_path / "x", never),
    ):
        raise AssertionError("two writers")
    assert not new.exists()
    write(tmp_path / "x", "the lock is free")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_link_to_another_disk_is_followed(tmp_path: Path) -> None:
    (tmp_path / "disk" / "model").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "model")
    with new_directory(tmp_path / "link", never) as new:
        assert new.parent == tmp_path / "disk"
        (new / "a").write_text("a")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "link" / "a").read_text() == "a"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "link"]


def test_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"GB free, needed are 118059162"):
        check_space(tmp_path / "not" / "yet", 1 << 70)
