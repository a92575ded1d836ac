import json
import random
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from emu.train.checkpoint_folder import CheckpointError, checkpoints
from emu.train.loop import SUMMARY, Run, TrainPlan, checkpoint_folder, train
from emu.train.run_folder import read_metrics
from emu.train.step import Ranks
from emu.weights.store import load_model
from tests.train.plans import are_equal, mini_plan, newest, same_state, weights_of
from tests.train.processes import start, train_without_ray, train_work

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> TrainPlan:
    """A run of six steps that was never interrupted."""
    plan = mini_plan(tmp_path_factory.mktemp("whole"))
    train(plan)
    return plan


def elsewhere(plan: TrainPlan, out: Path) -> TrainPlan:
    return replace(plan, out=str(out))


def stopped_after(plan: TrainPlan, steps: int) -> None:
    """Take some steps and be gone, with the checkpoints that were due."""
    run = Run(plan, Ranks(), CPU, time.perf_counter)
    while run.step < steps:
        run.advance()
        if run.step % plan.train.checkpoint_every == 0:
            run.checkpoint(lambda metrics, checkpoint: None)
    run.close()


@pytest.mark.parametrize("stop", range(1, 6))
def test_a_run_stopped_at_any_step_ends_with_the_same_bits(
    whole: TrainPlan, tmp_path: Path, stop: int
):
    plan = elsewhere(whole, tmp_path / "out")
    stopped_after(plan, stop)
    torch.manual_seed(stop)  # what another program does with the generator must not matter
    torch.rand(stop)
    summary = train(plan)
    assert are_equal(weights_of(tmp_path / "out" / "model"), weights_of(Path(whole.out) / "model"))
    assert same_state(plan, whole)
    assert json.loads((Path(whole.out) / SUMMARY).read_text())["images"] == summary.images
    timeless = ("step", "loss", "images", "gradient_norm")
    rows = [
        [[row[n] for n in timeless] for row in read_metrics(Path(p.out))] for p in (plan, whole)
    ]
    assert rows[0] == rows[1] and [row[0] for row in rows[0]] == [1, 2, 3, 4, 5, 6]


def test_threads_that_read_ahead_change_nothing(whole: TrainPlan, tmp_path: Path):
    plan = elsewhere(whole, tmp_path / "out")
    train(replace(plan, train=replace(plan.train, num_threads=2)))
    assert are_equal(weights_of(tmp_path / "out" / "model"), weights_of(Path(whole.out) / "model"))


def test_killed_again_and_again_also_while_writing_a_checkpoint(whole: TrainPlan, tmp_path: Path):
    plan = elsewhere(whole, tmp_path / "out")
    plan = replace(plan, train=replace(plan.train, checkpoint_every=1))
    assert kill_until_done(plan, random.Random(3)) >= 1
    assert are_equal(weights_of(tmp_path / "out" / "model"), weights_of(Path(whole.out) / "model"))
    assert sorted(path.name for path in Path(checkpoint_folder(plan)).iterdir()) == [
        "latest",
        "step-00000005",
        "step-00000006",
    ]


def unfinished(plan: TrainPlan) -> list[Path]:
    """The checkpoints that are not whole."""
    folders = Path(checkpoint_folder(plan)).glob("step-*")
    return [folder for folder in folders if not (folder / "state.json").exists()]


def kill_until_done(plan: TrainPlan, dice: random.Random) -> int:
    """Kill a run up to eight times, then let it end; how many kills left a checkpoint half written.

    Whether a kill meets one is a matter of luck, so two of those end the killing.
    """
    kills, while_writing = 0, 0
    while True:
        process = start(train_work, plan)
        if kills >= 8 or while_writing >= 2:
            process.join(240)
            break
        started = len(checkpoints(checkpoint_folder(plan)))
        deadline = time.monotonic() + 60
        while process.exitcode is None and time.monotonic() < deadline:
            if unfinished(plan) and (
                kills % 2 or len(checkpoints(checkpoint_folder(plan))) > started
            ):
                break  # in the middle of a checkpoint
        time.sleep(dice.choice((0.0, 0.0, 0.002, 0.01)))
        process.kill()
        process.join()
        kills += process.exitcode == -9
        while_writing += bool(unfinished(plan))
        if process.exitcode == 0:
            break
    assert process.exitcode == 0 and kills >= 1
    return while_writing


