"""Adopted shards: tars of other tools become datasets, and nothing of them is lost silently."""

import base64
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from emu.data.dataset import Dataset
from jobs.adopt_shards import main
from jobs.building import export_parquet
from jobs.inspect_shards import main as inspect_main
from pipelines.core.run import extend, run
from pipelines.core.stage_runner import LocalRunner
from pipelines.core.storage import Storage
from pipelines.miniworld.config import PairsConfig
from pipelines.miniworld.pairs import pairs_pipeline
from pipelines.miniworld.server import ImageServer
from pipelines.transforms.features import FeatureStage
from schemas.features import FeatureInfo
from schemas.manifest import Manifest, manifest_from_json
from schemas.sample import Sample
from schemas.shard import read_tar
from tests.exit_codes import exit_code
from tests.mmc4.pages import COLOURS, colour_of, write_images


def image(colour: str = "red", form: str = "JPEG", size: tuple[int, int] = (40, 30)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, form)
    return buffer.getvalue()


def tar(path: Path, members: Mapping[str, bytes] | list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, data in members.items() if isinstance(members, Mapping) else members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def adopt(folder: Path | str, *options: str) -> int:
    return exit_code(main, [str(folder), *options])


def manifest(out: Path) -> Manifest:
    return manifest_from_json((out / "manifest.json").read_text())


def ledger(out: Path) -> dict[int, str | None]:
    (path,) = (out / "ledger").iterdir()
    return {row["record"]: row["reason"] for row in pq.read_table(path).to_pylist()}


def samples(out: Path) -> list[Sample]:
    dataset = Dataset(out)
    return [
        dataset.sample(s, r) for s, e in enumerate(dataset.entries) for r in range(e.num_samples)
    ]


PAIR = {
    "000000000.jpg": image(),
    "000000000.txt": b"a red one",
    "000000000.json": json.dumps(
        {"url": "http://a", "similarity": 0.3, "x": float("nan")}
    ).encode(),
}


def test_pairs_as_img2dataset_writes_them(tmp_path: Path) -> None:
    members = PAIR | {"000000001.webp": image("blue", "WEBP"), "000000001.txt": b"a blue one"}
    path = tar(tmp_path / "00000.tar", members)
    before = path.read_bytes()
    assert adopt(tmp_path, "--corpus", "laion") == 0
    assert path.read_bytes() == before and not (tmp_path / "shards").exists()
    found = manifest(tmp_path)
    assert found.shards[0].path == "00000.tar"
    assert json.loads((tmp_path / "manifest.json").read_text())["schema"] == "manifest/3"
    first, second = samples(tmp_path)
    assert [s.text for s in first.segments] == [None, "a red one"]
    assert (first.key, first.corpus) == ("laion-000000-000001", "laion")
    assert first.meta["scores"] == {"similarity": 0.3} and first.meta["fields"]["x"] is None
    assert (second.images[0].format, second.images[0].width) == ("webp", 40)


def test_webdataset_groups_the_same_samples(tmp_path: Path) -> None:
    members = [
        ("./a/x.1.jpg", image()),
        ("./a/x.TXT", b"one"),
        ("b/x.y.jpg", image("blue")),
        ("b/x.txt", b"two"),
        ("noextension", b"-"),
        ("__meta__/x.jpg", b"-"),
        ("c.jpg", image("green")),
        ("c.txt", b"three"),
    ]
    path = tar(tmp_path / "t.tar", members)
    assert adopt(tmp_path) == 0
    plain = list(webdataset.WebDataset(str(path), shardshuffle=False))
    assert [s.segments[-1].text for s in samples(tmp_path)] == [p["txt"].decode() for p in plain]
    assert len(plain) == 3


def test_the_caption_of_laion_coco_is_the_synthetic_one(tmp_path: Path) -> None:
    document = json.dumps({"top_caption": "a red kettle", "caption": "old"}).encode()
    tar(tmp_path / "t.tar", {"k.jpg": image(), "k.txt": b"buy now", "k.json": document})
    assert adopt(tmp_path) == 0
    assert samples(tmp_path)[0].segments[-1].text == "a red kettle"


def test_documents_numbered_and_packed(tmp_path: Path) -> None:
    packed = {
        "text_list": ["first", "second"],
        "image_info": [
            {"image_base64": base64.b64encode(image("blue")).decode(), "matched_text_index": 1},
            {"matched_text_index": 0},
        ],
    }
    members = {
        "v.0.txt": b"before",
        "v.0.png": image("red", "PNG"),
        "v.2.txt": b"after",
        "v.10.txt": b"last",
        "v.1.png": image("green", "PNG"),
        "w.json": json.dumps(packed).encode(),
    }
    tar(tmp_path / "t.tar", members)
    assert adopt(tmp_path) == 0
    numbered, document = samples(tmp_path)
    assert [s.text or s.format for s in numbered.segments] == [
        *("before", "png", "png", "after", "last")
    ]
    assert [s.text or s.format for s in document.segments] == ["first", "jpg", "second"]


BROKEN = {
    "no_image_member": [("k.txt", b"text alone")],
    "image_truncated": [("k.jpg", image(size=(300, 300))[:-900]), ("k.txt", b"x")],
    "not_an_image": [("k.jpg", b"hello"), ("k.txt", b"x")],
    "image_format_unsupported": [("k.jpg", image(form="BMP")), ("k.txt", b"x")],
    "malformed_json": [("k.jpg", image()), ("k.json", b"{")],
    "not_utf8": [("k.jpg", image()), ("k.txt", b"\xff\xfe")],
    "doubled_member": [("k.jpg", image()), ("k.jpg", image())],
    "document_malformed": [("k.json", b'{"text_list": [1], "image_info": []}')],
    "sample_malformed": [("k.json", b'{"schema": "sample/9"}'), ("k.jpg", image())],
}


@pytest.mark.parametrize("reason", BROKEN)
def test_what_cannot_be_trained_on_has_a_reason(tmp_path: Path, reason: str) -> None:
    good = [("good.jpg", image()), ("good.txt", b"good")]
    tar(tmp_path / "t.tar", [*good, *BROKEN[reason]])
    assert adopt(tmp_path) == 0
    assert ledger(tmp_path) == {1: None, 2: reason}


def test_a_name_that_occurs_again_is_dropped(tmp_path: Path) -> None:
    pair = [("k.jpg", image()), ("k.txt", b"x")]
    tar(tmp_path / "t.tar", [*pair, ("l.jpg", image()), ("l.txt", b"y"), *pair])
    assert adopt(tmp_path) == 0
    assert ledger(tmp_path) == {1: None, 2: None, 3: "doubled_key"}


def test_a_damaged_tar_keeps_what_is_whole_and_says_where_it_ends(tmp_path: Path) -> None:
    members = [(f"{n}.{s}", d) for n in "abc" for s, d in (("jpg", image()), ("txt", b"x"))]
    whole = tar(tmp_path / "whole.tar", members).read_bytes()
    (tmp_path / "whole.tar").unlink()
    second = whole.index(b"b.jpg")
    third = whole.index(b"c.jpg")
    cases = {
        "in_data": (whole[: second + 700], {1: None, 2: "tar_truncated"}),
        "in_header": (whole[: third + 100], {1: None, 2: None, 3: "tar_truncated"}),
        "between": (whole[:third], {1: None, 2: None, 3: "tar_truncated"}),
        "header": (
            whole[:third] + b"?" * 512 + whole[third + 512 :],
            {1: None, 2: None, 3: "tar_corrupt"},
        ),
        "no_tar": (b"once upon a time" * 99, {1: "tar_corrupt"}),
        "empty": (b"", {1: "tar_corrupt"}),
    }
    for name, (data, fates) in cases.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "t.tar").write_bytes(data)
        assert adopt(folder) == 1, name
        assert ledger(folder) == fates, name


