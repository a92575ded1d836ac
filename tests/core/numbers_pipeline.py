"""A small real pipeline over numbers, with links, drops, filters and a constructed transform.

Run as a script it is the whole job that the tests kill: `numbers_pipeline.py OUT [options]`.
"""

import argparse
import hashlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.core.pipeline import (
    Construct,
    Filter,
    Pipeline,
    Reason,
    Resources,
    ShardPlan,
    Stage,
    shard_of,
)
from pipelines.core.run import run
from pipelines.core.stage_runner import LocalRunner, Runner
from pipelines.core.storage import Storage, read_parquet, write_parquet
from schemas.manifest import Manifest, ShardEntry
from schemas.sample import LINK_TYPE, Sample, Segment
from schemas.shard import INDEXES, LEDGERS, SHARDS, shard_name, write_tar
from schemas.tables import INDEX, LEDGER

RETRYABLE = "server_error"
FILE_EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.listdir", "os.scandir"}


@dataclass(frozen=True)
class NumberSource:
    """Records that are the numbers from 0; every 13th cannot be read."""

    num_records: int = 60
    per_shard: int = 10
    reasons: ClassVar = {"unreadable": Reason("Every 13th number cannot be read.")}

    def plan(self, corpus: str) -> Sequence[ShardPlan]:
        starts = range(0, self.num_records, self.per_shard)
        return [
            ShardPlan(
                shard_name(corpus, n), min(self.per_shard, self.num_records - s), ({"first": s},)
            )
            for n, s in enumerate(starts)
        ]

    def read(self, shard: ShardPlan) -> pa.Table:
        first = shard.parts[0]["first"]
        numbers = range(first, first + shard.num_records)
        return pa.table(
            {
                "key": [f"number-{n:06d}" for n in numbers],
                "source": ["numbers"] * len(numbers),
                "record": pa.array([n + 1 for n in numbers], pa.int64()),
                "drop_reason": pa.array(
                    ["unreadable" if n % 13 == 12 else None for n in numbers], pa.string()
                ),
                "number": pa.array(numbers, pa.int64()),
            }
        )

    def fingerprint(self) -> str:
        return f"{self.num_records}/{self.per_shard}"


@dataclass(frozen=True)
class Parse:
    """Gives each number its links, and a note of the call for the tests."""

    calls: str | None = None
    sleep_s: float = 0.0
    reasons: ClassVar = {"banned": Reason("The sum of number and slot is a multiple of 11.")}

    def __call__(self, table: pa.Table) -> pa.Table:
        _note(self.calls, "parse", table)
        time.sleep(self.sleep_s * table.num_rows)
        numbers = table["number"].to_pylist()
        links = [
            [
                {
                    "slot": slot,
                    "url": f"http://n.example/{n}/{slot}",
                    "reason": "banned" if (n + slot) % 11 == 0 else None,
                    "detail": None,
                }
                for slot in range(n % 4)
            ]
            for n in numbers
        ]
        position = table.schema.get_field_index("links")
        return table.set_column(position, "links", pa.array(links, pa.list_(LINK_TYPE)))


class Fetch:
    """Answers each link that is not dropped with bytes; links of some numbers fail. Sleeps as a network would."""

    reasons: ClassVar = {RETRYABLE: Reason("The server of this number fails.", retryable=True)}

    def __init__(
        self,
        calls: str | None = None,
        sleep_s: float = 0.0,
        is_healthy: bool = False,
        prior: str | None = None,
    ) -> None:
        self.calls, self.sleep_s, self.is_healthy = calls, sleep_s, is_healthy
        self.prior = prior

    def __call__(self, table: pa.Table) -> pa.Table:
        _note(self.calls, "fetch", table)
        failed = self._failed_before(table)
        rows = []
        for number, links in zip(
            table["number"].to_pylist(), table["links"].to_pylist(), strict=True
        ):
            time.sleep(self.sleep_s)
            rows.append([self._fetched(number, link, failed) for link in links])
        images = [[image for _, image in row if image is not None] for row in rows]
        links = pa.array([[link for link, _ in row] for row in rows], pa.list_(LINK_TYPE))
        position = table.schema.get_field_index("links")
        table = table.set_column(position, "links", links)
        return table.append_column("images", pa.array(images, pa.list_(pa.large_binary())))

    def _failed_before(self, table: pa.Table) -> set[tuple[str, int]] | None:
        """Links that the published ledger of this shard calls failed; null in a first build."""
        if self.prior is None:
            return None
        ledger = read_parquet(Storage(self.prior), f"{LEDGERS}/{shard_of(table)}.parquet", LEDGER)
        rows = ledger.filter(pc.equal(ledger["reason"], RETRYABLE)).to_pylist()
        return {(r["key"], r["slot"]) for r in rows}

    def _fetched(
        self, number: int, link: dict, failed: set[tuple[str, int]] | None
    ) -> tuple[dict, bytes | None]:
        fails = number % 5 == 3 and not self.is_healthy
        if link["reason"] or fails:
            return link | {"reason": link["reason"] or RETRYABLE}, None
        # What was fetched in a retry shows it, so that a retry that forgets what failed gives other bytes.
        is_retried = failed is not None and (f"number-{number:06d}", link["slot"]) in failed
        digest = hashlib.sha256(link["url"].encode()).digest()
        return link, (b"again " if is_retried else b"") + digest * (1 + number % 7)

    def close(self) -> None:
        _note(self.calls, "close", None)


