"""Which changes of the code make a dataset refuse: those that its own stages reach, and no others."""

import ast
import json
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path

import pytest
from engine_jobs import Job, snapshot
from numbers_pipeline import contents, numbers_pipeline

import pipelines
from pipelines.core import fingerprint
from pipelines.core.fingerprint import reached_modules
from pipelines.core.pipeline import Barrier, Construct, Filter, FingerprintError, Stage
from pipelines.core.run import run
from pipelines.corpora.build import Build
from pipelines.corpora.mmc4 import rules as mmc4
from pipelines.readers.jsonl import LineSource


def edit(file: Path, pattern: str, replacement: str) -> None:
    """Change the one match of a pattern in a source file."""
    text, count = re.subn(pattern, replacement, file.read_text(), flags=re.MULTILINE)
    assert count == 1, (file, pattern, count)
    file.write_text(text)


def append(file: Path, line: str) -> None:
    file.write_text(f"{file.read_text()}\n{line}\n")


def committed(out: Path) -> dict[str, str]:
    """The files of a dataset without what a killed run was writing."""
    return {p: h for p, h in contents(out).items() if not p.startswith((".work/tmp", ".work/lock"))}


@pytest.fixture(scope="module")
def begun(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the code, a build that was killed, and a finished one."""
    folder = tmp_path_factory.mktemp("begun")
    job = Job(snapshot(repository, folder / "code"))
    process = job.start(folder / "killed", "--kill-at", "40")
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    assert (folder / "killed/.work/plan.json").exists()
    job.to_the_end(folder / "finished")
    return folder


@pytest.fixture
def state(begun: Path, tmp_path: Path) -> Path:
    """That folder, copied to be changed."""
    shutil.copytree(begun, tmp_path / "state")
    return tmp_path / "state"


def test_code_that_no_stage_reaches_may_change(state: Path) -> None:
    code, calls = state / "code", state / "calls"
    calls.mkdir()
    append(code / "pipelines/miniworld/scene.py", "CHANGED = True")
    append(code / "pipelines/publish/report.py", "CHANGED = True")
    append(code / "pipelines/core/run.py", "CHANGED = True")
    # What a stage reaches may change for people: a comment, docstrings, the form.
    edit(code / "numbers_pipeline.py", "^( +)failed = self", r"\1# A comment.\n\1failed  =  self")
    edit(code / "numbers_pipeline.py", '"""Gives each number its links.*"""', '"""Parses."""')
    edit(
        code / "numbers_pipeline.py", "Every 13th number cannot be read", "One in 13 is unreadable"
    )
    edit(code / "schemas/shard.py", r'\A"""', '"""Another docstring. ')
    job = Job(code)
    before = contents(state / "finished")
    job.to_the_end(state / "finished", "--calls", str(calls))
    assert contents(state / "finished") == before and not list(calls.iterdir())
    job.to_the_end(state / "killed")
    assert contents(state / "killed") == before


@pytest.mark.parametrize(
    ("module", "change"),
    [
        (
            "numbers_pipeline",
            partial(edit, pattern=r"1 \+ number % 7", replacement="1 + number % 6"),
        ),
        ("schemas.shard", partial(append, line="CHANGED = True")),
        ("pipelines.core.stage_runner", partial(append, line="CHANGED = True")),
    ],
    ids=["a step", "a module that a step imports", "the engine's work on a shard"],
)
def test_code_that_a_stage_reaches_may_not_change(
    state: Path, module: str, change: Callable[[Path], None]
) -> None:
    change(state / "code" / f"{module.replace('.', '/')}.py")
    job, kinds = Job(state / "code"), ("killed", "finished")
    before = [committed(state / kind) for kind in kinds]
    for process in [job.start(state / kind) for kind in kinds]:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 1
        assert f"differs in the code (of {module}); " in errors and "--overwrite" in errors
    assert [committed(state / kind) for kind in kinds] == before


def test_a_manifest_without_modules_is_of_another_release(tmp_path: Path) -> None:
    run(numbers_pipeline(), str(tmp_path), progress=False)
    file = tmp_path / "manifest.json"
    document = json.loads(file.read_text())
    assert set(document["modules"]) >= {"numbers_pipeline", "schemas.shard"}
    document["fingerprint"]["code"] = "0" * 64
    document["modules"] = {}
    file.write_text(json.dumps(document))
    with pytest.raises(FingerprintError, match=r"the code \(of another release"):
        run(numbers_pipeline(), str(tmp_path), progress=False)


def test_a_corpus_reaches_its_own_rules_and_nothing_of_others() -> None:
    reached = set(reached_modules(mmc4.pipeline(Build(LineSource(["x.jsonl"])), mmc4.Rules())))
    assert reached >= {
        "pipelines.core.stage_runner",
        "pipelines.corpora.mmc4.rules",
        "pipelines.download.fetcher",
        "pipelines.filters.min_images",
        "pipelines.images.normalise",
        "pipelines.publish.shards",
        "pipelines.readers.jsonl",
        "schemas.sample",
    }
    others = ("pipelines.miniworld", "pipelines.publish.report", "pipelines.core.run", "emu")
    assert not [m for m in reached if m.startswith(others)]


def sentences_of_reasons() -> Iterator[tuple[Path, ast.Call]]:
    """Every call of `Reason` in the package, but of the filter whose sentence is an option."""
    folder = Path(pipelines.__file__).parent
    for file in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_bytes())):
            is_reason = isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Reason"
            if is_reason and not isinstance(node.args[0], ast.Name):
                yield file, node
            elif is_reason:
                assert file.name == "min_images.py", file


def test_the_wording_of_reasons_does_not_count() -> None:
    """What a reason says to people may change in a release; its word and what it allows decide what is in a shard."""
    found = list(sentences_of_reasons())
    assert len(found) > 150
    for file, node in found:
        assert isinstance(node.args[0], ast.Constant | ast.JoinedStr), f"{file}:{node.lineno}"
    code = 'REASONS = {"a": Reason("One. " f"{2}", retryable=True)}'
    reworded = code.replace("One", "Two")
    assert reworded != code
    assert fingerprint._code(code.encode()).digest == fingerprint._code(reworded.encode()).digest
    for other in (code.replace('"a"', '"b"'), code.replace("True", "False")):
        assert fingerprint._code(other.encode()).digest != fingerprint._code(code.encode()).digest


PACKAGE = {
    "__init__.py": "raise RuntimeError('no package is imported to be read')\n",
    "helper.py": "",
    "model.py": "from . import weights\n",
    "weights.py": "",
    "limits.py": "",
    "types.py": "",
    "unused.py": "",
    "steps.py": """
from functools import partial
from typing import TYPE_CHECKING
import numpy as np
from own_package.helper import *
if TYPE_CHECKING:
    from own_package import types

def make(side):
    from own_package.model import Model
    return lambda table: table

def with_limit(limit):
    return lambda table: limit(table)
""",
    "extra.py": "from own_package import limits\n\ndef limit(table):\n    return None\n",
}


@pytest.mark.parametrize(
    ("of_step", "expected"),
    [
        (lambda m: Construct(m["steps"].make, (2,)), {"steps", "helper", "model", "weights"}),
        (lambda m: partial(m["extra"].limit), {"extra", "limits"}),
        (
            lambda m: Filter("f", m["steps"].with_limit(m["extra"].limit), {}),
            {"steps", "helper", "model", "weights", "extra", "limits"},
        ),
    ],
    ids=["imports in functions", "partial", "closure"],
)
def test_imports_are_followed_from_wherever_a_step_comes_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of_step: Callable, expected: set[str]
) -> None:
    folder = tmp_path / "own_package"
    folder.mkdir()
    for name, text in PACKAGE.items():
        (folder / name).write_text("" if name == "__init__.py" else text)
    monkeypatch.syspath_prepend(tmp_path)
    modules = {n: import_module(f"own_package.{n}") for n in ("steps", "extra")}
    (folder / "__init__.py").write_text(PACKAGE["__init__.py"])
    pipeline = numbers_pipeline()
    for stage in (
        Stage("own", (of_step(modules),)),
        Barrier("own", plan=of_step(modules), apply=lambda table, plan: table),
    ):
        reached = reached_modules(replace(pipeline, stages=(stage,)))
        own = {m.removeprefix("own_package.") for m in reached if m.startswith("own_package")}
        assert own == expected