def test_tars_of_ours_stay_the_same_samples(tmp_path: Path) -> None:
    run(pairs_pipeline(PairsConfig(num_pairs=6), 3), str(tmp_path / "built"), progress=False)
    assert adopt(tmp_path / "built/shards", "--out", str(tmp_path / "out")) == 0
    built = [
        s for t in sorted((tmp_path / "built/shards").iterdir()) for s in read_tar(t.open("rb"))
    ]
    found = samples(tmp_path / "out")
    assert [s.segments for s in found] == [s.segments for s in built]
    assert [s.meta for s in found] == [s.meta for s in built]
    shards = [s.path for s in manifest(tmp_path / "out").shards]
    assert shards[0] == str(tmp_path / "built/shards/miniworld-000000.tar")


class Ones:
    """An encoder of one embedding and two tokens."""

    def prepare(self, image: bytes) -> bytes:
        return image

    def encode(self, prepared: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        num = len(prepared)
        return np.ones((num, 4), np.float32), np.ones((num, 2, 3), np.float32)


def test_features_and_tables_work_on_adopted_shards(tmp_path: Path) -> None:
    tar(tmp_path / "00000.tar", [("bad.jpg", b"x"), *PAIR.items()])
    assert adopt(tmp_path) == 0
    info = FeatureInfo("test", "0" * 64, "as it is", "float32", 4, 2, 3)
    stage = FeatureStage(info, lambda: Ones())
    _, num_done = extend(stage, str(tmp_path), progress=False)
    assert num_done == 1 and export_parquet(str(tmp_path), LocalRunner()) == 1
    rows = pq.read_table(tmp_path / "parquet/adopted-000000.parquet").to_pylist()
    assert [row["text"] for row in rows] == ["<image>\na red one"]


def test_addresses_and_a_second_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/adopt_test/00000.tar", tar(tmp_path / "00000.tar", PAIR).read_bytes())
    try:
        out = str(tmp_path / "out")
        assert adopt("memory://adopt_test", "--out", out) == 0
        assert manifest(tmp_path / "out").shards[0].path == "memory:///adopt_test/00000.tar"
        assert samples(tmp_path / "out")[0].segments[-1].text == "a red one"
        before = (tmp_path / "out/manifest.json").read_bytes()
        assert adopt("memory://adopt_test", "--out", out) == 0
        assert (tmp_path / "out/manifest.json").read_bytes() == before
        assert adopt("memory://adopt_test", "--out", out, "--overwrite") == 0
        assert (tmp_path / "out/manifest.json").read_bytes() == before
    finally:
        memory.rm("/adopt_test", recursive=True)
    assert "1 left where they are" in capsys.readouterr().out


def test_lint_of_adopted_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tar(tmp_path / "00000.tar", [("bad.jpg", b"x"), *PAIR.items()])
    assert adopt(tmp_path) == 0
    assert exit_code(inspect_main, [str(tmp_path), "--lint"]) == 0
    path.write_bytes(path.read_bytes().replace(b"a red one", b"a RED one"))
    assert exit_code(inspect_main, [str(tmp_path), "--lint"]) == 1
    assert "00000.tar" in capsys.readouterr().out


def test_overwriting_leaves_the_tars(tmp_path: Path) -> None:
    path = tar(tmp_path / "00000.tar", PAIR)
    assert adopt(tmp_path) == 0
    tar(tmp_path / "00001.tar", {"z.jpg": image(), "z.txt": b"z"})
    assert adopt(tmp_path) == 2, "other inputs than those of the finished dataset"
    assert adopt(tmp_path, "--overwrite") == 0
    assert path.is_file() and len(manifest(tmp_path).shards) == 2


def test_a_tar_that_changed_is_refused_by_training(tmp_path: Path) -> None:
    path = tar(tmp_path / "00000.tar", PAIR)
    assert adopt(tmp_path) == 0
    path.write_bytes(path.read_bytes()[:-512])
    with pytest.raises(ValueError, match="the manifest says"):
        Dataset(tmp_path).sample(0, 0)


def test_what_is_no_folder_of_tars_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert adopt(tmp_path) in (1, 2)
    assert "no file matches" in capsys.readouterr().err
    assert Storage(str(tmp_path)).list("") == []


@pytest.mark.slow
def test_a_folder_that_img2dataset_wrote(tmp_path: Path) -> None:
    served = write_images(tmp_path / "images")
    with ImageServer(served) as server:
        links = [f"http://{server.address}/image/{name}.png" for name in (*COLOURS, "none")]
        rows = [
            f"{link},a {colour} one" for link, colour in zip(links, [*COLOURS, "-"], strict=True)
        ]
        (tmp_path / "urls.csv").write_text("\n".join(["url,caption", *rows]))
        script = f"""
import img2dataset
if __name__ == "__main__":
    img2dataset.download(url_list="{tmp_path}/urls.csv", output_folder="{tmp_path}/out", image_size=32,
        input_format="csv", caption_col="caption", output_format="webdataset", processes_count=1,
        thread_count=2, number_sample_per_shard=3)
"""
        (tmp_path / "get.py").write_text(script)
        subprocess.run([sys.executable, str(tmp_path / "get.py")], check=True, cwd=tmp_path)
    assert adopt(tmp_path / "out", "--corpus", "web") == 0
    found = samples(tmp_path / "out")
    shown = {f"a {colour_of(s.images[0].image)} one": s.segments[-1].text for s in found}
    assert shown == {f"a {colour} one": f"a {colour} one" for colour in COLOURS}
    assert {s.meta["fields"]["status"] for s in found} == {"success"}
