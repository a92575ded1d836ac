#!/usr/bin/env python3
"""Prints the counts of a dataset and a few samples, shows it as a page, looks up a key, verifies its files."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from pydantic import Field

from jobs.cli import BAD_VALUE, COMPLETE, FAILED, report_error, run_job
from jobs.paths import job_path
from pipelines.corpora import corpus_of
from schemas.manifest import MANIFEST_FILE, Manifest, Tally, manifest_from_json
from schemas.validation import Checked, SchemaError

if TYPE_CHECKING:
    from pipelines.core.pipeline import Reasons
    from pipelines.core.storage import Storage


@dataclass(frozen=True)
class InspectShards(Checked):
    """Prints the counts of a dataset and a few of its samples.

    Write a page with many samples; print everything about one record; check every file:
        emu inspect mmc4 --html mmc4.html
        emu inspect mmc4 --key docs_shard_0_v2-0000012
        emu inspect mmc4 --lint

    The exit code is 1 if a file that was read is missing or differs from the manifest.
    """

    dataset: tyro.conf.Positional[str]
    """Folder or address of the dataset: the one that contains manifest.json."""
    num_samples: Annotated[int, Field(ge=0, le=1000, description="samples")] = 3
    """Number of samples to print, evenly spaced over the dataset."""
    key: str | None = None
    """Print everything that ledger, index and tar hold about this record instead, whether kept or dropped."""
    html: Path | None = None
    """Write a self-contained page to this file: counts, reasons, histograms, and samples with their images."""
    num_cards: Annotated[int, Field(ge=0, le=1000, description="samples")] = 24
    """Number of samples on the page of --html."""
    lint: bool = False
    """Read every file: compare hashes, counts and schemas, decode each image, and list all problems."""

    def __post_init__(self) -> None:
        super().__post_init__()
        page = None if self.html is None else self.html.expanduser()
        if page is not None and (page.is_dir() or not page.parent.is_dir()):
            raise ValueError(f"html is '{page}', give a file in a folder that exists")


def inspect_shards(options: InspectShards) -> int:
    """Print, write and verify what was asked for; returns the exit code, 2 if there is no such dataset or key."""
    from pipelines.core.storage import Storage

    try:
        storage = Storage(job_path(options.dataset))
        manifest = manifest_from_json(storage.read_bytes(MANIFEST_FILE).decode())
    except FileNotFoundError:
        advice = (
            f"it has no {MANIFEST_FILE}; check the path, or run the build again with the same --out"
        )
        return report_error(f"no complete dataset in '{options.dataset}': {advice}", BAD_VALUE)
    except (ValueError, OSError) as error:
        return report_error(f"no complete dataset in '{options.dataset}': {error}", BAD_VALUE)
    try:
        if options.key is not None:
            return print_key(storage, manifest, options.key)
        status = print_dataset(storage, manifest, options.num_samples)
        if options.html is not None:
            write_page(storage, manifest, options.html, options.num_cards)
    except (OSError, SchemaError) as error:
        status = report_error(f"cannot read a sample: {error}", FAILED)
    return print_problems(storage, manifest) or status if options.lint else status


def print_key(storage: "Storage", manifest: Manifest, key: str) -> int:
    """Print what is known of a record."""
    from pipelines.publish.lookup import find_key, lines_of

    found = find_key(storage, manifest, key)
    if found is None:
        return report_error(f"no record '{key}' in '{storage.root}'", BAD_VALUE)
    print("\n".join(lines_of(found, reasons_of(manifest))))
    return COMPLETE


def print_dataset(storage: "Storage", manifest: Manifest, num_samples: int) -> int:
    """Print counts, drops, sizes and a few samples."""
    from pipelines.publish.cards import pick_samples
    from pipelines.publish.lookup import summary_of

    print("\n".join(counts(manifest)))
    for sample in pick_samples(storage, manifest, num_samples):
        print("\n" + "\n".join(summary_of(sample)))
    return COMPLETE


def write_page(storage: "Storage", manifest: Manifest, path: Path, num_cards: int) -> None:
    """Write the report of a dataset of any corpus."""
    from dataclasses import replace

    from pipelines.publish.report import Report

    module = corpus_of(manifest)
    report = module.REPORT if module else Report(f"Dataset {manifest.corpus}", "sample")
    page = replace(report, num_cards=num_cards)
    html = page.render(storage, manifest, reasons_of(manifest))
    path.expanduser().write_text(html, "utf-8", errors="replace")
    print(f"\npage       {path}")


def print_problems(storage: "Storage", manifest: Manifest) -> int:
    """Print what is wrong with the files; returns 0 if nothing is."""
    from tqdm import tqdm

    from pipelines.publish.lint import Lint

    lint = Lint(storage, manifest)
    found = list(lint.files())
    for shard in tqdm(manifest.shards, desc="lint", unit="shard"):
        found += lint.shard(shard)
    found += lint.finish()
    complete = "1 shard is" if len(manifest.shards) == 1 else f"{len(manifest.shards):,} shards are"
    print("\n" + ("\n".join(found) or f"verified   {complete} complete"))
    return FAILED if found else COMPLETE


def counts(manifest: Manifest) -> Iterator[str]:
    """The counts of a dataset, one per line."""
    from pipelines.publish.report import size

    num_bytes = sum(s.num_bytes for s in manifest.shards)
    yield f"corpus     {manifest.corpus}"
    yield f"shards     {len(manifest.shards):,} ({size(num_bytes)})"
    yield f"samples    {manifest.num_samples:,} with {manifest.num_images:,} images"
    if manifest.num_samples:
        yield f"  mean     {size(num_bytes // manifest.num_samples)} per sample"
    for name, tally in (("records", manifest.records), ("links", manifest.links)):
        yield from _tally(name, tally)
    yield f"features   {_features(manifest)}"
    for alarm in manifest.alarms:
        yield f"ALARM      {alarm}"


def _features(manifest: Manifest) -> str:
    found = manifest.features
    if found is None:
        return "none"
    weights, patches = str(found.get("weights_sha256")), found.get("patches", "of an old release")
    return f"patches {patches}, of '{found.get('encoder')}' (weights {weights[:12]}…)"


def reasons_of(manifest: Manifest) -> "Reasons":
    """What the reasons of a dataset mean; nothing where its corpus is none that this release builds."""
    from pipelines.corpora.build import Build

    corpus = corpus_of(manifest)
    if corpus is None:
        return {}
    return corpus.pipeline(Build(corpus.READER(["x"]), media="x"), corpus.Rules()).reasons


def _tally(name: str, tally: Tally) -> Iterator[str]:
    yield f"{name:<10} {tally.total:,}, kept {tally.kept:,}"
    for reason, count in sorted(tally.dropped.items(), key=lambda item: (-item[1], item[0])):
        yield f"  dropped  {count:>10,}  {reason}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code (see `jobs.cli`)."""
    return run_job(InspectShards, inspect_shards, arguments, log_level="warning")


if __name__ == "__main__":
    sys.exit(main())
