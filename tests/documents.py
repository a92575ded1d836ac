"""Commands in the documentation: what stands in `sh` blocks of README.md and docs/."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from jobs import COMMANDS

BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
JOB = re.compile(r"(?:^|/)jobs/(\w+)\.py$")
SUBCOMMAND = re.compile(r"(?:^|/)emu$")


@dataclass(frozen=True)
class Command:
    """One call of a job: its module under `jobs/` and its arguments."""

    page: str
    job: str
    arguments: tuple[str, ...]


def pages(root: Path) -> list[Path]:
    """Every page of documentation."""
    return [root / "README.md", root / "CONTRIBUTING.md", *sorted((root / "docs").rglob("*.md"))]


def blocks(page: Path) -> list[str]:
    """The `sh` blocks of a page, continued lines joined."""
    return [block.replace("\\\n", " ") for block in BLOCK.findall(page.read_text())]


def lines(block: str) -> list[str]:
    """The commands of a block; one whose quotes span lines stays together."""
    found: list[str] = []
    pending = ""
    for line in block.splitlines():
        pending = f"{pending}\n{line}" if pending else line
        try:
            shlex.split(pending, comments=True)
        except ValueError:
            continue
        found.append(pending)
        pending = ""
    assert not pending, f"no closing quotation: {pending}"
    return found


def commands(root: Path) -> list[Command]:
    """Every call of a job in every page; placeholders such as `…` are left out."""
    found = []
    for page in pages(root):
        for line in (line for block in blocks(page) for line in lines(block)):
            words = [w for w in shlex.split(line, comments=True) if w not in ("&", "…", "...")]
            if call := job_called(words):
                stop = next((n for n, w in enumerate(call[1]) if w in ("&&", "|", ">", ";")), None)
                found.append(Command(page.name, call[0], tuple(call[1][:stop])))
    return found


def job_called(words: list[str]) -> tuple[str, list[str]] | None:
    """The module of the job that a line calls, as a file or as a subcommand of `emu`, and the words after it."""
    for place, word in enumerate(words):
        rest = words[place + 1 :]
        if match := JOB.search(word):
            return match[1], rest
        if SUBCOMMAND.search(word):
            for length in (2, 1):
                if command := COMMANDS.get(" ".join(rest[:length])):
                    return command.module, rest[length:]
    return None
