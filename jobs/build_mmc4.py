#!/usr/bin/env python3
"""Builds an MMC4 dataset: documents with links in, webdataset shards with images out."""

import inspect
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro

from jobs.cli import BAD_VALUE, COMPLETE, FAILED, complain, stopped
from jobs.cluster import RunnerOnDemand, start_logging
from jobs.paths import job_path
from pipelines.core.errors import EngineError
from pipelines.core.run import run
from pipelines.core.stage_runner import LocalRunner
from pipelines.corpora.mmc4.rules import (
    CORPUS,
    LINK_REASONS,
    REASONS,
    MatchRules,
    Mmc4Config,
    mmc4_pipeline,
)
from pipelines.download.fetcher import FetchConfig
from pipelines.images.normalise import ImageConfig
from pipelines.publish.report import REPORT_FILE, size
from pipelines.readers.files import InputError, refuse_overlap
from pipelines.readers.jsonl import LineSource
from pipelines.transforms.fetch_links import Prior, has_retryable
from schemas.manifest import Manifest, Tally
from schemas.shard import LEDGERS, SHARDS
from schemas.validation import SchemaError

MAX_CPUS = 10_000
"""Ray starts a process for each at once."""


@dataclass(frozen=True)
class BuildMmc4:
    """Builds an MMC4 dataset: fetches the images that the documents link to, and writes shards.

    A first try:
        jobs/build_mmc4.py --documents 'docs_shard_*_v2.jsonl.zip' --out mmc4 --limit 200

    Every document and every link ends up in OUT/ledger, kept or with the reason why not; OUT/report.html
    shows what came of it. A run that was stopped goes on when it is started again with the same options.
    """

    documents: tuple[str, ...]
    """The document files as MMC4 distributes them: .jsonl, .jsonl.gz or .jsonl.zip.
    Paths, quoted patterns or addresses (s3://bucket/docs_*.jsonl.zip); several may follow.
    A pattern may not reach into OUT."""
    out: str
    """Folder or address of the dataset. Where it holds an unfinished build of the same options, that is finished."""
    samples_per_shard: int = 1000
    """Documents in a shard: the unit of work and of restart, held in memory. 1000 have some 100 MB; at most 100000."""
    side: int = 256
    """Pixels, 8 to 16384, of the shorter side to which larger images are brought. Smaller ones are never enlarged."""
    min_similarity: float = 0.32
    """CLIP similarity (-1 to 1) to its sentence below which an image is left out.
    0.32 is the paper's threshold; OpenFlamingo's script uses 0.24, which keeps far more."""
    max_images: int | None = 256
    """Images fetched for one document at most: the most similar ones. None takes all.
    Real documents have a handful; the default only bounds what a freak of a page can cost."""
    limit: int | None = None
    """Documents read at most, for a trial. None reads all."""
    hash_inputs: bool = False
    """Recognise the documents by their contents, not by size and modification time, when a build is resumed.
    Reads them once more at each start; a copy or a `touch` changes nothing then. Keep it the same for one OUT."""
    retry_failed: bool = False
    """Fetch again, in a finished dataset, what failed for a reason that may have passed.
    That is timeouts, 429, 5xx, lost connections. What was kept stays, byte for byte.
    --fetch.* may differ from the first run."""
    overwrite: bool = False
    """Begin anew: delete the dataset in OUT, whatever options or inputs made it.
    Only what a build wrote is deleted; a folder that holds other files among the shards is refused."""
    fail_on_alarm: bool = False
    """End with an error where a rule drops more than 90% of what it sees, instead of a warning."""
    runner: Literal["ray", "local"] = "ray"
    """ray: on the cluster that the job was submitted to, else on a Ray of its own.
    local: in this process."""
    num_cpus: int | None = None
    """Cores for a Ray that the job starts itself. None takes all."""
    fetch: FetchConfig = field(default_factory=FetchConfig)

    def __post_init__(self) -> None:
        self.source()
        self.config()
        if self.num_cpus is not None and not 1 <= self.num_cpus <= MAX_CPUS:
            raise ValueError(
                f"num_cpus={self.num_cpus}: at least 1, at most {MAX_CPUS:,}; leave it out for all cores"
            )
        if self.retry_failed and self.overwrite:
            raise ValueError("retry_failed and overwrite exclude each other: keep, or begin anew")
        job_path(self.out)

    def source(self) -> LineSource:
        """The documents."""
        return LineSource(
            self.documents,
            self.samples_per_shard,
            self.limit,
            str(Path.cwd()),
            hash_inputs=self.hash_inputs,
        )

    def config(self) -> Mmc4Config:
        """The rules."""
        rules = MatchRules(self.min_similarity, self.max_images)
        return Mmc4Config(rules, ImageConfig(side=self.side))


def build(options: BuildMmc4) -> Manifest:
    """Build, finish or retry the dataset that the options describe."""
    out, source = job_path(options.out), options.source()
    refuse_overlap(source.patterns, source.base, out, CORPUS)
    pipeline = mmc4_pipeline(
        source,
        options.config(),
        options.fetch,
        extra={"samples_per_shard": options.samples_per_shard, "limit": options.limit},
        prior=Prior(out) if options.retry_failed else None,
    )
    with ExitStack() as sessions:
        on_ray = RunnerOnDemand(sessions, options.num_cpus)
        return run(
            pipeline,
            out,
            on_ray if options.runner == "ray" else LocalRunner(),
            redo=has_retryable(LINK_REASONS) if options.retry_failed else None,
            overwrite=options.overwrite,
            fail_on_alarm=options.fail_on_alarm,
        )


def summary(manifest: Manifest, out: str, seconds: float) -> str:
    """What was built, in words for a terminal."""
    num_bytes = sum(s.num_bytes for s in manifest.shards)
    lines = [
        "",
        *_tally("documents", manifest.records),
        "",
        *_tally("links", manifest.links),
        "",
        *(f"ALARM      {alarm}" for alarm in manifest.alarms),
        f"shards     {len(manifest.shards):,} in {out}/{SHARDS} ({size(num_bytes)})",
        f"ledger     {out}/{LEDGERS}",
        f"report     {out}/{REPORT_FILE}",
        f"time       {seconds:.1f} s",
    ]
    return "\n".join(lines)


def main(args: Sequence[str] | None = None) -> int:
    """Run the job; 0 if the dataset is complete, 1 if it is not, 2 if an option is wrong, 130 on Ctrl-C."""
    options = tyro.cli(BuildMmc4, args=args, description=inspect.getdoc(BuildMmc4))
    start_logging()
    began = time.monotonic()
    try:
        manifest = build(options)
    except KeyboardInterrupt:
        return stopped()
    except InputError as error:
        return complain(error, BAD_VALUE)
    except (EngineError, SchemaError, OSError) as error:
        return complain(error, FAILED)
    print(summary(manifest, options.out, time.monotonic() - began))
    return COMPLETE


def _tally(word: str, tally: Tally) -> list[str]:
    share = f" ({100 * tally.kept / tally.total:.1f} %)" if tally.total else ""
    return [
        f"{word:<10} {tally.total:>10,}",
        f"  kept     {tally.kept:>10,}{share}",
        *_drops(tally.dropped),
    ]


def _drops(dropped: Mapping[str, int]) -> list[str]:
    ranked = sorted(dropped.items(), key=lambda item: (-item[1], item[0]))
    return [f"  {'dropped':<8} {n:>10,}  {word:<24} {REASONS.get(word, '')}" for word, n in ranked]


if __name__ == "__main__":
    sys.exit(main())
