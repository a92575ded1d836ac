"""The examples of docs/python.md run, one after the other, on a tiny model."""

import re
from pathlib import Path

import pytest
from PIL import Image

from tests.generate.test_video import write_video

BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def test_the_examples_of_the_page_run(
    repository: Path,
    tiny_dir: Path,
    photo: Image.Image,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "runs/tiny").mkdir(parents=True)
    (tmp_path / "runs/tiny/model").symlink_to(tiny_dir)
    for name in ("photo.jpg", "one.jpg", "two.jpg"):
        photo.save(tmp_path / name)
    write_video(tmp_path / "clip.mp4", 20)
    monkeypatch.chdir(tmp_path)
    page = (repository / "docs/python.md").read_text()
    found = BLOCK.findall(page)
    assert len(found) >= 7
    names: dict[str, object] = {}
    for number, block in enumerate(found):
        exec(compile(block, f"docs/python.md, example {number + 1}", "exec"), names)
    assert (tmp_path / "circle.png").is_file()
    assert "64 x 64" in capsys.readouterr().out
    assert sorted(names["order"]) == [0, 1, 2]  # type: ignore[call-overload]
