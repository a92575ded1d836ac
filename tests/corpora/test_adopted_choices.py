"""Filters and duplicates of adopted shards: they take samples out of the index, and the tars stay as they are."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.inspect_shards import main as inspect_main
from pipelines.core.pipeline import Barrier, Construct
from pipelines.core.run import extend
from pipelines.corpora import adopted
from pipelines.readers.tars import TarSource
from pipelines.transforms.features import FeatureStage
from schemas.features import FeatureInfo
from tests.corpora.test_adopted import Ones, adopt, image, manifest, samples, tar
from tests.corpora.test_adopted_clips import clip, members
from tests.dedup.test_dedup_jobs import LONG, encoded_again
from tests.exit_codes import exit_code
from tests.filters.tiny_clip import scene_jpeg


def pair(key: str, data: bytes, text: str, url: str) -> dict[str, bytes]:
    about = json.dumps({"url": url}).encode()
    return {f"{key}.jpg": data, f"{key}.json": about, f"{key}.txt": text.encode()}


def write_tars(folder: Path) -> list[bytes]:
    first = [
        pair("a", scene_jpeg(1), "one", "https://a.example/1"),
        pair("b", scene_jpeg(2), "Two  words", "https://a.example/2"),
        pair("c", scene_jpeg(4), LONG, "https://a.example/4"),
        pair("small", image(size=(20, 20)), "small", "https://a.example/5"),
    ]
    second = [
        pair("a", scene_jpeg(1), "as one", "https://b.example/1"),
        pair("b", scene_jpeg(6), "two words", "https://b.example/2"),
        pair("c", encoded_again(scene_jpeg(4)), "again", "https://b.example/3"),
        pair("d", scene_jpeg(7), "other", "http://A.example/2#top"),
        pair("e", scene_jpeg(8), LONG.upper(), "https://b.example/4"),
        pair("f", scene_jpeg(9), "stays", "https://b.example/6"),
    ]
    paths = [
        tar(folder / f"{n:05d}.tar", {k: v for one in some for k, v in one.items()})
        for n, some in enumerate((first, second))
    ]
    return [path.read_bytes() for path in paths]


OPTIONS = [
    *("--filters", "image_size:min_side=32"),
    *("--dedup", "url", "image", "text", "near_image", "near_text"),
]


@pytest.mark.parametrize("beside", [True, False])
def test_what_filters_and_dedup_drop_is_in_no_index(tmp_path: Path, beside: bool) -> None:
    before = write_tars(tmp_path / "tars")
    out = tmp_path / "tars" if beside else tmp_path / "out"
    assert adopt(tmp_path / "tars", "--out", str(out), *OPTIONS) == 0
    assert [p.read_bytes() for p in sorted((tmp_path / "tars").glob("*.tar"))] == before
    assert not (out / "shards").exists()
    tables = [pq.read_table(path) for path in sorted((out / "ledger").iterdir())]
    found = [(r["key"], r["reason"], r["detail"]) for table in tables for r in table.to_pylist()]
    assert [(key[-8:], reason) for key, reason, _ in sorted(found)] == [
        ("0-000001", None),
        ("0-000002", None),
        ("0-000003", None),
        ("0-000004", "images_too_small"),
        ("1-000001", "duplicate_image"),
        ("1-000002", "duplicate_text"),
        ("1-000003", "duplicate_near_image"),
        ("1-000004", "duplicate_url"),
        ("1-000005", "duplicate_text"),
        ("1-000006", None),
    ]
    assert ("adopted-000001-000001", "duplicate_image", "of adopted-000000-000001") in found
    assert [entry.num_samples for entry in manifest(out).shards] == [3, 1]
    kept = samples(out)
    assert [s.segments[-1].text for s in kept] == ["one", "Two  words", LONG, "stays"]
    assert kept[0].images[0].image == scene_jpeg(1), "images come from the tars"
    assert exit_code(inspect_main, [str(out), "--lint"]) == 0


def test_features_are_those_of_the_samples_that_stay(tmp_path: Path) -> None:
    write_tars(tmp_path)
    assert adopt(tmp_path, *OPTIONS) == 0
    info = FeatureInfo("test", "0" * 64, "as it is", "float32", 4, 2, 3)
    _, num_done = extend(FeatureStage(info, lambda: Ones()), str(tmp_path), progress=False)
    assert num_done == 2


def test_other_options_are_another_dataset(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tars(tmp_path)
    assert adopt(tmp_path, "--filters", "image_size:min_side=32") == 0
    assert manifest(tmp_path).records.dropped == {"images_too_small": 1}
    assert adopt(tmp_path, "--dedup", "image") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert adopt(tmp_path, "--dedup", "image", "--overwrite") == 0
    assert manifest(tmp_path).records.dropped == {"duplicate_image": 1}
    assert adopt(tmp_path, "--filters", "image_siz") == 2
    assert "image_size" in capsys.readouterr().err


def test_frames_of_clips_stay_with_their_samples(tmp_path: Path) -> None:
    """They are written, so a barrier must not lose them."""
    body = clip()
    both = members("0_0", body, "a moving shape") | members("0_1", body, "the same once more")
    tar(tmp_path / "0.tar", both)
    tar(tmp_path / "1.tar", pair("a", scene_jpeg(1), "no clip", "https://a.example/1"))
    options = ["--limits.max-seconds", "120", "--frames.num-frames", "2", "--dedup", "image"]
    assert adopt(tmp_path, *options) == 0
    assert manifest(tmp_path).records.dropped == {"duplicate_image": 1}
    first, second = samples(tmp_path)
    assert [s.kind for s in first.segments] == ["image", "image", "text"]
    assert all(s.image for s in first.images) and second.images[0].image == scene_jpeg(1)


def test_no_image_waits_at_a_barrier(tmp_path: Path) -> None:
    """All tables wait there: with images they would be a copy of the tars."""
    write_tars(tmp_path)
    source = TarSource((f"{tmp_path}/*.tar",), base=str(tmp_path))
    plain = adopted.pipeline(source, "adopted", str(tmp_path), keep_images=True)
    barrier = Barrier("wait", plan=len, apply=lambda table, plan: table)
    waiting = replace(plain, stages=(*plain.stages, barrier))
    *_, last, _ = adopted.without_images_at_barriers(waiting).stages
    table = source.read(next(iter(source.plan("adopted"))))
    for step in last.steps:
        table = (step.make(*step.args) if isinstance(step, Construct) else step)(table)
    segments = [s for row in table["segments"].to_pylist() for s in row]
    assert [s["kind"] for s in segments] == ["image", "text"] * 4
    assert [s["text"] for s in segments if s["kind"] == "text"][1] == "Two  words"
    assert not any(s["image"] for s in segments)
    assert {s["width"] for s in segments if s["kind"] == "image"} >= {96, 20}
