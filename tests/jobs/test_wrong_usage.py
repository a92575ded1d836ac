"""Wrong usage of every data job: exit code 2, one line that says why, and no file is made, changed or deleted."""

import csv
import importlib
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import COMMANDS
from tests.exit_codes import exit_code
from tests.mmc4.pages import page, write_pages

LOCAL = ("--runner", "local")
OVERWRITE, RETRY = ("--overwrite",), ("--retry-failed",)


def inputs(folder: Path) -> Mapping[str, tuple[object, ...]]:
    """For each job that writes a dataset, its options without `--out`; the inputs are small and valid."""
    folder.mkdir()
    talk = {"instruction": "Say yes.", "output": "Yes."}
    (folder / "talk.json").write_text(json.dumps([talk]))
    write_pages(folder / "pages.jsonl", [page(["a"], ["red"], [[0.1]])])
    pq.write_table(
        pa.table({"URL": ["http://a.example/a.jpg"], "TEXT": ["a"]}), folder / "l.parquet"
    )
    lists = pa.table({"images": [["http://a.example/a.jpg", None]], "texts": [[None, "a"]]})
    pq.write_table(lists, folder / "o.parquet")
    with (folder / "clips.csv").open("w", newline="") as file:
        rows = [
            ("videoid", "name", "page_dir", "contentUrl"),
            ("1", "a", "b", "http://a.example/a"),
        ]
        csv.writer(file).writerows(rows)
    spec = "http://a.example/$L/$N.jpg|80#45#1#1#1#1000#M$M#s"
    (folder / "video.jsonl").write_text(json.dumps({"id": "abc", "spec": spec}) + "\n")
    with tarfile.open(folder / "a.tar", "w"):
        pass
    return {
        "build_instruct": ("--dialogues", folder / "talk.json", *LOCAL),
        "build_mmc4": ("--documents", folder / "pages.jsonl", *LOCAL),
        "build_laion": ("--metadata", folder / "l.parquet", *LOCAL),
        "build_obelics": ("--documents", folder / "o.parquet", *LOCAL),
        "build_webvid": ("--metadata", folder / "clips.csv", *LOCAL),
        "build_yt_storyboard": ("--videos", folder / "video.jsonl", *LOCAL),
        "build_pairs": ("--num-pairs", "2"),
        "adopt_shards": (folder,),
        "build_miniworld": ("--num-documents", "20"),
    }


JOBS = sorted(
    ["build_instruct", "build_mmc4", "build_laion", "build_obelics", "build_webvid"]
    + ["build_yt_storyboard", "build_pairs", "adopt_shards", "build_miniworld"]
)
HAVE_OVERWRITE = [job for job in JOBS if job != "build_miniworld"]
HAVE_RETRY = [job for job in HAVE_OVERWRITE if job not in ("build_pairs", "adopt_shards")]
CASES = [
    *((job, "used", (), "choose another folder") for job in HAVE_OVERWRITE),
    *((job, "used", OVERWRITE, "nothing was deleted") for job in HAVE_OVERWRITE),
    *((job, "notes", OVERWRITE, "nothing was deleted") for job in HAVE_OVERWRITE),
    *((job, "absent", RETRY, "no finished dataset") for job in HAVE_RETRY),
    *((job, "file", (), "") for job in JOBS),
    *((job, "file/below", (), "Not a directory") for job in JOBS),
    ("build_miniworld", "notes", (), "give a new or empty folder"),
]


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize(("job", "out", "more", "words"), CASES)
def test_a_folder_that_the_job_cannot_use_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], job: str, out: str,
    more: tuple[str, ...], words: str,
) -> None:  # fmt: skip
    options = inputs(tmp_path / "in")[job]
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/notes.txt").write_text("mine")
    (tmp_path / "used/shards").mkdir(parents=True)
    (tmp_path / "used/shards/mine.tar").write_text("mine")
    (tmp_path / "file").write_text("mine")
    before = files_of(tmp_path)
    main = importlib.import_module(f"jobs.{job}").main
    assert exit_code(main, [*options, "--out", tmp_path / out, *more]) == 2
    shown = capsys.readouterr()
    [error] = [line for line in shown.err.splitlines() if line.startswith("error: ")]
    assert words in error and str(tmp_path / out) in error and shown.out == ""
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("job", ["dedup", "features", "export", "inspect"])
@pytest.mark.parametrize("there", ["notes", "file", "absent"])
def test_a_dataset_that_is_none_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], job: str, there: str
) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    before = files_of(tmp_path)
    main = importlib.import_module(f"jobs.{COMMANDS[job].module}").main
    words = {"dedup": ["--out", tmp_path / "new"], "features": ["--data"]}.get(job, [])
    words = [*words, tmp_path / there] if job == "features" else [tmp_path / there, *words]
    assert exit_code(main, words) == 2
    assert "manifest.json" in capsys.readouterr().err and files_of(tmp_path) == before


def test_every_job_that_writes_a_dataset_is_tried() -> None:
    built = {c.module for name, c in COMMANDS.items() if name.startswith("build ")}
    assert built | {"adopt_shards"} == set(JOBS)