def number_of_images(table: pa.Table) -> pa.Array:
    counts = pc.list_value_length(table["images"])
    return pc.if_else(pc.equal(counts, 0), pa.scalar("no_image"), pa.scalar(None, pa.string()))


@dataclass(frozen=True)
class TarSink:
    """Each number as a sample of a text and its images."""

    calls: str | None = None

    def write(self, shard: str, table: pa.Table, storage: Storage) -> ShardEntry:
        _note(self.calls, "write", table, shard)
        samples = [
            Sample(
                row["key"],
                "numbers",
                (
                    Segment.of_text(f"number {row['number']}"),
                    *(Segment.of_image(i, "png", 1, 1) for i in row["images"]),
                ),
                {"number": row["number"]},
            )
            for row in table.to_pylist()
        ]
        path = f"{SHARDS}/{shard}.tar"
        rows = storage.commit(path, lambda file: write_tar(file, samples, shard))
        write_parquet(storage, f"{INDEXES}/{shard}.parquet", INDEX.table(rows or []), INDEX)
        content = storage.read_bytes(path)
        num_images = sum(len(s.images) for s in samples)
        digest = hashlib.sha256(content).hexdigest()
        return ShardEntry(shard, len(samples), num_images, len(content), digest)


def numbers_pipeline(
    source: NumberSource | None = None,
    calls: str | None = None,
    fetch: tuple = (),
    finish: tuple = (),
) -> Pipeline:
    source = source or NumberSource()
    return Pipeline(
        corpus="numbers",
        source=source,
        stages=(
            Stage("parse", (Parse(calls, *fetch[:1]),), Resources(num_cpus=0.5)),
            Stage(
                "fetch",
                (
                    Construct(Fetch, (calls, *fetch), Fetch.reasons),
                    Filter("images", number_of_images, {"no_image": Reason("No image arrived.")}),
                ),
                Resources(num_cpus=0.5),
            ),
        ),
        sink=TarSink(calls),
        config={"num_records": source.num_records},
        finish=finish,
    )


def _note(calls: str | None, what: str, table: pa.Table | None, shard: str | None = None) -> None:
    """One file a call, so that calls of any process are counted, killed ones too."""
    if calls is not None:
        name = shard or (shard_of(table) if table is not None else "all")
        (Path(calls) / f"{what}.{name}.{os.getpid()}.{time.monotonic_ns()}").touch()


def has_retryable(ledger: pa.Table) -> bool:
    return bool(pc.any(pc.equal(ledger["reason"], RETRYABLE)).as_py())


def contents(out: Path) -> dict[str, str]:
    """Hashes of all files of a dataset."""
    files = sorted(p for p in out.rglob("*") if p.is_file())
    return {
        p.relative_to(out).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files
    }


def main(arguments: Sequence[str]) -> Manifest:
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--records", type=int, default=60)
    parser.add_argument("--sleep-s", type=float, default=0.0)
    parser.add_argument("--calls")
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--retry", action="store_true")
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("--kill-at", type=int, help="die at this operation on files of OUT")
    options = parser.parse_args(arguments)
    if options.kill_at:
        kill_at(options.kill_at, str(Path(options.out).absolute()))
    prior = options.out if options.retry else None
    fetch = (options.sleep_s, options.retry, prior)
    source = NumberSource(options.records)
    pipeline = numbers_pipeline(source, options.calls, fetch)
    redo = has_retryable if options.retry else None
    runner, overwrite = _runner(options.ray), options.overwrite
    return run(pipeline, options.out, runner, redo=redo, overwrite=overwrite, progress=False)


def kill_at(number: int, folder: str) -> None:
    """Die by SIGKILL just before the n-th opening, renaming or removal of a file below the folder."""
    seen = 0

    def watch(event: str, arguments: tuple) -> None:
        nonlocal seen
        if event not in FILE_EVENTS or not arguments or not str(arguments[0]).startswith(folder):
            return
        seen += 1
        if seen == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def _runner(on_ray: bool) -> Runner:
    if not on_ray:
        return LocalRunner()
    import ray

    from pipelines.core.run_ray import RayRunner

    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    return RayRunner()


if __name__ == "__main__":
    main(sys.argv[1:])
    print(Path("/proc/self/status").read_text())
