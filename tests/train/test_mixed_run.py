import math
from dataclasses import replace
from pathlib import Path

import pytest

from emu.data.mixture import Corpus
from emu.train.checkpoint_folder import CheckpointError, read_progress
from emu.train.loop import TrainPlan, train
from emu.train.run_folder import read_metrics
from tests.data.small_dataset import clip, pair, storyboard, write_dataset
from tests.train.plans import are_equal, mini_plan, newest, weights_of
from tests.train.test_resume import elsewhere, stopped_after


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> TrainPlan:
    """A run of eight steps on documents, pairs, clips and storyboards, that was never interrupted."""
    root = tmp_path_factory.mktemp("mixed")
    plan = mini_plan(root, steps=8, row_length=1024, peak_tflops=1.0)
    pairs = write_dataset(root / "pairs", [pair(n) for n in range(20)])
    clips = write_dataset(root / "clips", [clip(n) for n in range(10)])
    boards = write_dataset(root / "boards", [storyboard(n) for n in range(10)])
    assert isinstance(plan.data, str)
    corpora = (
        Corpus(plan.data, "documents", 3),
        Corpus(str(pairs), None, 2),
        Corpus(str(clips), "clips", 2),
        Corpus(str(boards)),
    )
    plan = replace(plan, data=corpora)
    train(plan)
    return plan


def test_the_log_has_losses_by_corpus_and_work(whole: TrainPlan):
    rows = read_metrics(Path(whole.out))
    steps = {n: v for row in rows for n, v in row.items() if n.startswith("steps/")}
    assert steps == {
        "steps/documents": 3,
        "steps/pairs": 2,
        "steps/clips": 2,
        "steps/yt_storyboard": 1,
    }
    for row in rows:
        (name,) = [name for name in row if name.startswith("text_loss/")]
        assert row[name] == row["text_loss"] and math.isfinite(row["visual_loss"])
        assert row["filled"] == 1.0 and row["mfu"] == row["tflops_per_s"] > 0


@pytest.mark.parametrize("steps", [3, 6])
def test_a_stopped_run_ends_with_the_same_bits(whole: TrainPlan, tmp_path: Path, steps: int):
    plan = elsewhere(whole, tmp_path / "out")
    stopped_after(plan, steps)
    threaded = replace(plan, train=replace(plan.train, num_threads=2))
    train(threaded)
    assert are_equal(weights_of(tmp_path / "out" / "model"), weights_of(Path(whole.out) / "model"))
    assert read_progress(newest(plan)) == read_progress(newest(whole))


def test_another_mixture_is_refused(whole: TrainPlan):
    other = (replace(whole.data[0], weight=5.0), *whole.data[1:])
    with pytest.raises(CheckpointError, match="mixture: was"):
        train(replace(whole, data=other))


def test_packing_needs_the_global_normalisation(whole: TrainPlan, tmp_path: Path):
    plan = elsewhere(whole, tmp_path / "out")
    with pytest.raises(ValueError, match=r"give --train.row-length 0"):
        train(replace(plan, train=replace(plan.train, normalisation="micro_batch")))
