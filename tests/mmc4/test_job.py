import gzip
import json
import stat
from pathlib import Path

import pytest

from jobs.build_mmc4 import main
from pipelines.miniworld.server import ImageServer
from schemas.manifest import manifest_from_json
from tests.exit_codes import exit_code
from tests.mmc4.pages import page, write_images, write_pages


def run_job(*options: object) -> int:
    return main(["--runner", "local", *map(str, options)])


def test_real_documents_and_photos(
    tmp_path: Path, sample_data: Path, photos: str, capsys: pytest.CaptureFixture[str]
):
    status = run_job(
        *("--documents", sample_data / "mmc4/docs_*", sample_data / "mmc4/published_example.jsonl"),
        *("--out", tmp_path / "out", "--min-similarity", 0.24, "--samples-per-shard", 200),
        *("--fetch.allow-host", f"images.example={photos}", f"www.hfitinfo.com={photos}"),
        *("--fetch.per-host", 32),
    )
    assert status == 0
    manifest = manifest_from_json((tmp_path / "out/manifest.json").read_text())
    assert (manifest.records.total, manifest.records.kept) == (481, 428)
    assert manifest.records.dropped == {"no_image_wanted": 52, "no_image_arrived": 1}
    assert (manifest.links.total, manifest.links.kept) == (1523, 1062)
    assert manifest.links.dropped == {"low_similarity": 459, "not_found": 2}
    printed = capsys.readouterr().out
    assert "481" in printed and "low_similarity" in printed and "report.html" in printed
    report = (tmp_path / "out/report.html").read_text()
    assert report.count("<article") == 12 and report.count("data:image/jpeg;base64,") > 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--min-similarity", "30"],
            "min_similarity is 30.0, give a number from -1 to 1",
        ),
        (["--max-images", "0"], "max_images is 0, give a whole number of at least 1"),
        (
            ["--samples-per-shard", "0"],
            "samples_per_shard is 0, give a whole number from 1 to 100,000",
        ),
        (["--samples-per-shard", "9" * 40], "from 1 to 100,000"),
        (["--limit", "-3"], "limit is -3, give a whole number from 1"),
        (["--limit", "9" * 40], "from 1 to 1,000,000,000,000"),
        (["--num-cpus", "20000"], "num_cpus is 20000, give a whole number from 1 to 10,000"),
        (["--side", "0"], "side is 0, give"),
        (["--num-cpus", "0"], "num_cpus is 0, give a whole number from 1 to 10,000"),
        (["--fetch.deadline-s", "-1"], "deadline_s is -1.0"),
        (["--fetch.allow-host", "nonsense"], "allow_host 'nonsense': give HOST=IP:PORT"),
        (["--retry-failed", "--overwrite"], "exclude each other"),
        (["--out", "tape://reel/7"], "'tape://reel/7' cannot be used here: Protocol not known"),
        (["--nonsense"], "nonsense"),
        (["--runner", "spark"], "spark"),
    ],
)
def test_bad_values_end_with_status_2_and_name_value_limit_and_hint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
):
    words = ["--documents", "x.jsonl", "--out", str(tmp_path / "out"), *options]
    assert exit_code(main, words) == 2
    printed = capsys.readouterr()
    shown = " ".join((printed.out + printed.err).replace("│", " ").split())
    assert message in shown and "Traceback" not in shown


