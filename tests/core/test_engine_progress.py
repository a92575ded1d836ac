"""A build shows how many records are done, and how far the others have come."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from numbers_pipeline import NumberSource, numbers_pipeline

from pipelines.core import run as engine
from pipelines.core.pipeline import ShardPlan
from pipelines.core.run import run
from pipelines.core.stage_runner import LocalRunner, Operator


class WaitingRunner(LocalRunner):
    """A runner that waits before it reports a shard, as a slow one would."""

    def __init__(self, wait: Callable[[], None]) -> None:
        self.wait = wait

    def run(
        self, operators: Sequence[Operator], shards: Sequence[ShardPlan]
    ) -> Iterator[tuple[str, int]]:
        for done in super().run(operators, shards):
            self.wait()
            yield done


def test_records_shards_and_stages_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "FOLLOW_S", 0.01)
    pipeline = numbers_pipeline(NumberSource(num_records=20, per_shard=10))
    first, shown = pipeline.stages[0].name, ""

    def until_the_bar_has_moved() -> None:
        nonlocal shown
        end = time.monotonic() + 60
        while f"{first} 10" not in shown and time.monotonic() < end:
            time.sleep(0.01)
            shown += capsys.readouterr().err

    run(pipeline, str(tmp_path), WaitingRunner(until_the_bar_has_moved))
    shown += capsys.readouterr().err
    assert f"0/2 shards; {first} 10" in shown, "a shard has passed a stage, and none is finished"
    assert "20/20" in shown
