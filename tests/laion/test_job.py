import io
import json
from pathlib import Path

import pytest
import webdataset
from PIL import Image

from jobs.build_laion import main
from pipelines.miniworld.laion import LaionSummary
from pipelines.miniworld.mmc4 import read_truth
from pipelines.miniworld.server import ImageServer
from schemas.manifest import Manifest, manifest_from_json
from tests.exit_codes import exit_code

World = tuple[Path, LaionSummary]


def build(world: Path, out: Path, *options: object, server: ImageServer) -> int:
    return main(
        [
            *("--metadata", f"{world}/metadata/*", "--out", str(out), "--runner", "local"),
            *("--samples-per-shard", "30", "--fetch.backoff-s", "0.1", "--fetch.per-host", "32"),
            *("--fetch.allow-host", server.allow_host, *map(str, options)),
        ]
    )


def manifest_of(out: Path) -> Manifest:
    return manifest_from_json((out / "manifest.json").read_text())


@pytest.fixture(scope="module")
def dataset(laion_world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, _ = laion_world
    out = tmp_path_factory.mktemp("built") / "laion"
    with ImageServer(folder / "images", retry_after_s=0) as server:
        assert build(folder, out, server=server) == 0
    return out


def test_the_counts_of_a_synthetic_world(laion_world: World, dataset: Path) -> None:
    _, summary = laion_world
    manifest = manifest_of(dataset)
    assert manifest.records.total == summary.num_records
    assert manifest.records.kept == summary.num_pairs_kept == manifest.num_samples
    assert manifest.links.total == summary.num_links
    dropped = {r: manifest.records.dropped[r] for r in summary.num_dropped_by_reason}
    assert dropped == summary.num_dropped_by_reason
    assert set(summary.num_links_by_kind) > {"huge", "noai", "loopback", "truncated", "image"}


def test_plain_webdataset_reads_pairs_with_the_captions_of_their_images(
    laion_world: World, dataset: Path
) -> None:
    truth = {row["url"]: row for row in read_truth(laion_world[0])}
    tars = [str(p) for p in sorted((dataset / "shards").glob("*.tar"))]
    suffixes: set[str] = set()
    samples = list(webdataset.WebDataset(tars, shardshuffle=False))
    assert len(tars) == 3 and len(samples) == manifest_of(dataset).records.kept
    for sample in samples:
        meta = json.loads(sample["json"])["meta"]
        known = truth[meta["url"]]
        assert sample["txt"].decode() == known["text"], "top_caption, not TEXT"
        (suffix,) = {"jpg", "png", "webp"} & set(sample)
        suffixes.add(suffix)
        assert {k for k in sample if not k.startswith("__")} == {suffix, "txt", "json"}
        with Image.open(io.BytesIO(sample[suffix])) as image:
            assert min(image.size) == min(256, known["width"], known["height"])
    assert suffixes == {"jpg", "png", "webp"}


def test_a_second_build_gives_the_same_bytes(
    laion_world: World, dataset: Path, tmp_path: Path
) -> None:
    folder, _ = laion_world
    with ImageServer(folder / "images", retry_after_s=0) as server:
        assert build(folder, tmp_path / "again", server=server) == 0
    for name in ("shards", "index", "ledger", "manifest.json"):
        for one in sorted((dataset / name).glob("*")) or [dataset / name]:
            again = tmp_path / "again" / one.relative_to(dataset)
            assert one.read_bytes() == again.read_bytes(), one


def test_images_on_disk_beside_the_metadata(laion_world: World, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = sorted(p.name for p in (laion_world[0] / "images").iterdir())[:5]
    rows = [{"URL": name, "TEXT": f"image {name}"} for name in [*names, "absent.jpg", "../up.jpg"]]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    options = ["--metadata", f"{tmp_path}/rows.parquet", "--out", f"{tmp_path}/out"]
    media = ["--media", str(laion_world[0] / "images"), "--runner", "local"]
    assert main([*options, *media]) == 0
    manifest = manifest_of(tmp_path / "out")
    assert manifest.records.kept == 5
    assert manifest.links.dropped == {"media_missing": 1, "media_outside": 1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--cuts.max-punsafe", "50"], "max_punsafe is 50.0, give a number from 0 to 1"),
        (["--cuts.min-aesthetic", "-1"], "min_aesthetic is -1.0"),
        (["--cuts.min-width", "0"], "min_width is 0"),
        (["--max-caption-chars", "0"], "max_caption_chars is 0"),
        (["--side", "1"], "side is 1"),
    ],
)
def test_bad_values_end_with_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert exit_code(main, ["--metadata", "x.parquet", "--out", f"{tmp_path}/out", *options]) == 2
    printed = capsys.readouterr()
    assert message in " ".join((printed.out + printed.err).replace("│", " ").split())


def test_wrong_columns_end_the_job_with_a_line(
    tmp_path: Path, sample_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = sample_data / "laion/laion_rows_1000.parquet"
    words = ["--metadata", str(file), "--out", f"{tmp_path}/out", "--runner", "local"]
    assert exit_code(main, [*words, "--caption-column", "top_caption"]) == 2
    printed = capsys.readouterr().err
    assert (
        "no column 'top_caption' (--caption-column names another); there are: URL, TEXT" in printed
    )
    assert "Traceback" not in printed


def test_the_synthetic_world_is_written_by_its_job(tmp_path: Path) -> None:
    from jobs.build_miniworld import main as build_world

    words = ["--out", f"{tmp_path}/w", "--corpus", "laion", "--num-documents", "4"]
    assert build_world([*words, "--num-shards", "2"]) == 0
    assert len(list((tmp_path / "w/metadata").iterdir())) == 2
    assert build_world([*words, "--num-shards", "2"]) == 0, "left as it is"
    assert exit_code(build_world, [*words, "--num-shards", "1"]) == 2
