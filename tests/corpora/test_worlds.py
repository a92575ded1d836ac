"""Every corpus from end to end on its synthetic world: built, opened by `datasets`, and built while a node is lost."""

import importlib
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from emu.data.dataset import Dataset, ShardReader
from emu.data.mixture import Mixture, Source
from jobs.__main__ import main
from pipelines.miniworld import WORLDS
from pipelines.miniworld.config import MiniworldConfig
from pipelines.miniworld.server import ImageServer
from schemas.manifest import MANIFEST_FILE, Manifest, manifest_from_json
from tests.exit_codes import exit_code


@contextmanager
def world(corpus: str, folder: Path, num_documents: int = 24) -> Iterator[list[str]]:
    """A world in the form of a corpus, served; gives the words of the command that builds it, without an output."""
    form: Any = importlib.import_module(WORLDS[corpus])
    form.write_world(MiniworldConfig(num_documents=num_documents), folder)
    with ImageServer(folder / "images") as server:
        words = shlex.split(form.BUILD.format(out=folder))[1:]
        yield [*words, "--fetch.allow-host", server.allow_host, "--fetch.backoff-s", "0.05"]


def manifest(out: Path) -> Manifest:
    return manifest_from_json((out / MANIFEST_FILE).read_text())


def contents(out: Path) -> dict[str, bytes]:
    """The files of a dataset, by path."""
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


@pytest.mark.parametrize("corpus", WORLDS)
def test_datasets_opens_every_corpus_with_decoded_images(tmp_path: Path, corpus: str) -> None:
    datasets = pytest.importorskip("datasets")
    out = tmp_path / "out"
    with world(corpus, tmp_path / "world") as command:
        options = ["--out", str(out), "--runner", "local", "--export", "parquet"]
        assert exit_code(main, [*command, *options]) == 0
    rows = datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(rows) == manifest(out).num_samples > 0
    ours = Dataset(out)
    samples = [ours.sample(s, r) for s, e in enumerate(ours.entries) for r in range(e.num_samples)]
    for row, sample in zip(rows, samples, strict=True):
        assert row["key"] == sample.key
        assert row["texts"] == [s.text for s in sample.segments]
        assert row["times"] == [s.time_s for s in sample.segments]
        assert row["roles"] == [s.role for s in sample.segments]
        assert [i.size for i in row["images"]] == [(s.width, s.height) for s in sample.images]
    assert any(row["images"] for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("corpus", WORLDS)
def test_a_node_is_lost_in_the_middle_and_no_byte_differs(tmp_path: Path, corpus: str) -> None:
    from ray.cluster_utils import Cluster

    with world(corpus, tmp_path / "world", 120) as command:
        small = [*command, "--samples-per-shard", "6"]
        local = [*small, "--out", str(tmp_path / "local"), "--runner", "local"]
        assert exit_code(main, local) == 0
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        try:
            lost = cluster.add_node(num_cpus=1)
            job = subprocess.Popen(
                [sys.executable, "-m", "jobs", *small, "--out", str(tmp_path / "ray")],
                env=os.environ | {"RAY_ADDRESS": cluster.address},
            )
            ledgers = tmp_path / "ray/ledger"
            while job.poll() is None and not (ledgers.is_dir() and any(ledgers.iterdir())):
                time.sleep(0.05)
            is_running = not (tmp_path / "ray" / MANIFEST_FILE).exists()
            cluster.remove_node(lost, allow_graceful=False)
            assert job.wait(timeout=280) == 0
        finally:
            cluster.shutdown()
    assert is_running, "the build was over before the node was lost"
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")


def test_a_dataset_by_another_name_is_a_corpus_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outs = {"laion": tmp_path / "laion", "laion_coco": tmp_path / "coco"}
    with world("laion", tmp_path / "world", 12) as command:
        for name, out in outs.items():
            named = [] if name == "laion" else ["--name", name]
            assert exit_code(main, [*command, *named, "--out", str(out), "--runner", "local"]) == 0
        again = [*command, "--out", str(outs["laion_coco"]), "--runner", "local"]
        assert exit_code(main, again) == 2, "the name is part of what a dataset is"
    for name, out in outs.items():
        found = manifest(out)
        assert found.corpus == name
        assert {entry.name.rpartition("-")[0] for entry in found.shards} == {name}
        assert Dataset(out).sample(0, 0).corpus == name
    assert (
        "pretty_name: LAION dataset (laion_coco)" in (outs["laion_coco"] / "README.md").read_text()
    )
    readers = [ShardReader(str(out), seed=0) for out in outs.values()]
    names = [reader.dataset.manifest.corpus for reader in readers]
    pairs = zip(names, readers, strict=True)
    assert list(Mixture([Source(n, 1.0, r, 1) for n, r in pairs]).sources) == list(outs)
    capsys.readouterr()
    key = Dataset(outs["laion_coco"]).sample(0, 0).key
    assert exit_code(main, ["inspect", str(outs["laion_coco"]), "--key", key, "--lint"]) == 0
