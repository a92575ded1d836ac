"""Duplicates in builds and over finished datasets: what is dropped, what the ledger and the report say of it."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from jobs.dedup import main as dedup
from pipelines.core.run import run
from pipelines.core.stage_runner import LocalRunner
from pipelines.core.storage import Storage, read_parquet
from pipelines.dedup.signatures import PREFIX, minhash, shingles, signature_column
from pipelines.dedup.stage import REASONS, Dedup, with_dedup
from pipelines.miniworld.config import PairsConfig
from pipelines.miniworld.pairs import pairs_pipeline
from pipelines.publish.merge import merged_pipeline
from pipelines.readers.published import manifest_of
from schemas.sample import SAMPLES, Sample, Segment
from schemas.shard import LEDGERS
from schemas.tables import LEDGER
from tests.data.small_dataset import write_dataset
from tests.exit_codes import exit_code
from tests.filters.tiny_clip import scene_jpeg


def encoded_again(image: bytes, side: int = 90) -> bytes:
    out = io.BytesIO()
    Image.open(io.BytesIO(image)).resize((side, side)).save(out, "JPEG", quality=70)
    return out.getvalue()


def pair(key: str, image: bytes, text: str, url: str, side: int = 96) -> Sample:
    segments = (Segment.of_image(image, "jpg", side, side), Segment.of_text(text))
    return Sample(key, "pairs", segments, {"url": url})


LONG = "a small white dog with a red collar runs across the wide green meadow towards the camera"
FIRST = [
    pair("a", scene_jpeg(1), "one", "https://a.example/1"),
    pair("b", scene_jpeg(2), "Two  words", "https://a.example/2"),
    pair("c", scene_jpeg(1), "three", "https://a.example/3"),
    pair("d", scene_jpeg(4), LONG, "https://a.example/4"),
]
SECOND = [
    pair("a", scene_jpeg(5), "five", "http://A.example/2#top"),
    pair("b", scene_jpeg(6), "two words", "https://b.example/2"),
    pair("e", encoded_again(scene_jpeg(4)), "seven", "https://b.example/3", 90),
    pair("f", scene_jpeg(8), LONG.upper().replace("MEADOW", "MEADOWS"), "https://b.example/4"),
    pair("g", scene_jpeg(9), "nothing like the others", "https://b.example/5"),
]
KINDS = ("url", "sample", "image", "text", "near_image", "near_text")
WANTED = {
    "0-c": ("duplicate_image", "of 0-a"),
    "1-a": ("duplicate_url", "of 0-b"),
    "1-b": ("duplicate_text", "of 0-b"),
    "1-e": ("duplicate_near_image", "of 0-d; "),
    "1-f": ("duplicate_near_text", "of 0-d; similarity 0."),
}


def dropped(out: Path) -> dict[str, tuple[str, str]]:
    storage = Storage(str(out))
    tables = [read_parquet(storage, f"{LEDGERS}/{n}", LEDGER) for n in storage.list(LEDGERS)]
    rows = [row for table in tables for row in table.to_pylist() if row["status"] == "dropped"]
    return {row["key"]: (row["reason"], row["detail"]) for row in rows}


def files(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("datasets")
    return [write_dataset(folder / "one", FIRST, 3), write_dataset(folder / "two", SECOND, 3)]


def test_the_job_names_what_is_kept(
    datasets: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*datasets, "--out", tmp_path / "out", "--runner", "local", "--dedup", *KINDS]
    assert exit_code(dedup, words) == 0
    assert "duplicate_near_image" in capsys.readouterr().out
    found = dropped(tmp_path / "out")
    assert {key: reason for key, (reason, _) in found.items()} == {
        k: r for k, (r, _) in WANTED.items()
    }
    assert all(found[key][1].startswith(detail) for key, (_, detail) in WANTED.items())
    manifest = manifest_of(str(tmp_path / "out"))
    assert (manifest.records.total, manifest.records.kept) == (9, 4)
    page = (tmp_path / "out/report.html").read_text()
    assert "Duplicates" in page and "<code>0-d</code>" in page
    before = files(tmp_path / "out")
    assert exit_code(dedup, words) == 0 and files(tmp_path / "out") == before, "it is finished"


def test_near_kinds_have_bounds(datasets: list[Path], tmp_path: Path) -> None:
    words = [datasets[0], datasets[1], "--runner", "local", "--dedup", "near_text", "--out"]
    assert exit_code(dedup, [*words, tmp_path / "strict", "--dedup-similarity", "1"]) == 0
    assert set(dropped(tmp_path / "strict")) == {"1-b"}
    assert exit_code(dedup, [*words, tmp_path / "x", "--dedup-similarity", "80"]) == 2
    assert exit_code(dedup, ["--out", tmp_path / "x"]) == 2
    assert exit_code(dedup, [datasets[0], "--out", datasets[0]]) == 2
    assert exit_code(
        dedup, [tmp_path / "nothing", "--out", tmp_path / "x", "--runner", "local"]
    ) in (1, 2)


def test_filters_come_first(datasets: list[Path], tmp_path: Path) -> None:
    words = [datasets[0], "--out", tmp_path / "out", "--runner", "local", "--dedup", "image"]
    assert exit_code(dedup, [*words, "--filters", "text_length:minimum=4"]) == 0
    # "one" is too short, so it is no reason to drop the sample with the same image
    assert dropped(tmp_path / "out") == {"a": ("text_too_short", None)}


NEAR = Dedup(("near_text",), similarity=0.6)


def pairs(out: Path, dedup: Dedup, num: int = 60, per_shard: int = 7) -> dict[str, tuple[str, str]]:
    config = PairsConfig(num_pairs=num, side_px=32, question_share=0)
    run(with_dedup(pairs_pipeline(config, per_shard), dedup), str(out), progress=False)
    return dropped(out)


def test_a_build_drops_duplicates_wherever_they_are(tmp_path: Path) -> None:
    found = pairs(tmp_path / "out", NEAR)
    assert found and {reason for reason, _ in found.values()} == {"duplicate_near_text"}
    kept = {key: detail[3:].partition(";")[0] for key, (_, detail) in found.items()}
    assert not {*kept.values()} & {*found}, "what it is a duplicate of is there"
    assert all(earlier < later for later, earlier in kept.items())
    assert pairs(tmp_path / "other", NEAR, per_shard=60) == found, "whatever the shards"


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_workers_give_the_same_bytes(tmp_path: Path) -> None:
    from pipelines.core.run_ray import RayRunner

    config = PairsConfig(num_pairs=60, side_px=32, question_share=0)
    pipeline = with_dedup(pairs_pipeline(config, 7), NEAR)
    for name, runner in (("ray", RayRunner()), ("local", LocalRunner())):
        run(pipeline, str(tmp_path / name), runner, progress=False)
    assert files(tmp_path / "ray") == files(tmp_path / "local")


def test_against_a_dataset_that_is_built(tmp_path: Path) -> None:
    pairs(tmp_path / "out", NEAR)
    found = pairs(tmp_path / "again", replace(NEAR, against=(str(tmp_path / "out"),)), 80)
    assert {*found} >= {f"miniworld-0-{n:08d}" for n in range(60)} and len(found) < 80
    first = found["miniworld-0-00000000"]
    assert first == ("duplicate_near_text", "of out/miniworld-0-00000000; similarity 1.00")


def test_datasets_beside_are_made_by_workers_once(tmp_path: Path) -> None:
    pairs(tmp_path / "first", Dedup(()), 20)
    dedup = Dedup(("image",), against=(str(tmp_path / "first"),))
    pipeline = with_dedup(pairs_pipeline(PairsConfig(num_pairs=30, side_px=32), 7), dedup)
    made: list[str] = []

    class Counting(LocalRunner):
        def run(self, operators: Any, shards: Any) -> Any:
            made.extend(s.name for s in shards if s.name.startswith("beside"))
            yield from super().run(operators, shards)
            if operators[0].name == "dedup beside" and len(made) < 4:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(pipeline, str(tmp_path / "out"), Counting(), progress=False)
    assert made == ["beside0-000000", "beside0-000001", "beside0-000002"]
    run(pipeline, str(tmp_path / "out"), Counting(), progress=False)
    assert len(made) == 3, "what is made is not made again"
    assert (
        len([d for _, d in dropped(tmp_path / "out").values() if d.startswith("of first/")]) == 20
    )
    assert not (tmp_path / "out/.work").exists()


def test_documents_with_the_same_images_again(tmp_path: Path) -> None:
    def page(key: str, *images: bytes) -> Sample:
        parts = [Segment.of_image(image, "jpg", 96, 96) for image in images]
        return Sample(key, "pages", (*parts, Segment.of_text(f"text of {key}")))

    first, second, third = (scene_jpeg(n) for n in (1, 2, 3))
    again = [encoded_again(image, 96) for image in (first, second)]
    pages = [page("a", first, second), page("b", *again), page("c", *reversed(again))]
    data = write_dataset(tmp_path / "data", [*pages, page("d", first, third), page("e", first)])
    pipeline = with_dedup(merged_pipeline((str(data),)), Dedup(("near_image",)))
    run(pipeline, str(tmp_path / "out"), progress=False)
    assert list(dropped(tmp_path / "out")) == ["b"]


def test_one_dataset_keeps_its_keys_and_bytes(datasets: list[Path], tmp_path: Path) -> None:
    pipeline = with_dedup(merged_pipeline((str(datasets[1]),)), Dedup(("sample",)))
    manifest = run(pipeline, str(tmp_path / "out"), progress=False)
    before = manifest_of(str(datasets[1]))
    assert [s.sha256 for s in manifest.shards] == [s.sha256 for s in before.shards]


def test_minhash_is_near_the_similarity_and_that_of_datasketch() -> None:
    from datasketch import MinHash

    texts = [
        LONG,
        LONG.replace("white", "black"),
        LONG[:60],
        LONG + " and barks",
        "quite another text",
    ]
    own = [minhash([t])[0] or b"" for t in texts]
    theirs = [MinHash(128, seed=1) for _ in texts]
    for sketch, text in zip(theirs, texts, strict=True):
        sketch.update_batch([s.encode() for s in shingles(text)])
    for i in range(len(texts)):
        for j in range(i):
            one, other = set(shingles(texts[i])), set(shingles(texts[j]))
            true = len(one & other) / len(one | other)
            agree = sum(own[i][n : n + 4] == own[j][n : n + 4] for n in range(0, 512, 4)) / 128
            assert abs(agree - true) < 0.16 and abs(agree - theirs[i].jaccard(theirs[j])) < 0.25
    assert minhash([""]) == [None] and len(own[0]) == 512


def test_signatures_of_what_is_not_there_are_null() -> None:
    table = SAMPLES.table([Sample("t", "x", (Segment.of_text(" "),)).as_row()])
    for kind in KINDS:
        column = signature_column(table, kind)
        assert column.null_count == (kind != "sample") and len(column) == 1
        assert len(signature_column(table.slice(0, 0), kind)) == 0
        assert column.type in (pa.uint64(), pa.binary(512), pa.list_(pa.uint64()))


def test_the_options_of_builds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from jobs.build_mmc4 import main as build_mmc4

    words = ["--documents", "x.jsonl", "--out", tmp_path / "o"]
    assert exit_code(build_mmc4, [*words, "--dedup", "url", "near_text", "--print-config"]) == 0
    assert "near_text" in capsys.readouterr().out
    assert exit_code(build_mmc4, [*words, "--dedup-against", "x"]) == 2
    assert "needs dedup" in capsys.readouterr().err


def test_the_page_has_every_kind_and_reason(repository: Path) -> None:
    page = (repository / "docs/filters.md").read_text()
    for kind in KINDS:
        assert f"| `{kind}` |" in page and f"| `{PREFIX}{kind}` |" in page
    assert {PREFIX + kind for kind in KINDS} == set(REASONS)
