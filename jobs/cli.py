"""What every job does alike: parse options, do the work, print a summary, end with an exit code.

| exit code | meaning                                                    |
|-----------|------------------------------------------------------------|
| 0         | complete                                                   |
| 1         | failed; what is done is kept, and the same command resumes |
| 2         | an option or an input is wrong; nothing was done           |
| 130       | stopped by Ctrl-C (128 + SIGINT, as shells count)          |
| 143       | a training, stopped by SIGTERM (128 + 15); it has saved    |

Importing this module is cheap: a job that imports no more than its options need answers `--help` and wrong options
at once. What the work needs is imported when it begins (see `jobs`).
"""

import dataclasses
import functools
import gc
import inspect
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro

from emu import IMPORT_THRESHOLD
from jobs import COMMANDS
from jobs.progress import Status
from jobs.value_options import VALUES
from schemas.validation import SchemaError

T = TypeVar("T")

COMPLETE, FAILED, BAD_VALUE, INTERRUPTED = 0, 1, 2, 130
RESUMES = "the same command resumes where it stopped"
LogLevel = Literal["debug", "info", "warning", "error"]


@dataclass(frozen=True)
class CommonOptions:
    """What every job understands beside its own options."""

    config: str | None = None
    """Read options from this YAML or JSON file, in the form that --print-config writes.
    Options on the command line take precedence."""
    print_config: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print all options with their values as a file for --config, and exit."""
    log_level: LogLevel | None = None
    """Lowest level of the log lines on standard error. None: the default of the job."""


class OptionError(ValueError):
    """A wrong option or input, found before any work: exit code 2."""


class JobError(RuntimeError):
    """A failure of the work, exit code 1; `summary` is printed before the error."""

    def __init__(self, message: str, summary: str | None = None) -> None:
        super().__init__(message)
        self.summary = summary


class JobStopped(Exception):
    """Work that a signal has ended in good order: exit code 128 + its number."""

    def __init__(self, signal: int) -> None:
        super().__init__(signal)
        self.signal = signal


@contextmanager
def checked_options() -> Iterator[None]:
    """Turns ValueError and OSError inside the block, which looks at options and inputs, into `OptionError`."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise OptionError(in_words(error)) from error


@contextmanager
def failing(*kinds: type[Exception]) -> Iterator[None]:
    """Turns these errors inside the block into `JobError`; for errors of modules that only the work imports."""
    try:
        yield
    except kinds as error:
        raise JobError(str(error)) from error


def run_job(
    kind: type[T],
    work: Callable[[T], str | int | None],
    arguments: Sequence[str] | None,
    *,
    program: str | None = None,
    description: str | None = None,
    default: Callable[[Sequence[str]], T] | None = None,
    failed: tuple[type[Exception], ...] = (SchemaError, OSError),
    hint: str = RESUMES,
    log_level: LogLevel = "info",
) -> int:
    """Parse `kind` from the command line, print what `work` returns for it, and return the exit code.

    Args:
        kind: the dataclass of the options; its docstring is the help.
        work: does the job; returns its summary, or the exit code (None is 0) where it has printed all there is.
        arguments: of the command line; None takes those of the process.
        program: the command as help shows it; None: by the file that defines `kind`.
        description: the help text above the options; None: the docstring of `kind`.
        default: gives the options before the words of the command line change them; None takes the defaults of `kind`.
        failed: errors that end with exit code 1, beside `JobError`. Other ValueErrors end with exit code 2.
        hint: what to do after Ctrl-C.
        log_level: the lowest level that is logged, unless --log-level names another.
    """
    try:
        options, common = parse(kind, arguments, default, program, description)
    except OptionError as error:
        return report_error(error, BAD_VALUE)
    except ModuleNotFoundError as error:  # of the check of a value
        return report_error(missing_package(error, inspect.getfile(kind)), FAILED)
    if common.print_config:
        from jobs.config_file import as_yaml

        print(as_yaml(options), end="")
        return COMPLETE
    start_logging(common.log_level or log_level)
    share_cores()
    gc.set_threshold(*IMPORT_THRESHOLD)
    try:
        with Status("starting"):
            summary = work(options)
    except KeyboardInterrupt:
        return interrupted(hint)
    except JobStopped as stopped:
        return interrupted(hint, 128 + stopped.signal)
    except OptionError as error:
        return report_error(error, BAD_VALUE)
    except JobError as error:
        if error.summary is not None:
            print(error.summary)
        return report_error(error, FAILED)
    except ModuleNotFoundError as error:
        return report_error(missing_package(error, inspect.getfile(kind)), FAILED)
    except failed as error:
        return report_error(error, FAILED)
    except ValueError as error:
        return report_error(error, BAD_VALUE)
    if isinstance(summary, str):
        print(summary)
        return COMPLETE
    return summary or COMPLETE


