"""Every way in which a dataset can be damaged is named, with the file and the sample."""

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.inspect_shards import main
from pipelines.core.storage import Storage, write_parquet
from pipelines.publish.lint import MAX_PER_KIND, Lint
from schemas.manifest import manifest_from_json
from schemas.sample import sample_from_row
from schemas.shard import read_tar, write_tar
from schemas.table_spec import TableSpec
from schemas.tables import INDEX, LEDGER
from tests.instruct.dialogues import build, talk

FIRST, SECOND = "instruct-000000", "instruct-000001"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of two shards: dialogues 1 to 50, of which number 3 is dropped, and 51 to 60."""
    folder = tmp_path_factory.mktemp("lint")
    records: list[Any] = [talk("u:<image>\nq", f"a:r{n}", image="red.png") for n in range(60)]
    records[2] = {}
    build(folder, records)
    return folder / "out"


@pytest.fixture
def out(whole: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(whole, tmp_path / "out")


def problems(out: Path) -> list[str]:
    manifest = manifest_from_json((out / "manifest.json").read_text())
    lint = Lint(Storage(str(out)), manifest)
    found = [*lint.files()]
    for shard in manifest.shards:
        found += lint.shard(shard)
    return [*found, *lint.finish()]


def change_table(
    out: Path, folder: str, spec: TableSpec, change: Callable[[list[dict[str, Any]]], Any]
) -> None:
    """Write the table of the first shard again, with other rows."""
    path = f"{folder}/{FIRST}.parquet"
    rows = pq.read_table(out / path).to_pylist()
    changed = change(rows)
    table = spec.table(rows if changed is None else changed)
    write_parquet(Storage(str(out)), path, table, spec)


def change_tar(out: Path, change: Callable[[bytearray], Any]) -> None:
    path = out / f"shards/{FIRST}.tar"
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)


def rename(out: Path) -> None:
    (out / f"shards/{FIRST}.tar").rename(out / "shards/lost.tar")


def swap(out: Path) -> None:
    shutil.copy(out / f"index/{SECOND}.parquet", out / f"index/{FIRST}.parquet")


def edit_manifest(out: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    document = json.loads((out / "manifest.json").read_text())
    change(document)
    (out / "manifest.json").write_text(json.dumps(document))


def set_in(row: dict[str, Any], **values: Any) -> None:
    row.update(values)


def move_member(rows: list[dict[str, Any]]) -> None:
    rows[4]["members"][1]["offset"] += 512


def far_away(rows: list[dict[str, Any]]) -> None:
    rows[4]["members"][1]["offset"] = -7


def doubled_ledger(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [*rows, rows[0]]


Damage = Callable[[Path], Any]
DAMAGES: dict[str, tuple[Damage, list[str]]] = {
    "a missing tar": (rename, [f"shards/{FIRST}.tar", "shards/lost.tar: belongs to no shard"]),
    "a missing index": (lambda o: (o / f"index/{FIRST}.parquet").unlink(), [f"index/{FIRST}"]),
    "a missing ledger": (lambda o: (o / f"ledger/{SECOND}.parquet").unlink(), [f"ledger/{SECOND}"]),
    "a stray file": (
        lambda o: (o / "index/notes.txt").write_text("x"),
        ["index/notes.txt: belongs to no shard"],
    ),
    "a stray twin": (
        lambda o: ((o / "parquet").mkdir(), (o / "parquet/x.parquet").write_text("x")),
        ["parquet/x.parquet: belongs to no shard"],
    ),
    "a flipped byte of an image": (
        lambda o: change_tar(o, lambda d: d.__setitem__(2048 + 60, d[2048 + 60] ^ 255)),
        ["its sha256 is", "sample 'd-0000001': image_sha256 is"],
    ),
    "a flipped byte of a header": (
        lambda o: change_tar(o, lambda d: d.__setitem__(1536, d[1536] ^ 1)),
        ["its sha256 is", "is missing", "more such as"],
    ),
    "a tar cut off": (
        lambda o: change_tar(o, lambda d: d.__delitem__(slice(len(d) // 2, None))),
        ["bytes, the manifest says", "its sha256 is", "sample 'd-"],
    ),
    "an empty tar": (
        lambda o: (o / f"shards/{FIRST}.tar").write_bytes(b""),
        ["has 0 bytes", "is not a whole tar file", "95 more such as: member"],
    ),
    "an index of another shard": (
        swap,
        [
            *("has 10 rows, the manifest says 49 samples", f"in shard '{SECOND}'"),
            *("is kept, but not in the index", "is in the index, but not kept"),
            "is not in the index",
        ],
    ),
    "a file that is no table": (
        lambda o: (o / f"index/{FIRST}.parquet").write_bytes(b"x" * 99),
        [f"index/{FIRST}.parquet"],
    ),
    "an index without a column": (
        lambda o: pq.write_table(
            pq.read_table(o / f"index/{FIRST}.parquet").drop_columns(["scores"]),
            o / f"index/{FIRST}.parquet",
        ),
        [f"index/{FIRST}.parquet", "scores"],
    ),
    "a place that is wrong": (
        lambda o: change_table(o, "index", INDEX, move_member),
        ["the index says", "sample 'd-0000006': image_sha256"],
    ),
    "a place outside": (
        lambda o: change_table(o, "index", INDEX, far_away),
        ["the index says", "at -7"],
    ),
    "a hash of a text": (
        lambda o: change_table(o, "index", INDEX, lambda r: set_in(r[0], text_sha256="0" * 64)),
        ["sample 'd-0000001': text_sha256 is"],
    ),
    "a score": (
        lambda o: change_table(o, "index", INDEX, lambda r: set_in(r[0], scores=[("a", 1.0)])),
        ["sample 'd-0000001': scores is"],
    ),
    "a sample less in the index": (
        lambda o: change_table(o, "index", INDEX, lambda r: r[1:]),
        [
            *("has 48 rows, the manifest says 49", "has 48 images, the manifest says 49"),
            *("'d-0000001' is kept, but not in the index", "'d-0000001.json' is not in the index"),
        ],
    ),
    "a sample twice in the index": (
        lambda o: change_table(o, "index", INDEX, lambda r: [*r, r[0]]),
        ["key 'd-0000001' occurs 2 times"],
    ),
    "a record twice in the ledger": (
        lambda o: change_table(o, "ledger", LEDGER, doubled_ledger),
        ["record 'd-0000001' occurs 2 times", "the ledgers have"],
    ),
    "a record less in the ledger": (
        lambda o: change_table(
            o, "ledger", LEDGER, lambda r: [x for x in r if x["key"] != "d-0000003"]
        ),
        ["says 1 records dropped as unknown_form, the ledgers have 0"],
    ),
    "links of nobody": (
        lambda o: change_table(
            o,
            *("ledger", LEDGER),
            lambda r: [x for x in r if x["key"] != "d-0000001" or x["slot"] is not None],
        ),
        [
            "'d-0000001' has links, but no row of its own",
            "'d-0000001' is in the index, but not kept",
        ],
    ),
    "a reason of what is kept": (
        lambda o: change_table(o, "ledger", LEDGER, lambda r: set_in(r[0], reason="odd")),
        ["is kept with a reason", "0 records dropped as odd, the ledgers have 1"],
    ),
    "a key of two shards": (
        lambda o: change_table(
            o,
            *("ledger", LEDGER),
            lambda r: [x | {"key": "d-0000055"} if x["key"] == "d-0000003" else x for x in r],
        ),
        [f"key 'd-0000055' occurs in shard '{FIRST}' and in shard '{SECOND}'"],
    ),
    "counts of the manifest": (
        lambda o: edit_manifest(o, lambda m: m["links"].update(total=58, kept=58)),
        ["says 58 links kept, the ledgers have 59"],
    ),
    "features that are missing": (
        lambda o: edit_manifest(o, lambda m: m.update(features={})),
        [f"features/{FIRST}.arrow", f"features/{SECOND}.arrow"],
    ),
}


def test_a_whole_dataset_has_no_problem(whole: Path) -> None:
    assert problems(whole) == []


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_is_named(out: Path, damage: str) -> None:
    spoil, wanted = DAMAGES[damage]
    spoil(out)
    found = problems(out)
    assert found
    for words in wanted:
        assert any(words in problem for problem in found), (words, found)
    assert len(found) < 40


def rewritten(out: Path, bytes_of: Callable[[bytes], bytes]) -> None:
    """Write the first shard again, whole in itself, with other bytes for each image."""
    path = out / f"shards/{FIRST}.tar"
    with path.open("rb") as file:
        found = [s.as_row() for s in read_tar(file)]
    for row in found:
        for segment in row["segments"]:
            if segment["kind"] == "image":
                segment["image"] = bytes_of(segment["image"])
    buffer = io.BytesIO()
    rows = write_tar(buffer, [sample_from_row(row) for row in found], FIRST)
    path.write_bytes(buffer.getvalue())
    write_parquet(Storage(str(out)), f"index/{FIRST}.parquet", INDEX.table(rows), INDEX)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    size = len(buffer.getvalue())
    edit_manifest(out, lambda m: m["shards"][0].update(sha256=digest, num_bytes=size))


def encoded(kind: str, size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, "red").save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (encoded("PNG", (48, 40))[:-40], "does not decode"),
        (b"no image", "does not decode"),
        (encoded("JPEG", (48, 40)), "is jpeg, its name says png"),
        (encoded("PNG", (40, 48)), "has 40 x 48 pixels, the sample says 48 x 40"),
    ],
)
def test_images_that_do_not_decode_as_they_say(out: Path, image: bytes, words: str) -> None:
    rewritten(out, lambda _: image)
    found = problems(out)
    assert f"shards/{FIRST}.tar: sample 'd-0000001', image 0: " in found[0] and words in found[0]
    assert f"shards/{FIRST}.tar: {49 - MAX_PER_KIND} more such as: sample 'd-0000001'" in found[-1]
    assert len(found) == MAX_PER_KIND + 1


def test_a_member_twice_and_a_member_too_much(out: Path) -> None:
    path = out / f"shards/{FIRST}.tar"
    with tarfile.open(path, "a") as tar:
        for name in ("d-0000001.json", "stranger.txt"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    found = problems(out)
    assert any("member 'd-0000001.json' is there twice" in p for p in found)
    assert any("member 'stranger.txt' is not in the index" in p for p in found)


def test_features_of_other_images(out: Path) -> None:
    edit_manifest(out, lambda m: m.update(features={}))
    (out / "features").mkdir()
    for shard in (FIRST, SECOND):
        table = pa.table({"key": ["d-0000001"]})
        with pa.ipc.new_file(str(out / f"features/{shard}.arrow"), table.schema) as writer:
            writer.write_table(table)
    assert problems(out) == [
        f"features/{shard}.arrow: its rows are not the images of the index"
        for shard in (FIRST, SECOND)
    ]


def test_the_command_ends_with_the_truth(
    whole: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(whole), "--lint"]) == 0
    assert "2 shards are complete" in capsys.readouterr().out
    (out / f"shards/{SECOND}.tar").unlink()
    assert main([str(out), "--lint", "--num-samples", "0"]) == 1
    assert f"shards/{SECOND}.tar" in capsys.readouterr().out
