"""Tars of clips, as video2dataset writes them, become datasets of frames; adopted datasets are datasets like others."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from emu.data.dataset import Dataset
from emu.train.loop import train
from emu.train.run_folder import read_metrics
from jobs.__main__ import main
from jobs.building import export_parquet
from pipelines.core.stage_runner import LocalRunner
from pipelines.miniworld.clips import clip_frames, encode_clip, sample_clip
from pipelines.miniworld.config import MiniworldConfig
from pipelines.readers.tars import TarSource
from schemas.manifest import Manifest, manifest_from_json
from tests.corpora.test_adopted import image, ledger, tar
from tests.exit_codes import exit_code
from tests.train.plans import mini_plan


def clip(index: int = 0) -> bytes:
    return encode_clip(clip_frames(sample_clip(MiniworldConfig(), index))[:8], 4)


def members(key: str, body: bytes, caption: str) -> dict[str, bytes]:
    """A sample of video2dataset: the clip, its caption, and what is known of it."""
    about = {"url": "v.mp4", "caption": caption, "key": key, "status": "success", "clips": [[0, 2]]}
    return {
        f"{key}.mp4": body,
        f"{key}.txt": caption.encode(),
        f"{key}.json": json.dumps(about).encode(),
    }


def adopt(folder: Path, *options: str) -> int:
    return exit_code(main, ["adopt", str(folder), "--limits.max-seconds", "120", *options])


def manifest(out: Path) -> Manifest:
    return manifest_from_json((out / "manifest.json").read_text())


def test_clips_become_frames_with_times_and_captions(tmp_path: Path) -> None:
    broken = members("0000000_00001", b"\0" * 64, "broken")
    path = tar(
        tmp_path / "0000000.tar", members("0000000_00000", clip(), "a moving shape") | broken
    )
    before = path.read_bytes()
    assert adopt(tmp_path, "--corpus", "videos", "--frames.num-frames", "4", "--side", "32") == 0
    assert path.read_bytes() == before
    (entry,) = manifest(tmp_path).shards
    assert entry.path is None and (tmp_path / "shards/videos-000000.tar").is_file()
    sample = Dataset(tmp_path).sample(0, 0)
    kinds = [s.kind for s in sample.segments]
    assert kinds == ["image"] * 4 + ["text"] and sample.segments[-1].text == "a moving shape"
    times = [s.time_s for s in sample.images]
    assert times == sorted({t for t in times if t is not None}) and len(times) == 4
    assert {min(s.width or 0, s.height or 0) for s in sample.images} == {32}
    assert sample.meta["fields"]["key"] == "0000000_00000"
    assert sample.meta["clip"]["num_frames"] == 8
    assert ledger(tmp_path) == {1: None, 2: "not_a_video"}
    assert exit_code(main, ["inspect", str(tmp_path), "--lint"]) == 0
    assert adopt(tmp_path, "--corpus", "videos", "--frames.num-frames", "5") == 2, "other frames"


def test_the_files_of_video2dataset_itself(tmp_path: Path, sample_data: Path) -> None:
    files = sorted((sample_data / "videos").glob("00000*_0000*.*"))
    found = {f.name: f.read_bytes() for f in files}
    tar(tmp_path / "v2d/0000000.tar", found)
    assert adopt(tmp_path / "v2d", "--out", str(tmp_path / "out")) == 0
    texts = [body.decode() for name, body in found.items() if name.endswith(".txt")]
    dataset = Dataset(tmp_path / "out")
    samples = [dataset.sample(0, row) for row in range(len(texts))]
    assert [s.segments[-1].text for s in samples] == texts
    assert all(len(s.images) == 8 for s in samples)


def test_a_folder_in_video2datasets_form(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tables and statistics beside the tars, an empty tar, clips with sound beside, without text, sound alone."""
    folder = tmp_path / "v2d"
    sound, about = b"\0\0\0 ftypM4A " + bytes(64), b'{"key": "2", "caption": null}'
    tar(
        folder / "00000.tar",
        members("0000000_00000", clip(), "a moving shape")
        | {"0000000_00001.mp4": clip(1), "0000000_00001.m4a": sound, "0000000_00001.json": about}
        | {"0000000_00002.m4a": sound, "0000000_00002.txt": b"sound alone"},
    )
    tar(folder / "00001.tar", {})
    rows = [{"videoLoc": "v.mp4", "key": "0000000_00000", "status": "success"}]
    pq.write_table(pa.Table.from_pylist(rows), folder / "00000.parquet")
    (folder / "00000_stats.json").write_text('{"count": 3, "successes": 3}')
    assert adopt(folder, "--frames.num-frames", "2", "--side", "32") == 0
    assert "1 left where they are, 1 in " in capsys.readouterr().out
    told = pq.read_table(folder / "ledger/adopted-000000.parquet").to_pylist()
    assert {r["record"]: r["reason"] for r in told} == {1: None, 2: None, 3: "no_image_member"}
    samples = [Dataset(folder).sample(0, row) for row in range(2)]
    assert [[s.kind for s in sample.segments] for sample in samples] == [
        ["image", "image", "text"],
        ["image", "image"],
    ]
    assert exit_code(main, ["inspect", str(folder), "--lint"]) == 0


