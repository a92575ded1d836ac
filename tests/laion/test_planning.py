"""`--dry-run` and `--estimate`: what a build would do, before anything is fetched."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.build_laion import main
from pipelines.core.storage import Storage, read_parquet
from pipelines.corpora.build import Build
from pipelines.corpora.mmc4 import rules as mmc4
from pipelines.miniworld.config import PairsConfig
from pipelines.miniworld.laion import LaionSummary
from pipelines.miniworld.pairs import pairs_pipeline
from pipelines.transforms.dry_run import SampledSource, without_fetch
from schemas.manifest import manifest_from_json
from schemas.shard import LEDGERS
from schemas.tables import LEDGER
from tests.exit_codes import exit_code
from tests.laion.conftest import Rows

World = tuple[Path, LaionSummary]
URL = "http://a.example/a.jpg"


def plan(world: Path, out: Path, *options: str) -> int:
    words = ["--metadata", f"{world}/metadata/*", "--out", str(out), "--runner", "local"]
    return main([*words, "--samples-per-shard", "20", *options])


def numbers(text: str) -> dict[str, list[str]]:
    """The numbers behind the first word of each line."""
    rows = re.findall(r"^ *(\w+(?: fetch)?) +([\d.,]+)(?: .B)?", text, re.MULTILINE)
    found: dict[str, list[str]] = {}
    for word, number in rows:
        found.setdefault(word, []).append(number)
    return found


def test_a_dry_run_counts_every_record_and_link_and_fetches_nothing(
    laion_world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, summary = laion_world
    assert plan(folder, tmp_path / "out", "--dry-run") == 0
    printed = capsys.readouterr().out
    assert numbers(printed)["pairs"] == [str(summary.num_records)]
    assert numbers(printed)["to fetch"] == [str(summary.num_links)] * 2
    assert "no_caption" in printed and "The row has no link." in printed
    assert not (tmp_path / "out").exists()
    manifest = manifest_from_json((tmp_path / "out.dry_run/manifest.json").read_text())
    assert manifest.records.dropped == summary.num_dropped_by_reason | {
        "not_fetched": summary.num_links
    }
    assert manifest.links.dropped == {"not_fetched": summary.num_links}
    assert manifest.alarms == ()
    rows = [
        row
        for shard in manifest.shards
        for row in read_parquet(
            Storage(str(tmp_path / "out.dry_run")), f"{LEDGERS}/{shard.name}.parquet", LEDGER
        ).to_pylist()
    ]
    assert sum(row["slot"] is None for row in rows) == summary.num_records


def test_a_dry_run_replaces_the_one_before(
    laion_world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for limit in ("10", "5"):
        assert plan(laion_world[0], tmp_path / "out", "--dry-run", "--limit", limit) == 0
        assert numbers(capsys.readouterr().out)["pairs"] == [limit]


def test_an_estimate_is_exact_where_the_sample_is_everything(
    laion_world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, summary = laion_world
    rates = ["--rates.links-per-s", "0.01", "--rates.link-kb", "100", "--rates.arriving", "0.5"]
    assert plan(folder, tmp_path / "out", "--estimate", *rates, "--rates.kept-kb", "10") == 0
    printed = capsys.readouterr().out
    found = numbers(printed)
    assert found["links"][-1] == str(summary.num_links)
    arriving = round(summary.num_links / 2)
    assert found["arriving"] == [str(arriving)]
    assert re.search(rf"download +{arriving / 10:g} MB at 100 kB", printed)
    assert re.search(rf"disk +{arriving * 10:g} kB at 10 kB", printed)
    assert f"{summary.num_links / 36:.1f} h at 0.01 links per second" in printed
    assert list(tmp_path.iterdir()) == []


def test_an_estimate_of_many_rows_reads_a_sample_of_them(
    metadata: Callable[[Rows], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"URL": URL, "TEXT": "a" if n % 2 else None} for n in range(1000)]
    words = ["--metadata", str(metadata(rows)), "--out", str(tmp_path / "out"), "--estimate"]
    assert main([*words, "--runner", "local", "--samples-per-shard", "10"]) == 0
    printed = capsys.readouterr().out
    assert "1,000 in 100 shards. Of a sample of 200:" in printed
    assert numbers(printed)["links"][-1] == "500"


def test_the_sampled_shards_are_evenly_spaced() -> None:
    source = mmc4.READER(["x"])
    shards = [f"s{n}" for n in range(10)]
    assert SampledSource.of(source, shards, 5).shards == ("s1", "s3", "s5", "s7", "s9")  # type: ignore[arg-type]
    assert SampledSource.of(source, shards[:3], 5).shards == ("s0", "s1", "s2")  # type: ignore[arg-type]


def test_every_corpus_that_fetches_has_a_dry_run() -> None:
    pipeline = mmc4.pipeline(Build(mmc4.READER(["x"])), mmc4.Rules())
    dry = without_fetch(pipeline)
    assert [s.name for s in dry.stages] == ["parse", "fetch"]
    assert dry.stages[0] is pipeline.stages[0]
    with pytest.raises(ValueError, match="'miniworld' fetches nothing"):
        without_fetch(pairs_pipeline(PairsConfig(num_pairs=1)))


def test_nothing_to_retry_in_a_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--metadata", "x.parquet", "--out", str(tmp_path / "out"), "--retry-failed"]
    assert exit_code(main, [*words, "--dry-run"]) == 2
    assert "not for retry_failed" in capsys.readouterr().err


def test_a_dry_run_of_real_rows(
    sample_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--metadata", f"{sample_data}/laion/*.parquet", "--out", f"{tmp_path}/out"]
    assert main([*words, "--runner", "local", "--dry-run", "--max-caption-chars", "100"]) == 0
    found = numbers(capsys.readouterr().out)
    assert found["pairs"] == ["1,000"] and found["to fetch"] == ["917"] * 2
