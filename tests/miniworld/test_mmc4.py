"""The world on disk: reproducible to the byte, in the form of MMC4, counted exactly."""

import gzip
import io
import json
import math
import re
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image, ImageOps
from scipy.optimize import linear_sum_assignment

from pipelines.miniworld.config import MiniworldConfig
from pipelines.miniworld.link_kinds import IMAGE_HOST, LINK_KINDS
from pipelines.miniworld.mmc4 import MiniworldSummary, read_summary, read_truth, write_mmc4
from pipelines.miniworld.mmc4_page import FAULTS, MALFORMED, SIMILARITY_GAP, fault_of, sample_page
from pipelines.miniworld.scene import COLOURS
from schemas.validation import ConfigError

CONFIG = MiniworldConfig(seed=5, num_documents=60, num_shards=4, bad_share=0.5)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("miniworld")
    write_mmc4(CONFIG, directory)
    return directory


def bytes_by_name(directory: Path) -> dict[str, bytes]:
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def lines_of(path: Path) -> list[bytes]:
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    if path.suffix == ".zip":
        archive = zipfile.ZipFile(io.BytesIO(data))
        assert archive.namelist() == [path.stem]
        data = archive.read(path.stem)
    assert data.endswith(b"\n")
    return data.split(b"\n")[:-1]


def all_lines(directory: Path) -> list[bytes]:
    shards = sorted((directory / "documents").iterdir())
    return [line for shard in shards for line in lines_of(shard)]


def format_error(line: bytes) -> str | None:
    """Why a line is no MMC4 v1.1 document, or None; written from the format's description alone."""
    try:
        document = json.loads(line)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        return type(error).__name__
    if not isinstance(document, dict):
        return "no object"
    fields = ("url", "text_list", "image_info", "similarity_matrix", "could_have_url_duplicate")
    if set(document) != set(fields):
        return "fields"
    texts, infos, matrix = (document[name] for name in fields[1:4])
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        return "text_list"
    if [len(row) for row in matrix] != [len(texts)] * len(infos):
        return "matrix"
    if not all(0 <= info["matched_text_index"] < len(texts) for info in infos):
        return "index"
    return None


def documents(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in all_lines(directory) if format_error(line) is None]


def test_same_seed_same_bytes_other_seed_other_bytes(world: Path, tmp_path: Path):
    write_mmc4(CONFIG, tmp_path / "again")
    assert bytes_by_name(tmp_path / "again") == bytes_by_name(world)
    other = MiniworldConfig(seed=6, num_documents=60, num_shards=4, bad_share=0.5)
    write_mmc4(other, tmp_path / "other")
    theirs, ours = bytes_by_name(tmp_path / "other"), bytes_by_name(world)
    assert not set(theirs) & set(ours) & {name for name in ours if name.startswith("images/")}
    assert not set(all_lines(tmp_path / "other")) & set(all_lines(world))


def test_pages_do_not_depend_on_the_size_of_the_world():
    small = MiniworldConfig(seed=1, num_documents=5, num_shards=1)
    large = MiniworldConfig(seed=1, num_documents=500, num_shards=7)
    assert sample_page(small, 4).document() == sample_page(large, 4).document()


def test_shards_come_in_the_three_forms(world: Path):
    names = sorted(path.name for path in (world / "documents").iterdir())
    assert names == [
        "docs_shard_0_v2.jsonl",
        "docs_shard_1_v2.jsonl.zip",
        "docs_shard_2_v2.jsonl.gz",
        "docs_shard_3_v2.jsonl",
    ]


def test_documents_have_the_published_form(world: Path):
    for document in documents(world):
        infos, matrix = document["image_info"], np.asarray(document["similarity_matrix"])
        assert 3 <= len(document["text_list"]) <= 8 and len(infos) <= 5
        matched = [info["matched_text_index"] for info in infos]
        assert len(set(matched)) == len(matched), "two images share a sentence"
        for info, row in zip(infos, matrix, strict=True):
            assert info["matched_sim"] == row[info["matched_text_index"]]
            assert set(info) == {
                *("image_name", "raw_url", "matched_text_index", "matched_sim"),
                "face_detections",
            }
        if infos:
            assert matched == linear_sum_assignment(-matrix)[1].tolist()


def test_many_descriptions_are_in_another_order_than_the_images(world: Path):
    positions: dict[str, list[int]] = {}
    for row in read_truth(world):
        if row["described_by"] is not None:
            positions.setdefault(row["page_url"], []).append(row["described_by"])
    orders = [order for order in positions.values() if len(order) > 2]
    in_order = sum(order == sorted(order) for order in orders)
    assert 0.2 < in_order / len(orders) < 0.9


def test_archives_carry_no_time(world: Path):
    packed = (world / "documents" / "docs_shard_2_v2.jsonl.gz").read_bytes()
    assert packed[4:8] == bytes(4)  # RFC 1952: MTIME
    with zipfile.ZipFile(world / "documents" / "docs_shard_1_v2.jsonl.zip") as archive:
        assert archive.infolist()[0].date_time == (1980, 1, 1, 0, 0, 0)


