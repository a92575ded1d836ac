"""The examples of docs/serving.md run: each `curl` as it would be pasted, and the Python beside them."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from jobs.serve import ServeJob
from tests.documents import blocks, lines
from tests.serve.conftest import Caller
from tests.serve.test_job import command, running

ADDRESS = "http://127.0.0.1:8000"
PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/serving.md"


def curls() -> list[str]:
    """The calls of curl on the page and in the help of the job."""
    found = [line for block in blocks(PAGE) for line in lines(block) if line.startswith("curl ")]
    text = (ServeJob.__doc__ or "").replace("\\\n", " ")
    return [
        *found,
        *(line.strip() for line in text.splitlines() if line.strip().startswith("curl ")),
    ]


def pasted(line: str, address: str, folder: Path) -> dict[str, Any]:
    """What a shell prints for the call: the server's JSON."""
    assert ADDRESS in line
    done = subprocess.run(
        ["bash", "-ec", line.replace(ADDRESS, address)],
        cwd=folder,
        env=dict(os.environ, no_proxy="127.0.0.1"),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def check_all(address: str, folder: Path) -> None:
    """Pastes every call and looks at what it gives."""
    Image.effect_mandelbrot((80, 60), (-2, -1, 1, 1), 100).convert("RGB").save(folder / "photo.jpg")
    seen = set()
    for line in curls():
        found = pasted(line, address, folder)
        assert "error" not in found, (line, found)
        path = line.partition(ADDRESS)[2].split()[0]
        seen.add(path)
        if path == "/v1/chat/completions":
            message = found["choices"][0]["message"]
            assert message["images"] if "modalities" in line else message["content"] is not None
        else:
            assert found["choices" if path == "/v1/completions" else "data"]
    routes = ("chat/completions", "completions", "images/generations", "images/edits")
    assert seen == {f"/v1/{name}" for name in (*routes, "rank", "embeddings")}


needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


@needs_curl
def test_every_curl_of_the_page_is_answered(caller: Caller, tmp_path: Path) -> None:
    check_all(str(caller.client.base_url).rstrip("/"), tmp_path)


@needs_curl
@pytest.mark.slow
def test_every_curl_of_the_page_is_answered_by_the_job(
    repository: Path, tiny_dir: Path, tmp_path: Path
) -> None:
    arguments = command(repository, "--model", str(tiny_dir), "--port", "0")
    with running(arguments, tmp_path / "log") as (_, url):
        check_all(url, tmp_path)


@pytest.mark.slow
def test_the_python_of_the_page_runs(
    caller: Caller,
    tiny_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("openai", reason="pip install openai for this test")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/tiny").mkdir()
    (tmp_path / "runs/tiny/model").symlink_to(tiny_dir)
    Image.new("RGB", (80, 60), "teal").save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    found = PYTHON.findall(PAGE.read_text())
    assert len(found) == 2
    for number, block in enumerate(found):
        code = block.replace(ADDRESS, str(caller.client.base_url).rstrip("/"))
        code = code.replace('model="model"', 'model="tiny"')  # the name of this directory
        exec(compile(code, f"docs/serving.md, example {number + 1}", "exec"), {})
    assert (tmp_path / "circle.png").is_file() and capsys.readouterr().out
