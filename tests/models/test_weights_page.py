"""The Python of docs/weights.md runs, on the golden weights."""

import re
from pathlib import Path

import pytest
from PIL import Image

from emu.weights.layout import load_config
from tests.models.released_forms import released_config
from tests.models.test_convert import convert_to


def test_the_page_runs(
    repository: Path, golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = released_config(golden, tmp_path)
    for family, name in (("pretrain", "emu-14b"), ("instruct", "emu-i")):
        weights = golden / "emu1_small" / f"{family}.safetensors"
        convert_to(tmp_path / "models" / name, weights, config, golden)
    blocks = re.findall(
        r"```python\n(.*?)```", (repository / "docs/weights.md").read_text(), re.DOTALL
    )
    assert len(blocks) == 3
    Image.new("RGB", (80, 60), "red").save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        exec(compile(block, "docs/weights.md", "exec"), {})
    assert load_config(tmp_path / "models" / "to-instruct").instruct
    assert load_config(tmp_path / "models" / "emu-i-merged").adapter is None
    assert load_config(tmp_path / "models" / "adapted").adapter is not None