def parse(
    kind: type[T],
    arguments: Sequence[str] | None,
    default: Callable[[Sequence[str]], T] | None = None,
    program: str | None = None,
    description: str | None = None,
) -> tuple[T, CommonOptions]:
    """The options of a job and those of every job, from the file of --config and the command line.

    Ends the process with exit code 2 for a wrong option; raises `OptionError` for a wrong file.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    program = program or program_of(inspect.getfile(kind))
    path = _option_value("--config", words)
    if path is not None:
        from jobs.config_file import arguments_of

        with checked_options():
            words = arguments_of(path, kind, f"{program} --help", words) + words
    given: dict[str, Any] = {}
    whole = _with_common_options(kind)
    if default is not None:
        given["default"] = whole(default(words), CommonOptions())
    try:
        found = tyro.cli(
            whole,
            **given,
            args=words,
            description=description or inspect.getdoc(kind),
            prog=program,
            registry=VALUES,
        )
    except ValueError as error:
        raise OptionError(str(error)) from error
    except BrokenPipeError:  # the reader of the help has gone: `emu train --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(COMPLETE)
    return found.options, found.common


def program_of(file: str) -> str:
    """A job as the person has called it: `emu train` or `jobs/train_emu.py`."""
    file = Path(file).name
    is_subcommand = Path(sys.argv[0]).name in ("emu", "__main__.py")
    names = [name for name, command in COMMANDS.items() if f"{command.module}.py" == file]
    return f"emu {names[0]}" if is_subcommand and names else f"jobs/{file}"


def missing_package(error: ModuleNotFoundError, file: str) -> str:
    """What to install for the job in `file`, whose work imports a package that is not there."""
    extras = [c.extra for c in COMMANDS.values() if f"{c.module}.py" == Path(file).name]
    return f"{error}; install it with pip install 'emu-platform[{(extras or ['all'])[0]}]'"


def report_error(error: BaseException | str, exit_code: int) -> int:
    """The exit code, after a line with the error; its traceback goes to the log at level DEBUG."""
    if isinstance(error, BaseException):
        logging.getLogger(__name__).debug("failed", exc_info=error)
    print(f"error: {in_words(error)}", file=sys.stderr)
    return exit_code


def in_words(error: BaseException | str) -> str:
    """The message of an error; of an error of the operating system the file and the cause, without its number."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{os.fspath(error.filename)!r}: {error.strerror}"
    return str(error)


def interrupted(hint: str = RESUMES, exit_code: int = INTERRUPTED) -> int:
    """The exit code of a job that was stopped, after a line that says what to do next."""
    print(f"stopped; {hint}", file=sys.stderr)
    return exit_code


def start_logging(level: LogLevel = "info") -> None:
    """Log lines of `key=value` to standard error."""
    form = "%(asctime)s %(levelname)s %(name)s %(message)s"
    logging.basicConfig(level=level.upper(), format=form)
    logging.getLogger().setLevel(level.upper())


def share_cores() -> None:
    """Let threads of torch sleep, not spin for long, while they wait for work; call it before torch is imported.

    Threads that spin, OpenMP's default, keep cores from other processes: beside one that is busy, a step of the
    decoder's training takes ten times as long. Ray starts its workers with the same environment. The number of
    threads is left to OMP_NUM_THREADS: without it a process uses all cores, and Ray gives a worker its own.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # they spin for some microseconds first: a thread that sleeps at once costs half of the speed of quiet cores
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")


@functools.cache
def _with_common_options(kind: type) -> type:
    at_top = tyro.conf.arg(name="")
    fields = [
        ("options", Annotated[kind, at_top]),
        ("common", Annotated[CommonOptions, at_top], dataclasses.field(default=CommonOptions())),
    ]
    return dataclasses.make_dataclass(kind.__name__, fields, frozen=True)


def _option_value(name: str, words: Sequence[str]) -> str | None:
    """The last value of an option in the words of a command line."""
    found = None
    for number, word in enumerate(words):
        if word == name and number + 1 < len(words):
            found = words[number + 1]
        elif word.startswith(f"{name}="):
            found = word.partition("=")[2]
    return found
