"""Building datasets, whatever their corpus: the options, the run and its summary."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import Field

from jobs.choices import Choices
from jobs.cli import JobError, OptionError, run_job
from jobs.paths import job_path
from jobs.planning import Rates, planned

if TYPE_CHECKING:
    from pipelines.core.pipeline import Reasons
    from pipelines.core.stage_runner import Runner
    from pipelines.download.config import FetchConfig
    from schemas.manifest import Manifest, Tally

T = TypeVar("T")


@dataclass(frozen=True)
class BuildOptions(Choices):
    """How a dataset is built, whatever its corpus."""

    samples_per_shard: Annotated[
        int, Field(ge=1, le=100_000, description="a shard is held in memory; 1,000 is a good size")
    ] = 1000
    """Records per shard, 1 to 100000. A shard is the unit of work and of resuming.
    It is held in memory: 1000 records take about 100 MB."""
    limit: Annotated[int, Field(ge=1, le=10**12, description="None reads all records")] | None = (
        None
    )
    """Read at most this number of records, for a trial. None: all."""
    name: (
        Annotated[str, Field(pattern="^[a-z0-9_]+$", description="lower-case letters, digits, _")]
        | None
    ) = None
    """Name of the dataset, such as laion_coco; its shards and samples carry it. None: the name of the corpus.
    With it, a training on a mixture distinguishes datasets of the same corpus."""
    hash_inputs: bool = False
    """When a build is resumed, compare input files by content, not by size and modification time.
    Each start then reads all inputs once more, but copying or touching them has no effect.
    Use the same setting for all runs with one OUT."""
    media: str | None = None
    """Folder or address (s3://bucket/images) with media already on disk, used beside or instead of fetching.
    docs/data.md lists the file names for each corpus. The folder may move between runs; its files must not change."""
    engine: Literal["native", "img2dataset"] = "native"
    """native: the platform's own fetcher.
    img2dataset: its downloader; same shards and ledger, but no limits per host. Needs emu-platform[img2dataset]."""
    retry_failed: bool = False
    """In a finished dataset, fetch again the links that failed for a temporary reason.
    Such reasons are timeouts, 429, 5xx, lost connections, and files missing in --media.
    Images that were kept stay unchanged, byte for byte. The --fetch.* options may differ from the first run."""
    overwrite: bool = False
    """Start over: delete the dataset in OUT, whatever options or inputs made it.
    Only files written by a build are deleted. A folder with other files among the shards is refused."""
    export: Literal["parquet"] | None = None
    """parquet: also write the samples as tables in OUT/parquet/, which `datasets` opens with decoded images and times.
    The tables take as much disk space again. Image-text pairs can be opened without them."""
    allow_damaged_inputs: bool = False
    """End with exit code 0 even if input files are damaged and some of their records are lost."""
    fail_on_alarm: bool = False
    """End with an error instead of a warning if a filter or stage drops more than 90% of its input."""
    estimate: bool = False
    """Fetch nothing. Print the expected links, bytes, hours and disk space, from the inputs and --rates.*."""
    rates: Rates = field(default_factory=Rates)
    dry_run: bool = False
    """Fetch nothing. Read all records, apply every rule that precedes the fetch, and print the counts.
    The ledger is written to OUT.dry_run, which each dry run replaces."""
    runner: Literal["ray", "local"] = "ray"
    """ray: use the cluster that the job was submitted to, or start a local Ray.
    local: run in this process, without Ray."""
    num_cpus: Annotated[int, Field(ge=1, le=10_000, description="None takes all cores")] | None = (
        None
    )
    """CPU cores for the local Ray that the job starts. None: all cores."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.retry_failed and self.overwrite:
            raise ValueError(
                "retry_failed and overwrite exclude each other: keep the dataset, or start over"
            )
        if self.retry_failed and (self.estimate or self.dry_run):
            raise ValueError("estimate and dry_run are for a build, not for retry_failed")
        media = self.media_path
        if media is not None and "://" not in media and not Path(media).is_dir():
            raise ValueError(f"media is {self.media!r}, but there is no such folder")

    @property
    def media_path(self) -> str | None:
        """The media folder as an absolute path, or its address."""
        return None if self.media is None else job_path(self.media)


def build_job(
    kind: type[T], work: Callable[[T], str | int | None], arguments: Sequence[str] | None = None
) -> int:
    """`run_job` for a job that builds a dataset or adds to one."""

    def guarded(options: T) -> str | int | None:
        from pipelines.core.pipeline import EngineError, RefusedError

        try:
            return work(options)
        except RefusedError as error:
            raise OptionError(str(error)) from error
        except EngineError as error:
            raise JobError(str(error)) from error

    return run_job(kind, guarded, arguments)


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
    from pipelines.corpora.build import Build
    from pipelines.readers.files import refuse_overlap
    from pipelines.transforms.fetch_links import Prior, has_retryable, with_engine

    began, where = time.monotonic(), job_path(out)
    cut = {"samples_per_shard": options.samples_per_shard, "limit": options.limit}
    source = corpus.READER(inputs, **cut, base=str(Path.cwd()), hash_inputs=options.hash_inputs)
    refuse_overlap(source.patterns, source.base, where, options.name or corpus.CORPUS)
    handed = Build(
        source,
        fetch,
        media=options.media_path,
        prior=Prior(where) if options.retry_failed else None,
        name=options.name,
        extra=cut,
    )
    pipeline = corpus.pipeline(handed, rules)
    pipeline = with_engine(options.applied(pipeline), options.engine)
    noun = f"{corpus.REPORT.record_word}s"
    with ExitStack() as sessions:
        runner = build_runner(options.runner, options.num_cpus, sessions)
        if options.estimate or options.dry_run:
            rates = options.rates if options.estimate else None
            return planned(pipeline, noun, where, rates, runner)
        manifest = run(
            pipeline,
            where,
            runner,
            redo=has_retryable(pipeline.reasons) if options.retry_failed else None,
            overwrite=options.overwrite,
            fail_on_alarm=options.fail_on_alarm,
        )
        if options.export:
            export_parquet(where, runner)
    seconds, is_allowed = time.monotonic() - began, options.allow_damaged_inputs
    return build_summary(manifest, pipeline.reasons, noun, out, seconds, is_allowed)


def export_parquet(where: str, runner: "Runner") -> int:
    """Write the Parquet twins that are missing, and name them in the card; returns the number of shards done."""
    from pipelines.core.run import extend
    from pipelines.core.storage import Storage
    from pipelines.publish.card import refresh_card
    from pipelines.publish.export import ParquetExport

    manifest, num_done = extend(ParquetExport(), where, runner)
    refresh_card(Storage(where), manifest)
    return num_done


HINTS = {
    "media_missing": "check --media: docs/data.md says how files are named in it",
    "media_outside": "paths are relative to the folder given by --media",
    "host_not_found": "check the network and its name server; --retry-failed fetches them again",
    "dns_failed": "check the network and its name server; --retry-failed fetches them again",
    "connect_refused": "check that the host runs, and the port; --retry-failed fetches them again",
    "connect_timeout": "check the network and its proxy; --retry-failed fetches them again",
    "address_refused": "--fetch.allow-host HOST=IP:PORT permits a host of your own",
    "tls_untrusted": "--fetch.ca-file names further certificates",
    "rate_limited": "lower --fetch.per-host, and fetch them again with --retry-failed",
    "robots_refused": "the hosts forbid this use; --fetch.no-respect-robots-tag is your responsibility",
    "low_similarity": "--min-similarity sets the threshold",
    "no_image_wanted": "--min-similarity sets the threshold",
    "input_truncated": "the file is damaged: download it again, then --overwrite",
    "input_corrupt": "the file is damaged: download it again, then --overwrite",
    "tar_truncated": "the tar is damaged: download it again, then --overwrite",
    "tar_corrupt": "the tar is damaged: download it again, then --overwrite",
    "no_storyboard": "the ledger has the status that YouTube gave; LOGIN_REQUIRED is its bot check",
    "sheet_size_unexpected": "check that --level and --sheet-path name the same sheets",
    "unknown_form": "docs/instruct.md has the forms of records; --form sets one for all",
    "medium_lost": "the links of the ledger say which images and videos are missing; check --media",
    "malformed_json": "check that the inputs are files of this corpus",
    "missing_field": "check that the inputs are files of this corpus",
}
"""What to do about the commonest reasons, where a build kept nothing."""


NUM_NAMED = 3
"""Damaged inputs that an error names; the ledger has all."""


def nothing_kept(manifest: "Manifest", reasons: "Reasons", noun: str, out: str) -> str:
    """Why a dataset is empty: the commonest reason, of links where any were to be fetched, with one and a hint."""
    from pipelines.core.storage import Storage
    from pipelines.publish.lookup import first_link
    from schemas.validation import shown

    records, links = manifest.records, manifest.links
    if not records.total:
        return f"no {noun} were found in the inputs, so the dataset is empty; check the inputs"
    tally, name = (links, "links") if links.total and not links.kept else (records, noun)
    damaged = {
        word: n
        for word, n in records.dropped.items()
        if word in reasons and reasons[word].is_damage
    }
    if damaged:
        tally, name = records, noun
    reason, count = max((damaged or tally.dropped).items(), key=lambda item: item[1])
    share = f"all {count:,}" if count == tally.total else f"{count:,} of {tally.total:,}"
    hint = HINTS.get(reason, "the ledger has a row for each")
    link = first_link(Storage(job_path(out)), manifest, reason) if tally is links else None
    example = f", such as {shown(link)}" if link else ""
    return (
        f"no {noun} were kept, so the dataset is empty; {share} {name}: {reason}{example} ({hint})"
    )


def build_summary(
    manifest: "Manifest",
    reasons: "Reasons",
    noun: str,
    out: str,
    seconds: float,
    allow_damaged_inputs: bool | None = None,
) -> str:
    """What was built, in words for a terminal; `noun` names the records.

    `allow_damaged_inputs` is the option of that name; None where the job has none.

    Raises:
        JobError: nothing was kept; with the commonest reason. Or records of damaged inputs are lost.
    """
    from pipelines.publish.report import REPORT_FILE, size
    from schemas.shard import LEDGERS, SHARDS

    num_bytes = sum(shard.num_bytes for shard in manifest.shards)
    num_adopted = sum(shard.path is not None for shard in manifest.shards)
    num_built = len(manifest.shards) - num_adopted
    tars = [f"{num_adopted:,} left where they are"] if num_adopted else []
    tars += [f"{num_built:,} in {out}/{SHARDS}"] if num_built or not tars else []
    lines = [
        "",
        *_tally(noun, manifest.records, reasons),
        "",
        *_tally("links", manifest.links, reasons),
        "",
        *(f"ALARM      {alarm}" for alarm in manifest.alarms),
        f"shards     {', '.join(tars)} ({size(num_bytes)})",
        f"ledger     {out}/{LEDGERS}",
        f"report     {out}/{REPORT_FILE}",
        f"time       {seconds:.1f} s",
    ]
    summary = "\n".join(lines)
    if manifest.records.kept == 0:
        raise JobError(nothing_kept(manifest, reasons, noun, out), summary)
    if not allow_damaged_inputs:
        way_on = (
            "" if allow_damaged_inputs is None else ", or accept the loss: --allow-damaged-inputs"
        )
        _refuse_damage(manifest, reasons, noun, out, summary, way_on)
    return summary


def _refuse_damage(
    manifest: "Manifest", reasons: "Reasons", noun: str, out: str, summary: str, way_on: str
) -> None:
    from pipelines.core.storage import Storage
    from pipelines.publish.lookup import damaged_inputs

    found = damaged_inputs(Storage(job_path(out)), manifest, reasons, NUM_NAMED + 1)
    if found:
        named = found[:NUM_NAMED] + ["and more"] * (len(found) > NUM_NAMED)
        raise JobError(
            f"inputs are damaged, and some of their {noun} are lost: {', '.join(named)}. What could be read is "
            f"published. Replace the files and build again with --overwrite{way_on}",
            summary,
        )


def build_runner(
    name: Literal["ray", "local"], num_cpus: int | None, sessions: ExitStack
) -> "Runner":
    """The runner of that name; `sessions` ends the Ray that it starts when it is first used."""
    if name == "local":
        from pipelines.core.stage_runner import LocalRunner

        return LocalRunner()
    from jobs.cluster import RunnerOnDemand

    return RunnerOnDemand(sessions, num_cpus)


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
