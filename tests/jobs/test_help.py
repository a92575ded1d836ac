"""The help of every job: each option is described, and its lines break where its sentences do."""

import ast
import dataclasses
import importlib
import inspect
import textwrap
import typing
from collections.abc import Iterator
from typing import Any

import pytest

from emu.eval.metrics import METRICS, load_metric
from jobs import COMMANDS
from jobs.cli import CommonOptions
from tests.exit_codes import exit_code

JOBS = [c.module for c in COMMANDS.values() if c.module != "evaluate"]


def options_of(module: str) -> type:
    """The dataclass of a job's options: the one that its file defines and that is described with an example."""
    job = importlib.import_module(f"jobs.{module}")
    [kind] = [
        kind
        for _, kind in inspect.getmembers(job, inspect.isclass)
        if dataclasses.is_dataclass(kind)
        and kind.__module__ == job.__name__
        and "\n    emu " in (inspect.getdoc(kind) or "")
    ]
    return kind


def classes_of(kind: type) -> Iterator[type]:
    """The class of a job's options, those that it inherits from, and those of its nested options."""
    for cls in kind.__mro__:
        if dataclasses.is_dataclass(cls):
            yield cls
    for hint in typing.get_type_hints(kind).values():
        for found in [hint, *typing.get_args(hint)]:
            if isinstance(found, type) and dataclasses.is_dataclass(found):
                yield from classes_of(found)


def docstrings(cls: type) -> dict[str, str | None]:
    """The help text of each option that a class defines; None for one without."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(tree, ast.ClassDef)
    found: dict[str, str | None] = {}
    for node, following in zip(tree.body, [*tree.body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            text: Any = following.value if isinstance(following, ast.Expr) else None
            found[node.target.id] = str(text.value) if isinstance(text, ast.Constant) else None
    return found


KINDS = {
    **{module: options_of(module) for module in JOBS},
    **{f"evaluate {metric}": load_metric(metric) for metric in METRICS},
    "every job": CommonOptions,
}


@pytest.mark.parametrize("job", KINDS)
def test_every_option_is_described_in_lines_that_end_with_a_sentence(job: str) -> None:
    for cls in classes_of(KINDS[job]):
        hints = typing.get_type_hints(cls)
        found = docstrings(cls)
        for name in (field.name for field in dataclasses.fields(cls) if field.name in found):
            text = found[name]
            if text is None:
                nested = hints[name]
                assert dataclasses.is_dataclass(nested) and nested.__doc__, f"{cls}.{name}"
                continue
            # a terminal shows the line breaks of the text beside its own
            lines = text.splitlines()
            broken = [line for line in lines[:-1] if not line.rstrip().endswith((".", ":", ";"))]
            assert not broken, f"{cls.__name__}.{name}: {broken}"
            assert len(text) > 10 and text.rstrip().endswith((".", ")")), f"{cls.__name__}.{name}"


@pytest.mark.parametrize("job", JOBS)
def test_lists_that_are_empty_by_default_are_shown_as_none(
    job: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(importlib.import_module(f"jobs.{job}").main, ["--help"]) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "(default: )" not in shown
    if any(field.default == () for field in dataclasses.fields(KINDS[job])):
        assert "(default: none)" in shown
