"""What a run does with a folder in any state: start, resume, leave as it is, refuse, start over."""

import os
import subprocess
import sys
import time
import uuid
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from numbers_pipeline import NumberSource, Parse, contents, numbers_pipeline

from pipelines.core.pipeline import (
    AlarmError,
    EngineError,
    Filter,
    FingerprintError,
    LockedError,
    Pipeline,
    Reason,
    Reasons,
    ShardPlan,
    Stage,
    StepError,
)
from pipelines.core.run import run
from pipelines.core.storage import Storage, read_parquet
from schemas.manifest import Manifest, manifest_from_json
from schemas.shard import LEDGERS, read_tar
from schemas.tables import LEDGER


def calls(folder: Path) -> Counter[str]:
    """How often each step was called, over all processes."""
    return Counter(p.name.partition(".")[0] for p in folder.iterdir())


def build(pipeline: Pipeline, out: Path | str, **options: bool) -> Manifest:
    return run(pipeline, str(out), progress=False, **options)


def all_rows(out: Path | str, manifest: Manifest) -> pa.Table:
    storage = Storage(str(out))
    paths = [f"{LEDGERS}/{s.name}.parquet" for s in manifest.shards]
    return pa.concat_tables([read_parquet(storage, p, LEDGER) for p in paths])


def test_every_record_and_link_is_accounted_for(tmp_path: Path) -> None:
    manifest = build(numbers_pipeline(), tmp_path)
    rows = all_rows(tmp_path, manifest).to_pylist()
    records = {r["key"]: r for r in rows if r["slot"] is None}
    links = {(r["key"], r["slot"]): r for r in rows if r["slot"] is not None}
    assert sorted(records) == [f"number-{n:06d}" for n in range(60)]
    expected = {(f"number-{n:06d}", s) for n in range(60) if n % 13 != 12 for s in range(n % 4)}
    assert len(rows) == 60 + len(expected)
    assert set(links) == expected
    samples = {
        sample.key: sample
        for shard in manifest.shards
        for sample in read_tar((tmp_path / f"shards/{shard.name}.tar").open("rb"))
    }
    assert set(samples) == {k for k, r in records.items() if r["status"] == "kept"}
    for key, record in records.items():
        kept = [r for (k, _), r in links.items() if k == key and r["status"] == "kept"]
        assert len(kept) == (len(samples[key].images) if record["status"] == "kept" else 0)
    assert (records["number-000012"]["stage"], records["number-000012"]["reason"]) == (
        "read",
        "unreadable",
    )
    assert (records["number-000004"]["stage"], records["number-000004"]["reason"]) == (
        "fetch/images",
        "no_image",
    )
    assert links["number-000011", 0]["reason"] == "banned"
    assert links["number-000011", 0]["stage"] == "parse"
    assert links["number-000013", 0]["reason"] == "server_error"
    assert links["number-000013", 0]["stage"] == "fetch"


def test_links_of_a_dropped_record_say_so(tmp_path: Path) -> None:
    pipeline = numbers_pipeline()
    odd = Filter(
        "odd",
        lambda t: pa.array(["odd" if n % 2 else None for n in t["number"].to_pylist()]),
        {"odd": Reason("An odd number.")},
    )
    stages = (Stage("parse", (Parse(), odd)), *pipeline.stages[1:])
    rows = all_rows(tmp_path, build(replace(pipeline, stages=stages), tmp_path)).to_pylist()
    row = next(r for r in rows if r["key"] == "number-000007" and r["slot"] == 1)
    assert (row["status"], row["stage"], row["reason"]) == (
        "dropped",
        "parse/odd",
        "record_dropped",
    )


def test_a_finished_dataset_is_left_alone(tmp_path: Path) -> None:
    out, noted = tmp_path / "out", tmp_path / "calls"
    noted.mkdir()
    pipeline = numbers_pipeline(calls=str(noted))
    first = build(pipeline, out)
    before = contents(out)
    assert calls(noted) == {"parse": 6, "fetch": 6, "write": 6, "close": 1}
    assert build(pipeline, out) == first
    assert contents(out) == before
    assert calls(noted).total() == 19
    assert not (out / ".work").exists()


def test_a_restart_does_only_what_is_missing(tmp_path: Path) -> None:
    out, noted = tmp_path / "out", tmp_path / "calls"
    noted.mkdir()
    cause = tmp_path / "cause"
    cause.touch()

    def fail(table: pa.Table) -> pa.Table:
        if 42 in table["number"].to_pylist() and cause.exists():
            raise RuntimeError("no forty-two")
        return table

    pipeline = numbers_pipeline(calls=str(noted))
    parse, fetch = pipeline.stages
    assert isinstance(fetch, Stage)
    stages = (parse, replace(fetch, steps=(*fetch.steps, fail)))
    pipeline = replace(pipeline, stages=stages)
    with pytest.raises(StepError, match=r"stage 'fetch', shard 'numbers-000004'.*no forty-two"):
        build(pipeline, out)
    cause.unlink()
    assert calls(noted) == {"parse": 5, "fetch": 5, "write": 4, "close": 1}
    assert not (out / "manifest.json").exists()
    build(pipeline, out)
    # The failed stage is called again; the stage before it, and the four finished shards, are not.
    assert calls(noted) == {"parse": 6, "fetch": 7, "write": 6, "close": 2}


def test_an_empty_input_is_an_empty_dataset(tmp_path: Path) -> None:
    manifest = build(numbers_pipeline(NumberSource(0)), tmp_path)
    assert manifest.shards == () and manifest.records.total == 0
    assert manifest.alarms == ("the input holds no records",)
    assert manifest_from_json((tmp_path / "manifest.json").read_text()) == manifest


