"""Bad samples and steps without a finite loss: skipped by rule, recorded, alike on any number of ranks."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from emu.data.dataset import DatasetError
from emu.train.faults import read_skipped
from emu.train.loop import TrainPlan, check_plan, train
from emu.train.optim import make_optimizer
from emu.train.plan import open_stream
from emu.train.run_folder import METRICS, read_metrics
from emu.train.start import start_model
from emu.train.step import EmuLosses, Ranks, Stepper, TrainingError
from schemas.sample import Sample, Segment
from tests.data.small_dataset import dialogue, pair, write_dataset
from tests.train.plans import are_equal, mini_plan, weights_of
from tests.train.processes import start, train_rank
from tests.train.test_resume import stopped_after

CPU = torch.device("cpu")


def broken(number: int) -> Sample:
    image = Segment.of_image(b"not an image", "png", 24, 24)
    return replace(pair(number), segments=(image, *pair(number).segments[1:]))


def plan_of(root: Path, samples: list[Sample], **train: object) -> TrainPlan:
    plan = mini_plan(root, dropout=0.0, **train)
    return replace(plan, data=str(write_dataset(root / "some_bad", samples, 7)))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> TrainPlan:
    """A run of six steps on pairs of which more than a third are broken, and a dialogue that is not for the model."""
    samples = [broken(n) if n % 5 in (0, 2) else pair(n) for n in range(23)]
    samples.append(replace(dialogue(23), corpus="pairs"))
    plan = plan_of(tmp_path_factory.mktemp("faults"), samples)
    train(plan)
    return plan


def test_bad_samples_are_left_out_and_recorded_once_an_epoch(whole: TrainPlan):
    rows = read_skipped(Path(whole.out))
    assert {row["key"] for row in rows} == {
        f"pair-{n:05d}" for n in range(23) if n % 5 in (0, 2)
    } | {"talk-00023"}
    assert len(rows) == 11 and {row["corpus"] for row in rows} == {"pairs"}
    reasons = {row["key"]: (row["reason"], row["detail"]) for row in rows}
    assert reasons["pair-00005"][0] == "not_an_image" and "12 bytes" in reasons["pair-00005"][1]
    assert reasons["talk-00023"][0] == "sample_unsuitable"
    last = read_metrics(Path(whole.out))[-1]
    assert (last["samples"], last["bad_samples"], last["skipped_steps"]) == (13, 11, 0)


def test_two_ranks_skip_the_same_and_take_the_same_steps(whole: TrainPlan, tmp_path: Path):
    two = replace(whole, out=str(tmp_path), train=replace(whole.train, batch_size=2))
    left = [
        open_stream(two, None, Ranks(replace(Ranks().share, rank=r, world_size=2))) for r in (0, 1)
    ]
    shares = [[bool(stream.next_step()) for stream in left] for _ in range(6)]
    assert [False, True] in shares or [True, False] in shares, (
        "one rank has a step without sequences"
    )
    ranks = [start(train_rank, rank, 2, two) for rank in range(2)]
    for rank in ranks:
        rank.join(240)
        assert rank.exitcode == 0
    assert read_skipped(tmp_path) == read_skipped(Path(whole.out))
    for ours, alone in zip(read_metrics(tmp_path), read_metrics(Path(whole.out)), strict=True):
        assert ours["loss"] == pytest.approx(alone["loss"], rel=1e-5)
        assert (ours["samples"], ours["bad_samples"]) == (alone["samples"], alone["bad_samples"])


def test_a_resumed_run_records_nothing_twice(whole: TrainPlan, tmp_path: Path):
    plan = replace(whole, out=str(tmp_path))
    stopped_after(plan, 3)  # its newest checkpoint is of step 2
    train(plan)
    assert read_skipped(tmp_path) == read_skipped(Path(whole.out))
    assert are_equal(weights_of(tmp_path / "model"), weights_of(Path(whole.out) / "model"))


def test_too_many_bad_samples_in_a_row_end_the_run_also_after_a_resume(tmp_path: Path):
    """With 3 good samples of 40 there is a row of bad ones over several steps."""
    samples = [pair(n) if n in (3, 11, 30) else broken(n) for n in range(40)]
    plan = plan_of(tmp_path, samples, steps=9, checkpoint_every=1, max_bad_samples=11)
    with pytest.raises(
        TrainingError, match=r"12 bad samples in a row of corpus 'pairs', the limit is 11"
    ):
        train(plan)
    rows = read_skipped(tmp_path / "out")
    stopped = rows[-1]["step"]
    assert rows[-1]["in_a_row"] == 12 and stopped > 3
    other = replace(plan, out=str(tmp_path / "resumed"))
    stopped_after(other, stopped - 1)
    with pytest.raises(TrainingError, match=f"step {stopped}: 12 bad samples in a row"):
        train(other)
    assert read_skipped(tmp_path / "resumed") == rows


def test_data_without_a_good_sample_are_refused_before_the_start(tmp_path: Path):
    plan = plan_of(tmp_path, [broken(n) for n in range(8)])
    with pytest.raises(
        DatasetError, match=r"all 4 samples of the first step are bad; the first: .*12 bytes"
    ):
        check_plan(plan)


def test_storage_that_fails_is_no_bad_sample(tmp_path: Path):
    plan = plan_of(tmp_path, [pair(n) for n in range(8)])
    next((tmp_path / "some_bad" / "shards").glob("*.tar")).unlink()
    with pytest.raises(DatasetError, match="the manifest names this tar, but it is missing"):
        train(plan)


def test_a_step_that_is_not_finite_changes_nothing(tmp_path: Path):
    plan = mini_plan(tmp_path, dropout=0.0)
    model = start_model(plan.model, plan.train, None, CPU)
    optimizer = make_optimizer(model, plan.train.optim)
    stepper = Stepper(EmuLosses(model, plan.train.precision), optimizer, plan.train, Ranks(), CPU)
    good, bad = (open_stream(plan, None, Ranks()).next_step() for _ in range(2))
    assert bad[0].pixels_NCHW is not None
    bad[0].pixels_NCHW[0, 0, 0, 0] = float("nan")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    result = stepper.step(bad, 0)
    assert not result.is_finite and are_equal(before, model.state_dict()) and not optimizer.state
    assert stepper.step(good, 0).is_finite and not are_equal(before, model.state_dict())


def test_steps_without_a_finite_loss_are_skipped_then_end_the_run(tmp_path: Path):
    """A learning rate that is far too high: the first step is finite, its weights are not usable."""
    plan = mini_plan(tmp_path, steps=12, checkpoint_every=1, max_skipped_steps=2)
    rates = replace(plan.train.optim, language_lr=1e30, warmup_ratio=0.0)
    plan = replace(plan, train=replace(plan.train, optim=rates))
    with pytest.raises(
        TrainingError, match=r"3 steps in a row without a finite loss, the limit is 2"
    ) as error:
        train(plan)
    rows = read_skipped(tmp_path / "out")
    assert [row["in_a_row"] for row in rows] == [1, 2, 3]
    assert all(len(row["keys"]) == 4 and row["reason"] == "not_finite" for row in rows)
    assert rows[-1]["keys"][0] in str(error.value) and "corpus 'mmc4'" in str(error.value)
    lines = (tmp_path / "out" / METRICS).read_text().splitlines()
    last = json.loads(lines[-1], parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert last["skipped_steps"] == 2 and last["loss"] is None