def test_training_needs_no_ray(whole: TrainPlan, tmp_path: Path):
    process = start(train_without_ray, elsewhere(whole, tmp_path / "out"))
    process.join(240)
    assert process.exitcode == 0
    assert are_equal(weights_of(tmp_path / "out" / "model"), weights_of(Path(whole.out) / "model"))


def test_a_finished_run_started_again_does_nothing_more(whole: TrainPlan):
    before = (Path(whole.out) / "metrics.jsonl").read_bytes()
    assert train(whole).steps == 6
    assert (Path(whole.out) / "metrics.jsonl").read_bytes() == before


def test_the_model_of_a_run_loads(whole: TrainPlan):
    model, tokenizer = load_model(Path(whole.out) / "model")
    assert model.config == whole.model and len(tokenizer) == whole.model.num_embeddings


def test_another_configuration_is_refused_and_named(whole: TrainPlan):
    longer = replace(whole, train=replace(whole.train, steps=9))
    with pytest.raises(
        CheckpointError,
        match=r"scheduled over 6 steps, so its length cannot become 9.*--init .*--steps 3",
    ):
        train(longer)


def test_the_same_global_batch_may_be_split_otherwise(whole: TrainPlan, tmp_path: Path):
    plan = elsewhere(whole, tmp_path / "out")
    stopped_after(plan, 2)
    cut = replace(plan, train=replace(plan.train, batch_size=2, num_micro=2))
    assert train(cut).samples == 24
    plan = elsewhere(whole, tmp_path / "packed")
    stopped_after(plan, 2)
    packed = replace(plan, train=replace(plan.train, batch_size=3, row_length=1024))
    assert train(packed).samples == 24  # a run keeps the sequences per step that it started with


def test_resume_can_be_asked_for_or_ruled_out(whole: TrainPlan, tmp_path: Path):
    with pytest.raises(CheckpointError, match="no checkpoint to resume from"):
        train(replace(elsewhere(whole, tmp_path / "none"), resume="must"))
    with pytest.raises(CheckpointError, match="holds a run with checkpoint step-00000006"):
        train(replace(whole, resume="never"))


def test_a_checkpoint_of_another_version_is_refused(whole: TrainPlan, tmp_path: Path):
    shutil.copytree(whole.out, tmp_path / "out")
    plan = elsewhere(whole, tmp_path / "out")
    state = Path(newest(plan).address) / "state.json"
    state.write_text(state.read_text().replace('"version": 2', '"version": 7'))
    with pytest.raises(CheckpointError, match="version 7, this release reads 2"):
        train(plan)


def test_a_checkpoint_of_an_earlier_release_is_refused(whole: TrainPlan, tmp_path: Path):
    plan = elsewhere(whole, tmp_path / "out")
    old = Path(checkpoint_folder(plan)) / "step-00000002"
    old.mkdir(parents=True)
    (old / "optimizer.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="step-00000002: version 1, this release reads 2"):
        train(plan)


def test_collapsed_targets_raise_an_alarm_once(whole: TrainPlan, tmp_path: Path):
    plan = elsewhere(whole, tmp_path / "out")
    summary = train(replace(plan, train=replace(plan.train, collapse_variance=1e9)))
    assert len(summary.alarms) == 1 and summary.alarms[0].startswith("step 1: variance")
    curves = (tmp_path / "out" / "curves.svg").read_text()
    assert curves.count("<polyline") == 4 and "visual loss" in curves and "learning rate" in curves
    assert "max-width: 100%" in curves  # so that it fits a narrow window


def test_tensorboard_shows_every_step_once(whole: TrainPlan, tmp_path: Path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    plan = elsewhere(whole, tmp_path / "out")
    stopped_after(plan, 3)
    train(plan)
    board = EventAccumulator(str(tmp_path / "out/tensorboard"))
    board.Reload()
    shown = [(event.step, event.value) for event in board.Scalars("loss")]
    logged = [(row["step"], pytest.approx(row["loss"])) for row in read_metrics(tmp_path / "out")]
    assert shown == logged