def test_missing_documents_and_strange_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out"
    assert run_job("--documents", tmp_path / "no-*.jsonl", "--out", out) == 2
    assert "no file matches" in capsys.readouterr().err
    documents = write_pages(tmp_path / "d.jsonl", [page(["a"], ["red"], [[0.1]])])
    assert run_job("--documents", documents, "--out", out, "--retry-failed") == 2
    assert "no finished dataset" in capsys.readouterr().err
    assert run_job("--documents", documents, "--out", out) == 1
    error = capsys.readouterr().err
    assert "all 1 links: low_similarity, such as 'http" in error and "(--min-similarity" in error
    assert run_job("--documents", documents, "--out", out, "--side", 128) == 2
    assert "differs in the configuration" in capsys.readouterr().err
    overwriting = ("--out", out, "--side", 128, "--overwrite")
    assert run_job("--documents", documents, *overwriting) == 1
    assert "no documents were kept" in capsys.readouterr().err
    assert json.loads((out / "manifest.json").read_text())["config"]["image"]["side"] == 128
    assert run_job("--documents", documents, "--out", tmp_path / "d.jsonl" / "out") == 2
    assert "is a file" in capsys.readouterr().err


def test_overwriting_a_folder_of_other_files_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    documents = write_pages(tmp_path / "d.jsonl", [page(["a"], ["red"], [[0.1]])])
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "guide.md").write_text("mine")
    assert run_job("--documents", documents, "--out", docs, "--overwrite") == 2
    assert "holds guide.md, and no dataset that could be overwritten" in capsys.readouterr().err
    assert [p.name for p in docs.iterdir() if p.name != ".work"] == ["guide.md"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            gzip.compress(b'{"text_list": []}\n' * 2000)[:-60],
            "input_truncated (the file is damaged",
        ),
        (b"", "input_truncated (the file is damaged"),
    ],
    ids=["cut", "empty"],
)
def test_a_damaged_input_of_which_nothing_is_kept_fails_with_a_hint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], body: bytes, message: str
):
    (tmp_path / "d.jsonl.gz").write_bytes(body)
    assert run_job("--documents", tmp_path / "d.jsonl.gz", "--out", tmp_path / "out") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: no documents were kept") and message in error


def test_a_host_that_does_not_exist_is_named_as_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    rows = [page(["a"], ["red"], [[0.9]])] * 3
    documents = write_pages(tmp_path / "d.jsonl", rows)
    fast = ("--fetch.retries", 0, "--fetch.deadline-s", 20)
    assert run_job("--documents", documents, "--out", tmp_path / "out", *fast) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "all 3 links: " in error and ("host_not_found" in error or "dns_failed" in error)
    assert "--retry-failed" in error


def test_an_alarm_can_end_the_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    documents = write_pages(tmp_path / "d.jsonl", [page(["a"], ["red"], [[0.1]])] * 20)
    options = ("--documents", documents, "--out", tmp_path / "out")
    assert run_job(*options, "--fail-on-alarm") == 1
    assert not (tmp_path / "out/manifest.json").exists()
    assert "error:" in capsys.readouterr().err
    assert run_job(*options) == 1
    assert (tmp_path / "out/manifest.json").exists()
    assert "ALARM" in capsys.readouterr().out


def test_relative_paths_are_those_of_the_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "docs").mkdir()
    line = json.dumps(page(["a"], ["red"], [[0.5]])) + "\n"
    (tmp_path / "docs/d.jsonl.gz").write_bytes(gzip.compress(line.encode()))
    monkeypatch.chdir(tmp_path)
    with ImageServer(write_images(tmp_path / "images")) as server:
        fetch = ("--fetch.allow-host", server.allow_host)
        assert run_job("--documents", "docs/*.gz", "--out", "out", *fetch) == 0
    manifest = manifest_from_json((tmp_path / "out/manifest.json").read_text())
    assert manifest.records.kept == 1
    folder = tmp_path / "runtime_resources/working_dir_files/_ray_pkg_1"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    assert exit_code(main, ["--documents", "docs/*.gz", "--out", "out"]) == 2
    assert "absolute path" in " ".join(capsys.readouterr().err.replace("│", "").split())


def test_the_job_is_executable(repository: Path):
    path = repository / "jobs/build_mmc4.py"
    assert path.stat().st_mode & stat.S_IXUSR
    assert path.read_text().startswith("#!/usr/bin/env python3\n")
