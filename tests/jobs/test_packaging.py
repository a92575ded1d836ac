"""What is packaged: every import has its distribution, every extra its jobs, every named file exists."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

from emu import __version__
from jobs import COMMANDS
from tests.generate.tiny import write_tiny_model

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("schemas", "pipelines", "emu", "jobs")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
BROUGHT = {
    "starlette": "fastapi",
    "pycocoevalcap": "captions",
    "torch_fidelity": "fid",
    "img2dataset": "img2dataset",
    "lingua": "language",
}
"""Modules that come with another distribution, or whose extra is of a single option."""


def name_of(requirement: str) -> str:
    return re.split(r"[\[<>=~!; ]", requirement)[0].lower().replace("_", "-")


def imported() -> Iterator[str]:
    """The top-level names of what the packages import from elsewhere."""
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Import):
                    yield from (alias.name.partition(".")[0] for alias in node.names)
                elif isinstance(node, ast.ImportFrom) and node.module:
                    yield node.module.partition(".")[0]


def test_every_import_is_required_and_nothing_else() -> None:
    known = set(sys.stdlib_module_names) | set(PACKAGES) | set(BROUGHT)
    distributions = packages_distributions()
    found = {name for name in imported() if name not in known}
    needed = {name_of(distributions[name][0]) for name in found}
    extras = [r for e in ("data", "train", "serve", "eval") for r in EXTRAS[e]]
    required = {name_of(r) for r in [*PROJECT["dependencies"], *extras]}
    assert needed - required == set(), "imported, but not required"
    # diffusers, starlette and torch.utils.tensorboard need these
    assert required - needed == {"accelerate", "python-multipart", "tensorboard"}, (
        "required, but not imported"
    )


def test_every_job_has_an_extra_and_all_has_every_extra() -> None:
    assert {c.extra for c in COMMANDS.values()} == {"data", "train", "serve", "eval", "all"}
    assert EXTRAS["all"] == ["emu-platform[data,train,serve,eval]"]


def test_one_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert "version" in PROJECT["dynamic"] and citation["version"] == __version__
    assert all((ROOT / package / "py.typed").is_file() for package in PACKAGES)


def test_the_image_copies_files_that_exist() -> None:
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", (ROOT / "Dockerfile").read_text(), re.M)
    assert copied
    for name in (word for line in copied for word in line.split()):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("folder", ["data", "runs", "world", "demo_out"])
def test_outputs_of_the_quickstart_are_ignored(folder: str) -> None:
    assert f"/{folder}/" in (ROOT / ".gitignore").read_text().splitlines()


def test_issue_templates_are_forms() -> None:
    forms = [p for p in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml") if p.stem != "config"]
    assert len(forms) >= 2
    for form in forms:
        assert {"name", "description", "body"} <= set(yaml.safe_load(form.read_text())), form.name


@pytest.mark.parametrize(
    ("words", "package", "extra"),
    [
        ("build mmc4 --documents x --out y --fetch.allow-host a=127.0.0.1:1", "yarl", "data"),
        ("inspect x", "pyarrow", "data"),
        ("serve --model MODEL", "ray", "serve"),
    ],
)
def test_a_package_that_is_missing_is_named_with_its_extra(
    words: str, package: str, extra: str, tmp_path: Path
) -> None:
    if "MODEL" in words:  # options are checked first
        words = words.replace("MODEL", str(write_tiny_model(tmp_path / "model")))
    code = f"import sys; sys.modules[{package!r}] = None; from jobs.__main__ import main; sys.exit(main())"
    command = [sys.executable, "-c", code, *words.split()]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert package in done.stderr and f"pip install 'emu-platform[{extra}]'" in done.stderr
