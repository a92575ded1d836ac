"""Ctrl-C while a world is written: one line, exit code 130, and the next run writes the same bytes."""

from pathlib import Path

from pipelines.miniworld.config import MiniworldConfig
from pipelines.miniworld.mmc4 import write_mmc4
from tests.interrupts import interrupted
from tests.miniworld.test_mmc4 import bytes_by_name


def test_a_world_that_is_stopped_is_written_by_the_next_run(repository: Path, tmp_path: Path):
    out = tmp_path / "w"
    command = ("jobs.build_miniworld", "--out", out, "--num-documents", 80)
    is_time = (tmp_path / "w.partial/documents/docs_shard_0_v2.jsonl").exists
    ended = interrupted(repository, is_time, *command)
    assert (ended.exit_code, ended.last_line) == (
        130,
        "stopped; run the same command again to write it",
    )
    assert "Traceback" not in ended.error and not out.exists()
    for name in ("w", "whole"):
        write_mmc4(MiniworldConfig(num_documents=80), tmp_path / name)
    assert bytes_by_name(out) == bytes_by_name(tmp_path / "whole")
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["w", "whole"]
