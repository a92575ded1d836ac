"""Making single shards of a finished dataset again, with kills in the middle."""

import random
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from engine_jobs import Forks
from numbers_pipeline import (
    RETRYABLE,
    NumberSource,
    contents,
    has_retryable,
    numbers_pipeline,
)

from pipelines.core.pipeline import Barrier, EngineError
from pipelines.core.run import run
from pipelines.core.storage import Storage, read_parquet
from schemas.manifest import Manifest
from schemas.tables import LEDGER

NUM_RECORDS = 45


def build(out: Path) -> Manifest:
    return run(numbers_pipeline(NumberSource(NUM_RECORDS)), str(out), progress=False)


def retry(out: Path, calls: Path | None = None) -> Manifest:
    fetch = (0.0, True, str(out))
    pipeline = numbers_pipeline(NumberSource(NUM_RECORDS), calls and str(calls), fetch)
    return run(pipeline, str(out), redo=only_shards_of_teens, progress=False)


def only_shards_of_teens(ledger: pa.Table) -> bool:
    """Of the five shards, the two with retryable links of numbers from 10 to 29."""
    records = ledger.filter(pc.equal(ledger["reason"], RETRYABLE))["record"]
    return any(11 <= r <= 30 for r in records.to_pylist())


def test_chosen_shards_are_made_again_and_the_others_left(tmp_path: Path) -> None:
    out, calls = tmp_path / "out", tmp_path / "calls"
    calls.mkdir()
    first = build(out)
    (out / "features").mkdir()
    for number in (0, 1):
        (out / f"features/numbers-{number:06d}.arrow").touch()
    before = contents(out)
    second = retry(out, calls)
    after = contents(out)
    changed = {path for path in before if after.get(path) != before[path]}
    again = ("numbers-000001", "numbers-000002")
    files = {f"{f}/{n}.{s}" for n in again for f, s in SUFFIXES.items()}
    assert changed == files | {"manifest.json", "features/numbers-000001.arrow"}
    assert {p.name.split(".")[1] for p in calls.iterdir()} == {*again, "all"}
    assert second.links.dropped[RETRYABLE] < first.links.dropped[RETRYABLE]
    assert second.links.total == first.links.total
    assert second.records.kept > first.records.kept
    assert second.stages["read"] == first.stages["read"]
    seen = second.stages["fetch"]["links"]
    assert seen["dropped"][RETRYABLE] == second.links.dropped[RETRYABLE]
    ledger = read_parquet(Storage(str(out)), "ledger/numbers-000001.parquet", LEDGER)
    assert RETRYABLE not in ledger["reason"].to_pylist()
    assert not (out / ".work").exists()
    # Nothing is left that the predicate chooses.
    assert retry(out) == second


SUFFIXES = {"shards": "tar", "index": "parquet", "ledger": "parquet"}


def test_kills_in_a_retry_give_the_same_bytes(forks: Forks, tmp_path: Path) -> None:
    options = ("--records", str(NUM_RECORDS))
    start_of_all = tmp_path / "start"
    forks.to_the_end(start_of_all, *options)
    expected = tmp_path / "expected"
    shutil.copytree(start_of_all, expected)
    forks.to_the_end(expected, *options, "--retry")
    assert contents(expected) != contents(start_of_all)
    chance, num_kills = random.Random(3), 0
    while num_kills < 6:
        out = tmp_path / f"out{num_kills}"
        shutil.copytree(start_of_all, out)
        for _ in range(3):
            code = forks.run(out, *options, "--retry", "--kill-at", str(chance.randint(1, 160)))
            num_kills += code == -signal.SIGKILL
            if code == 0:
                break
            # A manifest beside changed files would pass for a whole dataset.
            if (out / "manifest.json").exists() and (out / ".work/plan.json").exists():
                assert shards_of(out) in (shards_of(start_of_all), shards_of(expected))
        forks.to_the_end(out, *options, "--retry")
        assert contents(out) == contents(expected)


def shards_of(out: Path) -> dict[str, str]:
    return {p: h for p, h in contents(out).items() if p.startswith(("shards", "index", "ledger"))}


def test_a_retry_needs_a_finished_dataset(forks: Forks, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no finished dataset"):
        retry(tmp_path / "new")
    out = tmp_path / "begun"
    assert forks.run(out, "--records", str(NUM_RECORDS), "--kill-at", "40") == -signal.SIGKILL
    with pytest.raises(EngineError, match="not finished; finish it before"):
        retry(out)


def test_an_unfinished_retry_is_not_taken_for_a_build(forks: Forks, tmp_path: Path) -> None:
    build(tmp_path)
    options = ("--records", str(NUM_RECORDS), "--retry", "--kill-at", "60")
    assert forks.run(tmp_path, *options) == -signal.SIGKILL
    with pytest.raises(EngineError, match="start the retry again"):
        build(tmp_path)


def test_redo_excludes_overwriting_and_barriers(tmp_path: Path) -> None:
    pipeline = numbers_pipeline()
    with pytest.raises(EngineError, match="exclude each other"):
        run(pipeline, str(tmp_path), redo=has_retryable, overwrite=True)
    barrier = Barrier("dedup", plan=lambda tables: None, apply=lambda table, plan: table)
    with pytest.raises(EngineError, match="a barrier sees the whole dataset"):
        run(replace(pipeline, stages=(barrier,)), str(tmp_path), redo=has_retryable)
