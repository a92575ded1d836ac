"""The documentation is tested: its commands parse, its links lead somewhere."""

import ast
import importlib
import os
import re
from pathlib import Path

import pytest

from tests.documents import Command, commands, pages

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\]\((?!https?://)([^)#\s]+)")


def test_there_are_commands_to_check() -> None:
    assert {c.job for c in commands(ROOT)} >= {"build_mmc4", "train_emu", "serve"}


@pytest.mark.parametrize("command", commands(ROOT), ids=lambda c: f"{c.page}:{c.job}")
def test_a_command_of_the_docs_parses(
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    main = importlib.import_module(f"jobs.{command.job}").main
    if "--help" in command.arguments or not command.arguments:
        return
    monkeypatch.chdir(tmp_path)
    if "--config" in command.arguments:  # the page has printed that file before
        file = command.arguments[command.arguments.index("--config") + 1]
        (printing,) = (
            c.arguments
            for c in commands(ROOT)
            if (c.page, c.job) == (command.page, command.job) and "--print-config" in c.arguments
        )
        assert main(list(printing)) == 0
        Path(file).write_text(capsys.readouterr().out)
    assert main([*command.arguments, "--print-config"]) == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize("page", pages(ROOT), ids=lambda p: str(p.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    broken = [t for t in LINK.findall(page.read_text()) if not (page.parent / t).exists()]
    assert not broken, f"{page.name} links to {broken}"


def test_every_job_is_executable_and_has_its_shebang() -> None:
    jobs = [p for p in (ROOT / "jobs").glob("*.py") if p.read_text().startswith("#!")]
    assert len(jobs) >= 8
    for job in jobs:
        assert job.read_text().startswith("#!/usr/bin/env python3\n"), job.name
        assert "sys.exit(main())" in job.read_text(), job.name
        assert os.access(job, os.X_OK), f"{job.name} is not executable (chmod +x)"


def test_every_trap_is_shown_by_tests_that_exist() -> None:
    rows = [line for line in (ROOT / "docs/traps.md").read_text().splitlines() if "::" in line]
    assert len(rows) > 20
    for file, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", "\n".join(rows)):
        text = (ROOT / file).read_text()
        assert re.search(rf"^(async )?def {name}\(", text, re.MULTILINE), f"{file} has no {name}"


def defined_names(file: Path) -> set[str]:
    """Functions, classes and methods of a file, methods as `Class.method`."""
    found: set[str] = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            inner = (n for n in node.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
            found |= {f"{node.name}.{n.name}" for n in inner}
    return found


def test_every_step_of_the_tour_exists() -> None:
    text = (ROOT / "docs/tour.md").read_text()
    steps = re.findall(r"`([\w/]+\.py)` `([\w.]+)`", text)
    assert len(steps) > 30
    for file, name in steps:
        assert name in defined_names(ROOT / file), f"{file} has no {name}"
    for file in re.findall(r"`([\w/]+\.py)`", text):
        assert (ROOT / file).exists(), file
