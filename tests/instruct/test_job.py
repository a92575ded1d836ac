"""The whole job: synthetic and real dialogues, media that are missing or hostile, and readers of the result."""

import json
import shutil
from pathlib import Path

import pytest

from emu.data.dataset import ShardReader
from jobs.build_instruct import main
from jobs.inspect_shards import main as inspect
from pipelines.miniworld.config import MiniworldConfig
from pipelines.miniworld.dialogues import write_dialogues
from pipelines.miniworld.server import ImageServer
from schemas.manifest import Manifest, manifest_from_json
from tests.exit_codes import exit_code
from tests.instruct.dialogues import build, reasons, samples, shown, talk
from tests.mmc4.pages import write_images


def run_job(*options: object) -> int:
    return main(["--runner", "local", *map(str, options)])


def manifest_of(out: Path) -> Manifest:
    return manifest_from_json((out / "manifest.json").read_text())


def test_the_synthetic_world_gives_the_counts_that_it_states(tmp_path: Path) -> None:
    config = MiniworldConfig(seed=3, num_documents=160, bad_share=0.3)
    summary = write_dialogues(config, tmp_path / "world")
    world, out = tmp_path / "world", tmp_path / "out"
    options = ("--dialogues", world / "dialogues/*", "--media", world / "images", "--out", out)
    assert run_job(*options, "--samples-per-shard", 30) == 0
    manifest = manifest_of(out)
    assert manifest.records.total == summary.num_records
    assert manifest.records.kept == summary.num_kept
    assert manifest.records.dropped == summary.num_dropped
    assert manifest.num_images == summary.num_images_kept
    assert set(manifest.links.dropped) == {"media_missing", "media_outside"}
    assert inspect([str(out), "--lint"]) == 0
    again = write_dialogues(config, tmp_path / "again")
    assert again == summary
    for path in (tmp_path / "again").rglob("*"):
        if path.is_file():
            other = world / path.relative_to(tmp_path / "again")
            assert path.read_bytes() == other.read_bytes()


def test_real_dialogues(tmp_path: Path, sample_data: Path) -> None:
    files = [sample_data / f"instruct/{n}.json" for n in ("alpaca", "llava", "sharegpt")]
    out = tmp_path / "out"
    assert run_job("--dialogues", *files, "--media", sample_data, "--out", out) == 0
    manifest = manifest_of(out)
    assert (manifest.records.total, manifest.records.kept) == (130, 130)
    assert (manifest.links.total, manifest.links.kept, manifest.num_images) == (60, 60, 60)
    forms = [sample.meta["form"] for sample in samples(out)]
    assert [forms.count(form) for form in ("alpaca", "llava", "sharegpt")] == [40, 60, 30]
    for sample in samples(out):
        roles = [segment.role for segment in sample.segments]
        assert set(roles) <= {"system", "user", "assistant"} and roles[-1] == "assistant"


