"""The command `emu`, also `python -m jobs`: every job as a subcommand.

`emu train …` does what `jobs/train_emu.py …` does. Only the module of the chosen job is imported.
"""

import difflib
import sys
from collections.abc import Sequence
from importlib import import_module

from jobs import COMMANDS, Command

FAILED, BAD_VALUE = 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand and return its exit code; 2 if there is no such subcommand."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] in (["-h"], ["--help"]):
        print(overview())
        return 0
    if words[:1] == ["--version"]:
        from emu import __version__

        print(f"emu {__version__}")
        return 0
    for length in (2, 1):
        name = " ".join(words[:length])
        if len(words) >= length and name in COMMANDS:
            return run(COMMANDS[name], words[length:])
    print(refusal(words), file=sys.stderr)
    return BAD_VALUE


def run(command: Command, words: Sequence[str]) -> int:
    """Run the job of a subcommand; 1 if a package that its module imports is not installed."""
    try:
        job = import_module(f"jobs.{command.module}")
    except ModuleNotFoundError as error:
        hint = f"install it with pip install 'emu-platform[{command.extra}]'"
        print(f"error: {error}; {hint}", file=sys.stderr)
        return FAILED
    return job.main(words)


def overview() -> str:
    """The help of `emu`: every subcommand with a line of description."""
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            "usage: emu COMMAND [OPTIONS]",
            "",
            "Trains and serves Emu, a multimodal model, from lists of links to an HTTP endpoint.",
            "",
            "commands:",
            *(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()),
            "",
            "emu COMMAND --help explains the options of a command; emu --version prints the version.",
        ]
    )


def refusal(words: Sequence[str]) -> str:
    """Why there is no subcommand in these words, with the nearest one."""
    if not words:
        return f"{overview()}\n\nerror: no command given"
    group = [name for name in COMMANDS if name.split()[0] == words[0]]
    if group:
        return (
            f"error: 'emu {words[0]}' needs one more word: {', '.join(f'emu {n}' for n in group)}"
        )
    typed = " ".join(words[:2])
    near = difflib.get_close_matches(words[0], COMMANDS, 1) or difflib.get_close_matches(
        typed, COMMANDS, 1
    )
    hint = f"did you mean 'emu {near[0]}'? " if near else ""
    return f"error: no command '{words[0]}'; {hint}emu --help lists the commands"


if __name__ == "__main__":
    sys.exit(main())