@pytest.mark.parametrize(
    ("name", "hint"),
    [("00000/0000000.mp4", "emu build webvid with --media"), ("a/b/0.tar", "a/b/0.tar': adopt")],
)
def test_a_folder_without_tars_is_refused_with_what_helps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, hint: str
) -> None:
    file = tmp_path / "in" / name
    file.parent.mkdir(parents=True)
    file.write_bytes(clip())
    assert adopt(tmp_path / "in", "--out", str(tmp_path / "out")) == 2
    error = capsys.readouterr().err
    assert "no file matches" in error and hint in error and not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def adopted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of a tar of pairs, which stays where it is, and one of clips."""
    folder = tmp_path_factory.mktemp("adopted")
    colours = ("red", "green", "blue", "red", "white", "black")
    pairs: dict[str, bytes] = {}
    for number, colour in enumerate(colours):
        pairs[f"{number:09d}.jpg"] = image(colour, size=(40 + number, 30))
        pairs[f"{number:09d}.txt"] = f"picture {number} is {colour} and plain".encode()
    pairs["000000003.jpg"] = pairs["000000000.jpg"]
    clips: Mapping[str, bytes] = {
        name: body
        for n in range(2)
        for name, body in members(f"c{n}", clip(n), f"clip {n}").items()
    }
    tar(folder / "00000.tar", pairs)
    tar(folder / "00001.tar", clips)
    assert adopt(folder, "--frames.num-frames", "2", "--side", "32") == 0
    assert [entry.path for entry in manifest(folder).shards] == ["00000.tar", None]
    return folder


def test_planning_opens_no_tar(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"no tar at all")
    (plan,) = TarSource((str(tmp_path / "*.tar"),)).plan("x")
    assert plan.num_records is None


def test_duplicates_and_filters(adopted: Path, tmp_path: Path) -> None:
    words = ["dedup", str(adopted), "--out", str(tmp_path / "out"), "--runner", "local"]
    chosen = ["--dedup", "image", "--filters", "text_length:min_words=3", "image_size:min_side=20"]
    assert exit_code(main, [*words, *chosen]) == 0
    dropped = manifest(tmp_path / "out").records.dropped
    assert dropped == {"duplicate_image": 1, "text_too_short": 2}
    assert exit_code(main, ["inspect", str(tmp_path / "out"), "--lint"]) == 0


def test_inspection_tables_and_the_card(adopted: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert exit_code(main, ["inspect", str(adopted), "--html", str(page), "--lint"]) == 0
    assert page.read_text().count("data:image/jpeg;base64") == 10
    assert exit_code(main, ["inspect", str(adopted), "--key", "adopted-000001-000001"]) == 0
    assert "data_files" not in (adopted / "README.md").read_text(), "not all samples are in shards/"
    assert export_parquet(str(adopted), LocalRunner()) == 2
    rows = [
        row
        for file in sorted((adopted / "parquet").iterdir())
        for row in pq.read_table(file).to_pylist()
    ]
    assert [len(row["images"]) for row in rows] == [1] * 6 + [2] * 2


def test_training(adopted: Path, tmp_path: Path) -> None:
    plan = replace(mini_plan(tmp_path, steps=2, batch_size=4), data=str(adopted))
    train(plan)
    assert [row["step"] for row in read_metrics(Path(plan.out))][-1] == 2
