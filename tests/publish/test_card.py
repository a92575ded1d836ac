"""Datasets that open elsewhere: the card, the Parquet twin, and `datasets` reading both."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from jobs.building import export_parquet
from jobs.export_dataset import main as export_main
from pipelines.core.run import extend, run
from pipelines.core.stage_runner import LocalRunner
from pipelines.core.storage import Storage
from pipelines.miniworld.config import PairsConfig
from pipelines.miniworld.pairs import pairs_pipeline
from pipelines.miniworld.server import ImageServer
from pipelines.publish.card import PARQUET_CONFIG, TAR_CONFIG
from pipelines.publish.export import ParquetExport, export_row
from schemas.manifest import CARD_FILE, CARD_MARK, Manifest
from schemas.sample import Sample, Segment
from schemas.shard import read_tar
from tests.exit_codes import exit_code
from tests.mmc4.pages import build, page, write_images, write_pages

DATASETS = pytest.importorskip("datasets")
TEXTS = ["a red one", "", "a green one & a *star*"]
DOCUMENTS = [
    page(TEXTS, ["red", "green"], [[0.9, 0, 0], [0, 0, 0.9]]),
    page(["b"], ["blue"], [[1]]),
]


def pairs(out: Path, num_pairs: int = 6) -> Manifest:
    return run(pairs_pipeline(PairsConfig(num_pairs=num_pairs), 4), str(out), progress=False)


def documents(tmp_path: Path) -> Path:
    with ImageServer(write_images(tmp_path / "images")) as server:
        build(write_pages(tmp_path / "d.jsonl", DOCUMENTS), tmp_path / "out", server)
    return tmp_path / "out"


def front(out: Path) -> dict[str, Any]:
    return yaml.safe_load((out / CARD_FILE).read_text().split("---\n")[1])


def loaded(out: Path, cache: Path) -> Any:
    return DATASETS.load_dataset(str(out), split="train", cache_dir=str(cache))


def test_pairs_open_as_they_are(tmp_path: Path) -> None:
    pairs(tmp_path / "out")
    assert front(tmp_path / "out")["configs"] == [TAR_CONFIG]
    rows = loaded(tmp_path / "out", tmp_path / "cache")
    assert rows.column_names[:3] == ["jpg", "txt", "json"] and len(rows) == 6
    samples = [
        s for t in sorted((tmp_path / "out/shards").iterdir()) for s in read_tar(t.open("rb"))
    ]
    assert [row["txt"] for row in rows] == [s.segments[1].text for s in samples]
    assert rows[0]["jpg"].size == (samples[0].images[0].width, samples[0].images[0].height)


def test_documents_open_by_their_parquet_twin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = documents(tmp_path)
    assert "configs" not in front(out) and "emu export" in (out / CARD_FILE).read_text()
    assert exit_code(export_main, [str(out)]) == 0
    assert "1 of them written now" in capsys.readouterr().out
    assert front(out)["configs"] == [PARQUET_CONFIG]
    rows = loaded(out, tmp_path / "cache")
    first = rows[0]
    assert first["text"] == "<image>\na red one\n\n<image>\na green one & a *star*"
    assert first["kinds"] == ["image", "text", "text", "image", "text"]
    assert first["texts"] == [None, *TEXTS[:2], None, TEXTS[2]]
    assert first["times"] == first["roles"] == [None] * 5
    assert [image.size for image in first["images"]] == [(48, 40)] * 2
    red, green, _ = first["images"][1].convert("RGB").getpixel((20, 20))
    assert green > 150 > red, "images stand in the order of the document"
    assert json.loads(first["meta"])["record"] == 1
    assert len(rows) == 2


def test_times_and_roles_are_kept() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 2)).save(buffer, "PNG")
    segments = (
        Segment.of_text("What?", role="user"),
        Segment.of_image(buffer.getvalue(), "png", 4, 2, time_s=1.5, role="user"),
        Segment.of_text("That.", role="assistant"),
    )
    row = export_row(Sample("k", "test", segments, {}))
    assert row["roles"] == ["user", "user", "assistant"] and row["times"] == [None, 1.5, None]
    assert row["images"] == [{"bytes": buffer.getvalue(), "path": "k.0.png"}]


def test_a_twin_of_another_tar_is_made_again_and_equal_tars_give_equal_bytes(
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    pairs(out)
    assert export_parquet(str(out), LocalRunner()) == 2
    assert export_parquet(str(out), LocalRunner()) == 0
    twin = out / "parquet/miniworld-000000.parquet"
    before = twin.read_bytes()
    twin.write_bytes(before[:100])
    (out / "parquet/miniworld-000001.parquet").write_bytes(before)
    assert export_parquet(str(out), LocalRunner()) == 2
    assert twin.read_bytes() == before
    keys = pq.read_table(out / "parquet/miniworld-000001.parquet")["key"].to_pylist()
    assert keys == ["miniworld-0-00000004", "miniworld-0-00000005"]


def test_a_large_sample_ends_a_row_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.publish.export.GROUP_BYTES", 1)
    pairs(tmp_path / "out", 3)
    extend(ParquetExport(), str(tmp_path / "out"), progress=False)
    twin = pq.ParquetFile(tmp_path / "out/parquet/miniworld-000000.parquet")
    assert twin.num_row_groups == 3


def test_the_card_counts_names_reasons_and_is_the_same_again(tmp_path: Path) -> None:
    lost = [*DOCUMENTS, page(["c"], ["not_found/red"], [[1]]), "{}"]
    texts = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        with ImageServer(write_images(tmp_path / name / "images")) as server:
            path = write_pages(tmp_path / name / "d.jsonl", lost)
            build(path, tmp_path / name / "out", server)
        texts.append((tmp_path / name / "out" / CARD_FILE).read_text())
    assert texts[0] == texts[1]
    assert "2 samples with 3 images" in texts[0]
    assert "`missing_field`" in texts[0] and "min_similarity: 0.32" in texts[0]
    assert front(tmp_path / "one/out")["size_categories"] == ["n<1K"]


def test_a_readme_of_somebody_else_is_kept(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    readme = tmp_path / "out" / CARD_FILE
    readme.write_text("mine")
    pairs(tmp_path / "out")
    export_parquet(str(tmp_path / "out"), LocalRunner())
    run(pairs_pipeline(PairsConfig(num_pairs=2), 4), str(tmp_path / "out"), overwrite=True)
    assert readme.read_text() == "mine"
    assert not (tmp_path / "out/parquet/miniworld-000001.parquet").exists()


def test_overwriting_replaces_the_card(tmp_path: Path) -> None:
    pairs(tmp_path / "out")
    run(pairs_pipeline(PairsConfig(num_pairs=2), 4), str(tmp_path / "out"), overwrite=True)
    text = (tmp_path / "out" / CARD_FILE).read_text()
    assert CARD_MARK in text and "2 samples" in text


def test_a_folder_without_a_dataset_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(export_main, [str(tmp_path)]) == 2
    assert "not a dataset" in capsys.readouterr().err
    assert Storage(str(tmp_path)).list("") == []


def test_a_card_whose_front_matter_was_removed_is_kept(tmp_path: Path) -> None:
    pairs(tmp_path / "out")
    (tmp_path / "out" / CARD_FILE).write_text(f"{CARD_MARK}\nmy words\n")
    assert export_parquet(str(tmp_path / "out"), LocalRunner()) == 2
    assert (tmp_path / "out" / CARD_FILE).read_text() == f"{CARD_MARK}\nmy words\n"
