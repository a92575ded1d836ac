"""Synthetic storyboards: the same bytes each time, and their frames are numbered."""

from pathlib import Path

import pytest

from pipelines.miniworld.config import MiniworldConfig
from pipelines.miniworld.storyboards import FAULTS, frame_number, sample_video, write_world

CONFIG = MiniworldConfig(seed=3, num_documents=7, num_shards=1, bad_share=0.5)


def test_a_world_has_the_same_bytes_each_time(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    summaries = [write_world(CONFIG, folder) for folder in folders]
    assert summaries[0] == summaries[1] == write_world(CONFIG, folders[0])
    written = [
        {p.relative_to(f): p.read_bytes() for p in f.rglob("*") if p.is_file()} for f in folders
    ]
    assert written[0] == written[1] and len(written[0]) > 10
    assert sum(summaries[0].num_records_by_fault.values()) == 3
    (tmp_path / "three").mkdir()
    (tmp_path / "three/x").touch()
    with pytest.raises(FileExistsError):
        write_world(CONFIG, tmp_path / "three")


def test_every_frame_shows_its_number() -> None:
    video = sample_video(CONFIG, 0)
    assert [frame_number(frame) for frame in video.frames] == list(range(video.count))
    faults = [sample_video(CONFIG, n).fault for n in range(12)]
    assert [fault for fault in faults if fault] == list(FAULTS)
