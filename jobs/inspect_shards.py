#!/usr/bin/env python3
"""Prints the counts of a dataset and a sample, and verifies its files against the manifest."""

import hashlib
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow.compute as pc
import tyro
from tqdm import tqdm

from jobs.cli import BAD_VALUE, COMPLETE, FAILED, report_error, run_job
from jobs.paths import job_path
from pipelines.core.storage import Storage, read_parquet
from pipelines.publish.report import size
from pipelines.publish.shards import read_sample
from schemas.manifest import MANIFEST_FILE, Manifest, ShardEntry, Tally, manifest_from_json
from schemas.sample import Sample
from schemas.shard import INDEXES, LEDGERS, SHARDS
from schemas.tables import INDEX, KEPT, LEDGER
from schemas.validation import SchemaError

_CHUNK_BYTES = 1 << 22
_SHOWN_CHARACTERS = 100


@dataclass(frozen=True)
class InspectShards:
    """Prints the counts of a dataset and one of its samples, and verifies every shard against the manifest.

    The exit code is 1 if a file is missing or differs from the manifest.
    """

    dataset: tyro.conf.Positional[str]
    """Folder or address of the dataset: the one that contains its manifest.json."""
    sample: str | None = None
    """Key of a sample to show. None shows the first."""
    verify: bool = True
    """Read every tar, compare its hash, and decode each sample as a reader does."""


def counts(manifest: Manifest) -> Iterator[str]:
    """The counts of a dataset, one per line."""
    num_bytes = sum(s.num_bytes for s in manifest.shards)
    yield f"corpus     {manifest.corpus}"
    yield f"shards     {len(manifest.shards):,} ({size(num_bytes)})"
    yield f"samples    {manifest.num_samples:,} with {manifest.num_images:,} images"
    for name, tally in (("records", manifest.records), ("links", manifest.links)):
        yield from _tally(name, tally)
    for alarm in manifest.alarms:
        yield f"ALARM      {alarm}"


def find_sample(storage: Storage, manifest: Manifest, key: str | None) -> Sample | None:
    """The sample with a key, or the first sample; None if there is no such sample."""
    for shard in manifest.shards:
        index = read_parquet(storage, f"{INDEXES}/{shard.name}.parquet", INDEX, ("key", "members"))
        chosen = index if key is None else index.filter(pc.equal(index["key"], key))
        if chosen.num_rows:
            row = chosen.slice(0, 1).to_pylist()[0]
            with storage.open(f"{SHARDS}/{shard.name}.tar") as tar:
                return read_sample(tar, row, shard.name)
    return None


def problems(storage: Storage, shard: ShardEntry) -> Iterator[str]:
    """What is wrong with the files of a shard, one sentence each."""
    digest = hashlib.sha256()
    try:
        with storage.open(f"{SHARDS}/{shard.name}.tar") as tar:
            while chunk := tar.read(_CHUNK_BYTES):
                digest.update(chunk)
        if digest.hexdigest() != shard.sha256:
            yield f"{shard.name}: the tar's sha256 is {digest.hexdigest()}, not {shard.sha256}"
            return
        index = read_parquet(storage, f"{INDEXES}/{shard.name}.parquet", INDEX)
        ledger = read_parquet(storage, f"{LEDGERS}/{shard.name}.parquet", LEDGER)
        yield from _index_problems(storage, shard, index.to_pylist())
        is_kept = pc.and_(pc.is_null(ledger["slot"]), pc.equal(ledger["status"], KEPT))
        kept = ledger.filter(is_kept)["key"].to_pylist()
        if Counter(kept) != Counter(index["key"].to_pylist()):
            yield f"{shard.name}: the kept records of the ledger are not the rows of the index"
    except (SchemaError, OSError) as error:
        yield f"{shard.name}: {error}"


def inspect_shards(options: InspectShards) -> int:
    """Print and verify a dataset; returns 0 if it is complete, 1 if not, 2 if there is none."""
    try:
        storage = Storage(job_path(options.dataset))
        manifest = manifest_from_json(storage.read_bytes(MANIFEST_FILE).decode())
    except (ValueError, OSError) as error:
        return report_error(f"no complete dataset in '{options.dataset}': {error}", BAD_VALUE)
    print("\n".join(counts(manifest)))
    try:
        sample = find_sample(storage, manifest, options.sample)
    except (OSError, SchemaError) as error:
        report_error(f"cannot read a sample: {error}", FAILED)
        return (options.verify and _verified(storage, manifest)) or FAILED
    if sample is None and options.sample is not None:
        return report_error(f"no sample '{options.sample}' in '{options.dataset}'", BAD_VALUE)
    if sample is not None:
        print("\n" + "\n".join(_described(sample)))
    return _verified(storage, manifest) if options.verify else COMPLETE


def _verified(storage: Storage, manifest: Manifest) -> int:
    shards = tqdm(manifest.shards, desc="verify", unit="shard")
    found = [problem for shard in shards for problem in problems(storage, shard)]
    complete = "1 shard is" if len(manifest.shards) == 1 else f"{len(manifest.shards):,} shards are"
    print("\n" + ("\n".join(found) or f"verified   {complete} complete"))
    return FAILED if found else COMPLETE


def _index_problems(storage: Storage, shard: ShardEntry, rows: list[dict]) -> Iterator[str]:
    if len(rows) != shard.num_samples:
        yield f"{shard.name}: {len(rows)} rows in the index, {shard.num_samples} samples"
    with storage.open(f"{SHARDS}/{shard.name}.tar") as tar:
        for row in rows:
            sample = read_sample(tar, row, shard.name)
            hashes = [hashlib.sha256(s.image or b"").hexdigest() for s in sample.images]
            if hashes != row["image_sha256"]:
                yield f"{shard.name}: images of '{row['key']}' differ from the index"


def _described(sample: Sample) -> Iterator[str]:
    yield f"sample     {sample.key}"
    for segment in sample.segments:
        if segment.kind == "image":
            num_bytes = len(segment.image or b"")
            yield f"  image    {segment.format}, {segment.width} x {segment.height}, {size(num_bytes)}"
        else:
            yield f"  text     {(segment.text or '')[:_SHOWN_CHARACTERS]!r}"


def _tally(name: str, tally: Tally) -> Iterator[str]:
    yield f"{name:<10} {tally.total:,}, kept {tally.kept:,}"
    for reason, count in sorted(tally.dropped.items(), key=lambda item: (-item[1], item[0])):
        yield f"  dropped  {count:>10,}  {reason}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code (see `jobs.cli`)."""
    return run_job(InspectShards, inspect_shards, arguments, log_level="warning")


if __name__ == "__main__":
    sys.exit(main())