def test_real_dialogues_without_their_media_name_each_of_them(
    tmp_path: Path, sample_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    file = sample_data / "instruct/videochat_qa.json"
    assert run_job("--dialogues", file, "--media", tmp_path, "--out", out) == 1
    assert manifest_of(out).links.dropped == {"media_missing": 20}
    error = capsys.readouterr().err
    assert "media_missing, such as 'train2014/COCO_train2014_" in error and "check --media" in error


def test_media_that_are_missing_damaged_or_outside_cost_their_dialogue(tmp_path: Path) -> None:
    write_images(tmp_path / "media")
    (tmp_path / "media/text.png").write_text("no image")
    (tmp_path / "secret.png").write_bytes((tmp_path / "media/red.png").read_bytes())
    paths = (
        "gone.png",
        "../secret.png",
        str(tmp_path / "secret.png"),
        "text.png",
        "a\x00b",
        "red.png",
    )
    records = [talk("u:q", "a:r", image=path) for path in paths]
    manifest = build(tmp_path, [*records, talk("u:q", "a:r", image=["red.png", "gone.png"])])
    assert manifest.records.dropped == {"medium_lost": 6}
    assert manifest.links.dropped["media_missing"] >= 2
    assert manifest.links.dropped["media_outside"] >= 2
    assert manifest.links.dropped["not_an_image"] == 1
    assert [shown(sample)[1] for sample in samples(tmp_path / "out")] == ["user: [red]"]
    assert reasons(tmp_path / "out")[6] == (None, None)


def test_links_are_fetched_and_failed_ones_fetched_again(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images")
    hidden = tmp_path / "green.png"
    shutil.move(images / "green.png", hidden)
    with ImageServer(images) as server:
        url = "http://images.miniworld.example/image"
        records = [talk("u:q", "a:r", image=f"{url}/{c}.png") for c in ("red", "green")]
        records.append(talk("u:q", "a:r", image="red.png"))
        (tmp_path / "d.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in records))
        options = (
            "--dialogues",
            tmp_path / "d.jsonl",
            "--out",
            tmp_path / "out",
            "--media",
            images,
        )
        fetch = ("--fetch.allow-host", server.allow_host)
        assert run_job(*options, *fetch) == 0
        kept = [s.key for s in samples(tmp_path / "out")]
        assert kept == ["d-0000001", "d-0000003"]
        shutil.move(images / "red.png", tmp_path / "red.png")
        shutil.move(hidden, images / "green.png")
        assert run_job(*options, *fetch, "--retry-failed") == 0
    assert {"d-0000001", "d-0000003"} <= {s.key for s in samples(tmp_path / "out")}


def test_training_reads_the_shards(tmp_path: Path) -> None:
    build(tmp_path, [talk("u:<image>\nq", "a:r", image="red.png"), talk("u:q", "a:r")])
    reader = ShardReader(str(tmp_path / "out"), seed=0)
    found = sorted(
        (reader.visit(position).sample for position in range(2)), key=lambda sample: sample.key
    )
    assert found == samples(tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--form", "mmc4"], "mmc4"),
        (["--max-characters", "0"], "max_characters is 0, give a whole number of at least 1"),
        (["--media", "nowhere"], "no such folder"),
    ],
)
def test_bad_values_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    words = ["--dialogues", "x.json", "--out", str(tmp_path / "out"), *options]
    assert exit_code(main, words) == 2
    printed = capsys.readouterr()
    assert message in " ".join((printed.out + printed.err).replace("│", " ").split())


def test_datasets_opens_the_dialogues_with_images_and_roles(tmp_path: Path) -> None:
    load_dataset = pytest.importorskip("datasets").load_dataset
    write_images(tmp_path / "media")
    records = [talk("u:<image>\nq", "a:r", image="red.png"), talk("u:p", "a:s")]
    (tmp_path / "d.json").write_text(json.dumps(records))
    words = ("--dialogues", tmp_path / "d.json", "--media", tmp_path / "media")
    assert run_job(*words, "--out", tmp_path / "out", "--export", "parquet") == 0
    cache = str(tmp_path / "cache")
    first, second = load_dataset(str(tmp_path / "out"), split="train", cache_dir=cache)
    assert first["roles"] == ["system", "user", "user", "assistant"]
    assert first["texts"][2:] == ["q", "r"] and first["images"][0].getpixel((9, 9)) == (220, 20, 20)
    assert second["roles"] == ["user", "assistant"] and second["images"] == []


def test_equal_dialogues_give_equal_bytes(tmp_path: Path) -> None:
    write_dialogues(MiniworldConfig(num_documents=40), tmp_path / "world")
    outs = [tmp_path / "one", tmp_path / "two"]
    for out in outs:
        words = ("--dialogues", tmp_path / "world/dialogues/*", "--out", out)
        assert run_job(*words, "--media", tmp_path / "world/images", "--samples-per-shard", 9) == 0
    for path in outs[0].rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (outs[1] / path.relative_to(outs[0])).read_bytes(), path
