"""The job and the folders that it is given: no traceback, one line, nothing lost."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.build_mmc4 import main
from pipelines.readers.files import InputError, refuse_overlap
from tests.exit_codes import exit_code
from tests.mmc4.pages import page, write_pages

UNWANTED = page(["a"], ["red"], [[0.1]])


def run_job(*options: object) -> int:
    return main(["--runner", "local", *map(str, options)])


def is_built(*options: object) -> bool:
    """Whether documents without an image to keep become a finished dataset, which the exit code says to be empty."""
    out = str(options[options.index("--out") + 1])
    return run_job(*options) == 1 and (Path(out) / "manifest.json").exists()


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    return write_pages(tmp_path / "d.jsonl", [UNWANTED] * 3)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc and /sys are Linux's")
@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("/proc/x", "'/proc/x/.work/lock': cannot be made there (choose another folder)"),
        ("/sys/x", "'/sys/x/.work/lock': "),
        ("/dev/null", "'/dev/null/.work/lock': Not a directory"),
        ("/dev/null/x/y", "a part of the path is a file"),
        ("FOLDER/d.jsonl", "a part of the path is a file"),
        ("FOLDER/d.jsonl/x", "a part of the path is a file"),
        ("FOLDER/" + "x" * 300, "name too long"),
    ],
)
@pytest.mark.parametrize("more", [(), ("--overwrite",), ("--retry-failed",)])
def test_a_folder_that_cannot_be_is_said_in_one_line(
    documents: Path, capsys: pytest.CaptureFixture[str], out: str, words: str, more: tuple[str, ...]
):
    folder = out.replace("FOLDER", str(documents.parent))
    assert run_job("--documents", documents, "--out", folder, *more) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and words in error


def test_ray_is_not_started_for_a_folder_that_cannot_be(
    documents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    import ray

    was_there = ray.is_initialized()
    (tmp_path / "mine/shards").mkdir(parents=True)
    (tmp_path / "mine/shards/mine.tar").touch()
    for out in ("/dev/null", tmp_path / "mine"):
        assert main(["--documents", str(documents), "--out", str(out)]) == 2
        assert "choose another folder" in capsys.readouterr().err
    assert ray.is_initialized() == was_there


def test_a_write_that_fails_is_said_in_one_line_and_the_build_goes_on(
    documents: Path, tmp_path: Path, repository: Path
):
    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, resource.RLIM_INFINITY))

    command = [
        *(sys.executable, "-m", "jobs.build_mmc4", "--runner", "local"),
        *("--documents", str(documents), "--out", str(tmp_path / "out")),
    ]
    done = subprocess.run(
        command, cwd=repository, capture_output=True, text=True, preexec_fn=small_files
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "File too large (a file may not be that large there: raise the limit" in done.stderr
    assert is_built("--documents", documents, "--out", tmp_path / "out")


def test_a_folder_with_two_colons_in_its_name_is_that_folder(documents: Path, tmp_path: Path):
    (tmp_path / "in::d[1].jsonl").write_bytes(documents.read_bytes())
    name = tmp_path / "in::d[1].jsonl"
    assert is_built("--documents", name, "--out", tmp_path / "a::b")
    assert (tmp_path / "a::b/manifest.json").exists() and not (tmp_path / "a").exists()
    assert is_built("--documents", tmp_path / "in::*.jsonl", "--out", tmp_path / "b")
    assert json.loads((tmp_path / "b/manifest.json").read_text())["records"]["total"] == 3


def test_names_that_are_not_utf8_are_refused(
    documents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jsonl")
    Path(odd).write_bytes(documents.read_bytes())
    for pattern in (odd, tmp_path / "*.jsonl"):
        assert run_job("--documents", pattern, "--out", tmp_path / "out") == 2
        assert "the name is not UTF-8" in capsys.readouterr().err
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    status = exit_code(main, ["--documents", documents, "--out", odd])
    shown = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert status == 2 and "is not UTF-8" in shown


PATTERNS = [
    ("*", "out"),
    ("**", "out"),
    ("o*", "out"),
    ("d*", "d/e/out"),
    ("out/*", "out"),
    ("out/m*", "out"),
    ("out/*/*", "out"),
    ("out/shards/*.tar", "out"),
    ("out/features/*", "out"),
    ("out/.work/**", "out"),
    ("link/*", "out"),
    ("./out/../out/[m-s]*", "out"),
]


@pytest.mark.parametrize(("pattern", "out"), PATTERNS)
def test_patterns_that_reach_into_the_output_are_refused_before_it_is_made(
    documents: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    pattern: str, out: str,
):  # fmt: skip
    folder = documents.parent
    monkeypatch.chdir(folder)
    (folder / "link").symlink_to(folder / "out")
    assert run_job("--documents", pattern, "--out", out) == 2
    error = capsys.readouterr().err
    assert f"error: '{pattern}' would also match '{folder}" in error
    assert "Name the documents more closely" in error
    assert not (folder / out).exists()


@pytest.mark.parametrize(
    ("pattern", "out"),
    [("*.jsonl", "."), ("d.jsonl", "."), ("in/*", "out"), ("in/[d].jsonl", "in"), ("in/*", "inn")],
)
def test_inputs_beside_or_in_the_output_do_not_disturb_a_restart(
    documents: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, out: str
):
    folder = documents.parent
    monkeypatch.chdir(folder)
    (folder / "in").mkdir()
    for name in ("d.jsonl", "[d].jsonl"):
        (folder / "in" / name).write_bytes(documents.read_bytes())
    for _ in range(2):
        assert is_built("--documents", pattern, "--out", out)
    assert documents.exists() and len(list((folder / "in").glob("*.jsonl"))) == 2


@pytest.mark.parametrize(
    ("pattern", "out", "is_refused"),
    [
        ("memory://lists/*", "memory://lists/mmc4", True),
        ("memory://lists/**", "memory://lists/a/b/mmc4", True),
        ("memory://lists/*.jsonl", "memory://lists/mmc4", False),
        ("memory://lists/*", "/lists/mmc4", False),
    ],
)
def test_addresses_are_compared_too(pattern: str, out: str, is_refused: bool):
    def check() -> None:
        refuse_overlap([pattern], "/", out, "mmc4")

    if is_refused:
        with pytest.raises(InputError, match="would also match"):
            check()
    else:
        check()
