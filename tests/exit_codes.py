"""The exit code of a job, whether `main` returns it or the parser of options ends the process."""

from collections.abc import Callable, Sequence
from typing import Any


def exit_code(main: Callable[..., Any], words: Sequence[object]) -> int:
    """The exit code of `main` for the words of a command line; None counts as 0, as for a process."""
    try:
        status = main([str(word) for word in words])
    except SystemExit as stop:
        status = stop.code
    return int(status or 0)
