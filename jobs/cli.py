"""How a job ends: with a line for a person, and with a status for a script."""

import logging
import sys

COMPLETE, FAILED, BAD_VALUE = 0, 1, 2
INTERRUPTED = 130
"""On Ctrl-C (SIGINT), as shells call it: 128 + 2."""

GOES_ON = "the same command goes on where it was"


def complain(error: BaseException | str, status: int) -> int:
    """The status, after a line with the error; its traceback goes to the log at level DEBUG."""
    if isinstance(error, BaseException):
        logging.getLogger(__name__).debug("failed", exc_info=error)
    print(f"error: {error}", file=sys.stderr)
    return status


def stopped(hint: str = GOES_ON) -> int:
    """The status of a job stopped by hand, after a line that says what to do next."""
    print(f"stopped; {hint}", file=sys.stderr)
    return INTERRUPTED