def test_similarities_leave_the_gap_open_and_follow_the_descriptions(world: Path):
    low, high = SIMILARITY_GAP
    text_of = {d["url"]: d["text_list"] for d in documents(world)}
    sims = {i["image_name"]: i["matched_sim"] for d in documents(world) for i in d["image_info"]}
    for document in documents(world):
        values = np.asarray(document["similarity_matrix"])
        assert not ((values > low) & (values < high)).any()
    for row in read_truth(world):
        described = row["described_by"]
        assert (sims[row["image_name"]] >= high) == (described is not None)
        if described is not None:
            assert row["caption"][1:] in text_of[row["page_url"]][described]


def test_a_page_whose_links_partly_fail_keeps_its_matches(world: Path):
    """Solved again on the images that arrive, as the pipeline does, each keeps its own sentence."""
    truth: dict[str, list[dict[str, Any]]] = {}
    for row in read_truth(world):
        truth.setdefault(row["page_url"], []).append(row)
    for document in documents(world):
        rows = truth.get(document["url"], [])
        arriving = [i for i, row in enumerate(rows) if row["arrives"]]
        if not arriving:
            continue
        matrix = np.asarray(document["similarity_matrix"])[arriving]
        columns = linear_sum_assignment(-matrix)[1]
        for i, column in zip(arriving, columns, strict=True):
            assert rows[i]["described_by"] in (None, column)


def test_summary_counts_what_is_on_disk(world: Path):
    summary = read_summary(world)
    lines, valid, truth = all_lines(world), documents(world), list(read_truth(world))
    infos = [info for document in valid for info in document["image_info"]]
    arriving = [row for row in truth if row["arrives"]]
    kept = [row for row in arriving if row["described_by"] is not None]
    assert summary == MiniworldSummary(
        config=CONFIG,
        num_records=len(lines),
        num_malformed_by_kind=summary.num_malformed_by_kind,
        num_documents=len(valid),
        num_documents_kept=len({row["page_url"] for row in kept}),
        num_links=len(infos),
        num_links_by_kind=dict(sorted(Counter(row["link_kind"] for row in truth).items())),
        num_images_arriving=len(arriving),
        num_images_low_similarity=len(arriving) - len(kept),
        num_images_kept=len(kept),
        num_files=len(list((world / "images").iterdir())),
        num_sentences=sum(len(document["text_list"]) for document in valid),
        num_questions=sum(len(row["questions"]) for row in truth),
    )
    assert len(lines) == CONFIG.num_documents
    assert sum(summary.num_malformed_by_kind.values()) == len(lines) - len(valid)
    assert [i["raw_url"] for i in infos] == [row["raw_url"] for row in truth]


def test_every_fault_occurs(world: Path):
    summary = read_summary(world)
    assert set(summary.num_links_by_kind) == set(LINK_KINDS)
    assert set(summary.num_malformed_by_kind) == set(MALFORMED)
    assert summary.num_images_low_similarity > 0
    assert any(not document["image_info"] for document in documents(world))
    assert summary.num_documents_kept < summary.num_documents
    errors = {format_error(line) for line in all_lines(world)} - {None}
    assert errors == {
        *("JSONDecodeError", "UnicodeDecodeError", "no object", "fields"),
        *("text_list", "matrix", "index"),
    }


@pytest.mark.parametrize("share", [0.0, 0.07, 0.15, 0.3, 0.5, 1.0])
def test_the_share_of_faulty_documents_is_exact(share: float):
    config = MiniworldConfig(num_documents=1000, bad_share=share)
    faults = [fault for i in range(1000) if (fault := fault_of(config, i)) is not None]
    assert len(faults) == round(1000 * share)
    counts = Counter(faults)
    assert not faults or max(counts.values()) - min(counts[f] for f in FAULTS) <= 1


def test_all_images_of_a_world_without_faults_arrive(tmp_path: Path):
    summary = write_mmc4(MiniworldConfig(num_documents=12, bad_share=0.0), tmp_path / "w")
    assert summary.num_links == summary.num_images_kept == summary.num_files > 0
    assert summary.num_documents_kept == 12
    assert summary.num_links_by_kind == {"image": summary.num_links}


def test_files_and_ground_truth_agree(world: Path):
    rows = list(read_truth(world))
    assert {row["file"] for row in rows if row["file"]} == {
        f"images/{path.name}" for path in (world / "images").iterdir()
    }
    for row in rows:
        assert re.fullmatch(r"[a-z0-9_]+\.(jpg|png|webp)", row["image_name"])
        host = urlsplit(row["raw_url"]).hostname
        assert (host == IMAGE_HOST) == (row["link_kind"] not in ("loopback", "local_file"))
        if row["file"] is None:
            continue
        image = ImageOps.exif_transpose(Image.open(world / row["file"])).convert("RGB")
        assert image.size == (row["width"], row["height"])
        for thing in row["scene"]["things"]:
            x, y = int(thing["x"] * image.width), int(thing["y"] * image.height)
            error = np.asarray(image)[y, x].astype(int) - COLOURS[thing["colour"]]
            assert np.abs(error).max() <= 25


