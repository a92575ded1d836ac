"""The synthetic world of OBELICS documents: a build finds exactly the counts of its summary."""

from pathlib import Path

import pytest

from jobs.build_obelics import main
from pipelines.miniworld.config import MiniworldConfig
from pipelines.miniworld.obelics import FAULTS, ROW_FAULTS, write_world
from pipelines.miniworld.server import ImageServer
from schemas.manifest import manifest_from_json


def test_a_build_finds_the_counts_of_the_summary(tmp_path: Path) -> None:
    config = MiniworldConfig(num_documents=2 * len(FAULTS), num_shards=2, bad_share=0.5)
    summary = write_world(config, tmp_path / "world")
    assert set(summary.num_dropped_by_reason) == set(ROW_FAULTS.values())
    with ImageServer(tmp_path / "world/images", retry_after_s=0) as server:
        words = ["--documents", str(tmp_path / "world/documents/*"), "--out", str(tmp_path / "out")]
        fetch = ["--fetch.allow-host", server.allow_host, "--fetch.backoff-s", "0.05"]
        assert main([*words, *fetch, "--runner", "local"]) == 0
    found = manifest_from_json((tmp_path / "out/manifest.json").read_text())
    dropped = dict(found.records.dropped)
    assert found.records.total == summary.num_records
    assert found.records.kept == summary.num_documents_kept
    assert dropped.pop("no_image_arrived") > 0
    assert dropped == summary.num_dropped_by_reason
    # links of rows that are no documents do not count
    assert (found.links.total, found.links.kept) == (summary.num_links, summary.num_images_kept)


def test_the_same_configuration_gives_the_same_bytes(tmp_path: Path) -> None:
    worlds = [tmp_path / "one", tmp_path / "two"]
    for world in worlds:
        write_world(MiniworldConfig(num_documents=6), world)
    files = [
        {str(p.relative_to(world)): p.read_bytes() for p in world.rglob("*") if p.is_file()}
        for world in worlds
    ]
    assert files[0] == files[1]
    with pytest.raises(FileExistsError):
        write_world(MiniworldConfig(num_documents=7), worlds[0])
