"""What every job does alike: parse a configuration, do the work, print a summary, end with an exit code.

| exit code | meaning                                                    |
|-----------|------------------------------------------------------------|
| 0         | complete                                                   |
| 1         | failed; what is done is kept, and the same command resumes |
| 2         | an option or an input is wrong; nothing was done           |
| 130       | stopped by Ctrl-C (128 + SIGINT, as shells count)          |

What only builds of datasets need is imported when one begins, so that every job may import this module.
Paths and addresses are taken as a person gives them on a command line; see `job_path`.
"""

import inspect
import logging
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import fsspec
import tyro
from pydantic import Field

from schemas.validation import Checked, SchemaError

if TYPE_CHECKING:
    from pipelines.core.pipeline import Reasons
    from pipelines.download.config import FetchConfig
    from schemas.manifest import Manifest, Tally


T = TypeVar("T")

COMPLETE, FAILED, BAD_VALUE, INTERRUPTED = 0, 1, 2, 130
RESUMES = "the same command resumes where it stopped"


@dataclass(frozen=True)
class BuildOptions(Checked):
    """How a dataset is built, whatever its corpus."""

    samples_per_shard: Annotated[
        int, Field(ge=1, le=100_000, description="a shard is held in memory; 1,000 is a good size")
    ] = 1000
    """Records per shard, 1 to 100000: the unit of work and of resuming, held in memory (1000 take about 100 MB)."""
    limit: Annotated[int, Field(ge=1, le=10**12, description="None reads all records")] | None = (
        None
    )
    """Records to read at most, for a trial. None reads all."""
    hash_inputs: bool = False
    """Recognise the input files by their contents, not by size and modification time, when a build is resumed.
    Reads them once more at each start; a copy or a `touch` then changes nothing. Keep it the same for one OUT."""
    retry_failed: bool = False
    """Fetch again, in a finished dataset, the links that failed for a reason that may have passed:
    timeouts, 429, 5xx, lost connections. What was kept stays, byte for byte.
    --fetch.* may differ from the first run."""
    overwrite: bool = False
    """Start over: delete the dataset in OUT, whatever options or inputs made it.
    Only what a build wrote is deleted; a folder that holds other files among the shards is refused."""
    fail_on_alarm: bool = False
    """End with an error, instead of a warning, where a rule drops more than 90% of what it sees."""
    runner: Literal["ray", "local"] = "ray"
    """ray: on the cluster that the job was submitted to, else on a local Ray that the job starts.
    local: in this process."""
    num_cpus: Annotated[int, Field(ge=1, le=10_000, description="None takes all cores")] | None = (
        None
    )
    """Cores for a Ray that the job starts itself. None takes all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.retry_failed and self.overwrite:
            raise ValueError(
                "retry_failed and overwrite exclude each other: keep the dataset, or start over"
            )


class OptionError(ValueError):
    """A wrong option or input, found before any work: exit code 2."""


@contextmanager
def checked_options() -> Iterator[None]:
    """Turns ValueError and OSError inside the block, which looks at options and inputs, into `OptionError`."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise OptionError(str(error)) from error


def run_job(
    kind: type[T],
    work: Callable[[T], str],
    arguments: Sequence[str] | None,
    *,
    default: T | None = None,
    failed: tuple[type[Exception], ...] = (SchemaError, OSError),
    bad_value: tuple[type[Exception], ...] = (ValueError,),
    hint: str = RESUMES,
    log_level: int = logging.INFO,
) -> int:
    """Parse `kind` from the command line, print what `work` returns for it, and return the exit code.

    Args:
        kind: the dataclass of the options; its docstring is the help.
        work: does the job; returns its summary.
        arguments: of the command line; None takes those of the process.
        default: the options that the command line changes; None takes the defaults of `kind`.
        failed: errors that end with exit code 1; looked at before `bad_value`, after `OptionError`.
        bad_value: errors of options and inputs, exit code 2.
        hint: what to do after Ctrl-C.
        log_level: the lowest level that is logged.
    """
    options = parse(kind, arguments, default)
    start_logging(log_level)
    try:
        summary = work(options)
    except KeyboardInterrupt:
        return interrupted(hint)
    except OptionError as error:
        return report_error(error, BAD_VALUE)
    except failed as error:
        return report_error(error, FAILED)
    except bad_value as error:
        return report_error(error, BAD_VALUE)
    print(summary)
    return COMPLETE


def build_job(
    kind: type[T], work: Callable[[T], str], arguments: Sequence[str] | None = None
) -> int:
    """`run_job` for a job that builds a dataset."""
    from pipelines.core.pipeline import EngineError

    return run_job(kind, work, arguments, failed=(EngineError, SchemaError, OSError))


def parse(kind: type[T], arguments: Sequence[str] | None, default: T | None = None) -> T:
    """The options on the command line; ends the process with exit code 2 where one is wrong."""
    given: dict[str, Any] = {} if default is None else {"default": default}
    try:
        return tyro.cli(
            kind,
            **given,
            args=arguments,
            description=inspect.getdoc(kind),
            prog=f"jobs/{Path(inspect.getfile(kind)).name}",
        )
    except ValueError as error:
        sys.exit(report_error(error, BAD_VALUE))