def test_an_existing_world_is_left_as_it_is_and_another_is_refused(tmp_path: Path):
    config = MiniworldConfig(num_documents=4, num_shards=1)
    first = write_mmc4(config, tmp_path / "w")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "w").rglob("*")}
    assert write_mmc4(config, tmp_path / "w") == first
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "w").rglob("*")}
    with pytest.raises(FileExistsError, match="something other"):
        write_mmc4(MiniworldConfig(seed=1, num_documents=4, num_shards=1), tmp_path / "w")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("dear diary")
    with pytest.raises(FileExistsError, match=r"notes"):
        write_mmc4(config, tmp_path / "notes")


def test_the_partial_folder_of_a_killed_run_is_replaced(tmp_path: Path):
    config = MiniworldConfig(num_documents=4, num_shards=1)
    (tmp_path / "w.partial" / "images").mkdir(parents=True)
    (tmp_path / "w.partial" / "images" / "half.jpg").write_bytes(b"\xff\xd8")
    with pytest.raises(FileExistsError, match="contains something else: move it"):
        write_mmc4(config, tmp_path / "w")
    assert (tmp_path / "w.partial/images/half.jpg").exists()
    (tmp_path / "w.partial" / ".in_progress").touch()
    write_mmc4(config, tmp_path / "w")
    write_mmc4(config, tmp_path / "clean")
    assert bytes_by_name(tmp_path / "w") == bytes_by_name(tmp_path / "clean")
    assert not (tmp_path / "w.partial").exists()


@pytest.mark.parametrize("content", ["{", "[]", '{"config": 3}', "7"])
def test_a_folder_with_another_summary_is_left_as_it_is(tmp_path: Path, content: str):
    (tmp_path / "summary.json").write_text(content)
    with pytest.raises(FileExistsError, match="something other"):
        write_mmc4(CONFIG, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def test_a_world_of_another_version_is_named(world: Path, tmp_path: Path):
    data = json.loads((world / "summary.json").read_text()) | {"version": 99}
    (tmp_path / "summary.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match="version 99"):
        read_summary(tmp_path)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"seed": -1}, "seed is -1, give a whole number from 0 to 9,223,372,036,854,775,807"),
        ({"seed": 2**63}, "seed is 9223372036854775808, give a whole number from 0"),
        (
            {"num_shards": 0},
            "num_shards is 0, give a whole number of at least 1 (at most num_documents)",
        ),
        (
            {"num_shards": 301},
            "num_shards is 301, give a whole number from 1 to 300 (num_documents)",
        ),
        ({"num_documents": 2}, "num_shards is 3, give a whole number from 1 to 2 (num_documents)"),
        ({"num_documents": -1}, "num_documents is -1, give a whole number from 1 to 1,000,000"),
        ({"num_documents": 0}, "num_documents is 0, give a whole number from 1 to 1,000,000"),
        ({"num_documents": 10**18}, "num_documents is 1000000000000000000, give"),
        (
            {"images_per_document": (1, 10**18)},
            "images_per_document.1 is 1000000000000000000, give a whole number from 1 to 100",
        ),
        (
            {"sentences_per_document": (3, 10**18)},
            "sentences_per_document.1 is 1000000000000000000, give a whole number from 3 to 1,000",
        ),
        ({"bad_share": math.nan}, "bad_share is nan, give a finite number"),
        (
            {"images_per_document": (0, 5)},
            "images_per_document.0 is 0, give a whole number from 1 to 100",
        ),
        (
            {"images_per_document": (4, 2)},
            "images_per_document is (4, 2), give the fewest before the most",
        ),
        ({"images_per_document": (1, 9)}, "images_per_document is (1, 9), give at most 8 images"),
        (
            {"sentences_per_document": (2, 8)},
            "sentences_per_document.0 is 2, give a whole number from 3 to 1,000",
        ),
        ({"max_things": 9}, "max_things is 9, give a whole number from 1 to 6"),
        ({"bad_share": 1.5}, "bad_share is 1.5, give a number from 0.0 to 1.0"),
    ],
)
def test_impossible_settings_are_named(values: dict[str, Any], named: str):
    with pytest.raises(ConfigError, match=re.escape(named)):
        MiniworldConfig(**values)


def test_the_job_writes_the_same_world(world: Path, tmp_path: Path, repository: Path):
    command = [sys.executable, str(repository / "jobs" / "build_miniworld.py")]
    settings = ["--seed=5", "--num-documents=60", "--num-shards=4", "--bad-share=0.5"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "w"), *settings],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "num_images_kept" in done.stdout
    assert bytes_by_name(tmp_path / "w") == bytes_by_name(world)
    refused = subprocess.run(
        [*command, "--out", str(tmp_path / "w")], capture_output=True, text=True, timeout=120
    )
    assert refused.returncode == 2
    assert "holds something other than a world with these settings" in refused.stderr
