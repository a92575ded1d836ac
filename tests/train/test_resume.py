import json
import random
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from emu.train.loop import SUMMARY, Run, TrainPlan, train
from emu.train.run_folder import FOLDER, CheckpointError, checkpoints, read_metrics
from emu.train.step import Ranks
from emu.weights.store import load_model
from tests.train.plans import are_equal, mini_plan, weights_of
from tests.train.processes import start, train_without_ray, train_work

CPU = torch.device("cpu")
PARTIAL = ".step-*.partial"


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
    run.stream.close()


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
    states = [
        torch.load(checkpoints(Path(p.out))[-1] / "optimizer.pt", weights_only=True)
        for p in (plan, whole)
    ]
    assert all(are_equal(states[0][name], state) for name, state in states[1].items())
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
    dice, while_writing = random.Random(3), 0
    for attempt in range(6):  # whether a kill meets a checkpoint half written is a matter of luck
        out = tmp_path / f"out{attempt}"
        plan = elsewhere(whole, out)
        while_writing += kill_until_done(
            replace(plan, train=replace(plan.train, checkpoint_every=1)), dice
        )
        assert are_equal(weights_of(out / "model"), weights_of(Path(whole.out) / "model"))
        assert not list((out / FOLDER).glob(".*")) and len(checkpoints(out)) == 2
        if while_writing >= 2:
            return
    raise AssertionError(f"{while_writing} kills met a checkpoint half written, wanted 2")


def kill_until_done(plan: TrainPlan, dice: random.Random) -> int:
    """Kill a run up to eight times, then let it end; how many kills left a checkpoint half written."""
    out = Path(plan.out)
    folder = out / FOLDER
    kills, while_writing = 0, 0
    while True:
        process = start(train_work, plan)
        if kills >= 8:
            process.join(240)
            break
        started = len(checkpoints(out))
        deadline = time.monotonic() + 60
        while process.exitcode is None and time.monotonic() < deadline:
            if list(folder.glob(PARTIAL)) and (kills % 2 or len(checkpoints(out)) > started):
                break  # in the middle of a checkpoint
        time.sleep(dice.choice((0.0, 0.0, 0.002, 0.01)))
        process.kill()
        process.join()
        kills += process.exitcode == -9
        while_writing += bool(list(folder.glob(PARTIAL)))
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
    state = checkpoints(tmp_path / "out")[-1] / "state.json"
    state.write_text(state.read_text().replace('"version": 1', '"version": 7'))
    with pytest.raises(CheckpointError, match="version 7, this release reads 1"):
        train(elsewhere(whole, tmp_path / "out"))


def test_a_checkpoint_with_earlier_option_names_is_resumed(whole: TrainPlan, tmp_path: Path):
    plan = elsewhere(whole, tmp_path / "out")
    stopped_after(plan, 2)
    path = checkpoints(tmp_path / "out")[-1] / "state.json"
    state = json.loads(path.read_text())
    optim, sequence = state["config"]["train"]["optim"], state["config"]["sequence"]
    optim["visual_wait_ratio"] = optim.pop("visual_freeze_ratio")
    sequence["window_odds"] = sequence.pop("window_probability")
    sequence["image_first_odds"] = sequence.pop("image_first_probability")
    path.write_text(json.dumps(state))
    train(plan)
    assert are_equal(weights_of(tmp_path / "out" / "model"), weights_of(Path(whole.out) / "model"))


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
