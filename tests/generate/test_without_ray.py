"""emu works without Ray; the modules that need it are those that import-linter allows."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path


def test_emu_imports_trains_generates_and_evaluates_without_ray(repository: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.generate.without_ray"],
        cwd=repository,
        env=dict(os.environ, OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["refused"] == excepted(repository)
    assert found["imported"] > 60
    assert found["steps"] == 1 and found["text_loss"] > 0
    assert len(found["answers"]) == 2 and sorted(found["ranks"]) == [0, 1]
    assert found["regressed"][0] == 1 and len(found["metrics"]) > 5


def excepted(repository: Path) -> list[str]:
    """The modules of emu that import-linter lets import Ray."""
    settings = tomllib.loads((repository / "pyproject.toml").read_text())["tool"]["importlinter"]
    (rule,) = [c for c in settings["contracts"] if c.get("forbidden_modules") == ["ray"]]
    modules = [entry.partition(" -> ")[0] for entry in rule["ignore_imports"]]
    return sorted(name for name in modules if name.startswith("emu."))