def test_no_survivors_is_a_dataset_with_an_alarm(tmp_path: Path) -> None:
    pipeline = numbers_pipeline()
    none = Filter(
        "none",
        lambda t: pa.array(["too_low"] * t.num_rows, pa.string()),
        {"too_low": Reason("Too low.")},
        max_drop=0.5,
    )
    pipeline = replace(pipeline, stages=(*pipeline.stages, Stage("clean", (none,))))
    manifest = build(pipeline, tmp_path)
    assert manifest.num_samples == 0 and len(manifest.shards) == 6
    assert manifest.alarms == (
        "'clean/none' dropped 34 of 34 records (bound 0.5); too_low: 34",
        "none of 60 records was kept",
    )
    assert manifest.stages["clean/none"]["dropped"] == {"too_low": 34}


def test_an_alarm_can_fail_the_run(tmp_path: Path) -> None:
    parse, fetch = numbers_pipeline().stages
    assert isinstance(fetch, Stage)
    pipeline = replace(numbers_pipeline(), stages=(parse, replace(fetch, max_drop=0.1)))
    with pytest.raises(AlarmError, match="'fetch' dropped 14 of 76 links"):
        build(pipeline, tmp_path, fail_on_alarm=True)
    assert not (tmp_path / "manifest.json").exists()
    assert len(build(pipeline, tmp_path).alarms) == 1
    with pytest.raises(AlarmError):
        build(pipeline, tmp_path, fail_on_alarm=True)


def test_other_configuration_is_refused_by_name(tmp_path: Path) -> None:
    pipeline = numbers_pipeline()
    build(pipeline, tmp_path)
    other = replace(pipeline, config={"num_records": 60, "side": 256})
    with pytest.raises(FingerprintError, match=r"holds a .*side: None there, 256 now.*overwrite"):
        build(other, tmp_path)


def test_other_inputs_are_refused_and_overwritten_on_request(tmp_path: Path) -> None:
    build(numbers_pipeline(), tmp_path)
    other = replace(numbers_pipeline(NumberSource(25)), config={"num_records": 60})
    with pytest.raises(FingerprintError, match="differs in the inputs"):
        build(other, tmp_path)
    manifest = build(other, tmp_path, overwrite=True)
    assert manifest.records.total == 25
    assert sorted(p.name for p in (tmp_path / "shards").iterdir()) == [
        f"numbers-{n:06d}.tar" for n in range(3)
    ]


def test_a_begun_build_of_something_else_is_refused(tmp_path: Path) -> None:
    def fail(table: pa.Table) -> pa.Table:
        raise RuntimeError("on purpose")

    pipeline = replace(numbers_pipeline(), stages=(Stage("parse", (fail,)),))
    with pytest.raises(StepError):
        build(pipeline, tmp_path)
    with pytest.raises(FingerprintError, match="holds an unfinished build that differs"):
        build(numbers_pipeline(), tmp_path)
    assert build(numbers_pipeline(), tmp_path, overwrite=True).records.kept == 34


def test_memory_storage_gives_the_same_bytes(tmp_path: Path) -> None:
    address = f"memory://{uuid.uuid4().hex}/out"
    build(numbers_pipeline(), address)
    build(numbers_pipeline(), tmp_path)
    remote = Storage(address)
    assert remote.list("") == ["index", "ledger", "manifest.json", "shards"]
    for path in contents(tmp_path):
        assert remote.read_bytes(path) == (tmp_path / path).read_bytes(), path


def test_a_second_run_names_the_first(tmp_path: Path) -> None:
    script = Path(__file__).with_name("numbers_pipeline.py")
    environment = os.environ | {"PYTHONPATH": str(script.parents[2])}
    out = tmp_path / "out"
    command = [sys.executable, str(script), str(out), "--sleep-s", "0.2"]
    first = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:
        while not (out / ".work/plan.json").exists():
            assert first.poll() is None
            time.sleep(0.02)
        with pytest.raises(LockedError, match=f"process {first.pid} on host"):
            build(numbers_pipeline(), out)
    finally:
        first.kill()
        first.wait()
    # A killed process holds nothing.
    assert build(numbers_pipeline(), out).records.kept == 34


def test_the_report_sees_the_manifest_before_it_is_written(tmp_path: Path) -> None:
    def report(storage: Storage, manifest: Manifest, reasons: Reasons) -> None:
        assert "server_error" in reasons
        assert not storage.exists("manifest.json")
        storage.commit("report.html", f"{manifest.num_samples}".encode())

    build(numbers_pipeline(finish=(report,)), tmp_path)
    assert (tmp_path / "report.html").read_bytes() == b"34"


@pytest.mark.parametrize(
    ("name", "num_records", "words"),
    [
        ("other-000000", 10, "not named after corpus"),
        ("numbers-0", 10, r"which is not \^"),
        ("numbers-000000", -1, "planned with -1"),
    ],
)
def test_a_bad_plan_is_named(tmp_path: Path, name: str, num_records: int, words: str) -> None:
    class BadSource(NumberSource):
        def plan(self, corpus: str) -> list[ShardPlan]:
            return [ShardPlan(name, num_records, ({"first": 0},))]

    with pytest.raises(EngineError, match=words):
        build(numbers_pipeline(BadSource()), tmp_path)


def test_bad_stage_names_are_refused(tmp_path: Path) -> None:
    for name in ("Clean Up", "publish", "../x"):
        pipeline = replace(numbers_pipeline(), stages=(Stage(name, ()),))
        with pytest.raises(EngineError, match="stage"):
            build(pipeline, tmp_path)