def build(
    corpus: Any,
    inputs: Sequence[str],
    out: str,
    rules: Any,
    fetch: "FetchConfig",
    options: BuildOptions,
) -> str:
    """Build, resume or retry a dataset; returns the summary for a terminal.

    Args:
        corpus: a module of `pipelines.corpora.CORPORA`.
        inputs: paths, patterns or addresses of its input files.
        out: folder or address of the dataset.
        rules: its `Rules`.
        fetch: how to fetch.
        options: how to build.
    """
    from pipelines.core.run import run
    from pipelines.readers.files import refuse_overlap
    from pipelines.transforms.fetch_links import Prior, has_retryable

    began, where = time.monotonic(), job_path(out)
    cut = {"samples_per_shard": options.samples_per_shard, "limit": options.limit}
    source = corpus.READER(inputs, **cut, base=str(Path.cwd()), hash_inputs=options.hash_inputs)
    refuse_overlap(source.patterns, source.base, where, corpus.CORPUS)
    prior = Prior(where) if options.retry_failed else None
    pipeline = corpus.pipeline(source, rules, fetch, extra=cut, prior=prior)
    with ExitStack() as sessions:
        manifest = run(
            pipeline,
            where,
            _runner(options, sessions),
            redo=has_retryable(pipeline.reasons) if options.retry_failed else None,
            overwrite=options.overwrite,
            fail_on_alarm=options.fail_on_alarm,
        )
    noun = f"{corpus.REPORT.record_word}s"
    return build_summary(manifest, pipeline.reasons, noun, out, time.monotonic() - began)


def build_summary(
    manifest: "Manifest", reasons: "Reasons", noun: str, out: str, seconds: float
) -> str:
    """What was built, in words for a terminal; `noun` names the records."""
    from pipelines.publish.report import REPORT_FILE, size
    from schemas.shard import LEDGERS, SHARDS

    num_bytes = sum(shard.num_bytes for shard in manifest.shards)
    lines = [
        "",
        *_tally(noun, manifest.records, reasons),
        "",
        *_tally("links", manifest.links, reasons),
        "",
        *(f"ALARM      {alarm}" for alarm in manifest.alarms),
        f"shards     {len(manifest.shards):,} in {out}/{SHARDS} ({size(num_bytes)})",
        f"ledger     {out}/{LEDGERS}",
        f"report     {out}/{REPORT_FILE}",
        f"time       {seconds:.1f} s",
    ]
    return "\n".join(lines)


def report_error(error: BaseException | str, exit_code: int) -> int:
    """The exit code, after a line with the error; its traceback goes to the log at level DEBUG."""
    if isinstance(error, BaseException):
        logging.getLogger(__name__).debug("failed", exc_info=error)
    print(f"error: {error}", file=sys.stderr)
    return exit_code


def interrupted(hint: str = RESUMES) -> int:
    """The exit code of a job stopped by Ctrl-C, after a line that says what to do next."""
    print(f"stopped; {hint}", file=sys.stderr)
    return INTERRUPTED


def start_logging(level: int = logging.INFO) -> None:
    """Log lines of `key=value` to standard error."""
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s %(message)s")


def _runner(options: BuildOptions, sessions: ExitStack) -> Any:
    if options.runner == "local":
        from pipelines.core.stage_runner import LocalRunner

        return LocalRunner()
    from jobs.cluster import RunnerOnDemand

    return RunnerOnDemand(sessions, options.num_cpus)


def _tally(noun: str, tally: "Tally", reasons: "Reasons") -> list[str]:
    share = f" ({100 * tally.kept / tally.total:.1f} %)" if tally.total else ""
    return [
        f"{noun:<10} {tally.total:>10,}",
        f"  kept     {tally.kept:>10,}{share}",
        *_drops(tally.dropped, reasons),
    ]


def _drops(dropped: Mapping[str, int], reasons: "Reasons") -> list[str]:
    ranked = sorted(dropped.items(), key=lambda item: (-item[1], item[0]))
    meanings = {word: reason.meaning for word, reason in reasons.items()}
    return [f"  {'dropped':<8} {n:>10,}  {word:<24} {meanings.get(word, '')}" for word, n in ranked]


JOB_FOLDER = "working_dir_files"
"""A component of the path to which Ray unpacks the working directory of a submitted job."""


def job_path(text: str) -> str:
    """A path made absolute; an address unchanged.

    Raises ValueError for an empty path, for an address of a file system that is not available here, and for a
    relative path in a submitted job: it would lead into a copy of the working directory, which Ray deletes.
    """
    if not text:
        raise ValueError("a path is empty (''); name a folder, '.' for this one")
    if re.search("[\ud800-\udfff]", text):
        raise ValueError(f"the path {text!r} is not UTF-8; choose another, or rename the folder")
    if "://" in text:
        _check_scheme(text)
        return text
    if Path(text).expanduser().is_absolute():
        return str(Path(text).expanduser())
    if JOB_FOLDER in Path.cwd().parts:
        raise ValueError(
            f"{text!r} is relative, but a submitted job runs in a copy of its working directory that "
            "Ray deletes; give an absolute path or an address"
        )
    return str(Path(text).absolute())


def folder_path(text: str) -> str:
    """The path of a file or folder of a model or a run, made absolute.

    Raises ValueError as `job_path` and `refuse_address` do.
    """
    refuse_address(text)
    return job_path(text)


def refuse_address(text: str) -> None:
    """Raise ValueError for an address: weights are memory-mapped and checkpoints renamed, which needs a file system."""
    if "://" in text:
        raise ValueError(
            f"{text!r} is an address, but models and runs must be on a file system: give a folder that every worker "
            "sees (only data may be at an address)"
        )


def weights_path(text: str | None) -> str | None:
    """The path of weights made absolute; the tag of pretrained weights, which is not a path, unchanged."""
    is_tag = text is None or ("/" not in text and "." not in text and not Path(text).exists())
    return text if is_tag else folder_path(str(text))


def _check_scheme(address: str) -> None:
    scheme = address.partition("://")[0].rpartition("::")[2]
    try:
        fsspec.get_filesystem_class(scheme)
    except (ImportError, ValueError) as error:
        raise ValueError(
            f"{address!r} cannot be used here: {error} (in this environment and on every worker)"
        ) from error
