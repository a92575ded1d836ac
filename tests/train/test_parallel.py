"""Weights that are sharded over ranks: the same steps as one process, accumulation, and full copies (DDP)."""

import random
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
from torch.distributed.checkpoint.fsspec_filesystem import FsspecReader

from emu.config import AdapterConfig
from emu.data.batches import Share
from emu.recipes import TrainConfig
from emu.train.checkpoint import read_tensors
from emu.train.checkpoint_folder import checkpoints
from emu.train.loop import TrainPlan, checkpoint_folder, train
from emu.train.parallel import Ranks, shards_weights
from emu.train.run_folder import read_metrics
from tests.train.plans import are_equal, mini_plan, newest, same_state, weights_of
from tests.train.processes import CPU, start, train_ranks
from tests.train.test_instruct import tuning_plan


def on_two_ranks(plans: list[TrainPlan]) -> None:
    """Train the plans one after the other on two ranks."""
    Path(plans[0].out).mkdir(parents=True, exist_ok=True)
    (Path(plans[0].out) / "meeting").unlink(missing_ok=True)
    ranks = [start(train_ranks, rank, 2, plans) for rank in range(2)]
    for rank in ranks:
        rank.join(280)
        assert rank.exitcode == 0


def variant(plan: TrainPlan, name: str, **train: object) -> TrainPlan:
    """The plan with other options, in a folder of its own beside it."""
    out = str(Path(plan.out).parent / name)
    return replace(plan, out=out, train=replace(plan.train, **train))


def losses_of(plan: TrainPlan) -> list[float]:
    return [
        row[n]
        for row in read_metrics(Path(plan.out))
        for n in ("text_loss", "visual_loss", "gradient_norm")
    ]


def plan_in_short_rows(root: Path, **train: object) -> TrainPlan:
    """Documents of 0 to 3 images: ranks have different numbers of micro-batches, some without an image."""
    plan = mini_plan(root, dropout=0.0, row_length=64, **train)
    short = replace(plan.sequence, clip_length=56, storyboard_length=56, dialogue_length=56)
    return replace(plan, sequence=short)


def test_sharded_ranks_write_a_part_each_and_one_process_goes_on(tmp_path: Path):
    whole = plan_in_short_rows(tmp_path, steps=3, checkpoint_every=2)
    train(whole)
    fsdp = variant(whole, "fsdp", batch_size=2, parallel="fsdp")
    on_two_ranks([fsdp])
    assert losses_of(fsdp) == pytest.approx(losses_of(whole), rel=1e-6, abs=1e-6)
    last = newest(fsdp)
    tensors = read_tensors(last)
    found = FsspecReader(last.address).read_metadata().state_dict_metadata
    divided = {n for n, w in tensors.items() if w.ndim and len(w) > 1}
    assert all(len(found[name].chunks) == 2 for name in divided), "no rank writes all"
    saved = {n.removeprefix("model."): w for n, w in tensors.items() if n.startswith("model.")}
    assert are_equal(saved, weights_of(Path(fsdp.out) / "model"))
    shutil.rmtree(last.address)
    (Path(last.folder) / "latest").write_text("step-00000002\n")
    train(replace(fsdp, train=whole.train))
    assert losses_of(fsdp) == pytest.approx(losses_of(whole), rel=1e-6, abs=1e-6)


@pytest.mark.slow
def test_full_copies_shards_and_groups_take_the_steps_of_one_process(tmp_path: Path):
    plan = plan_in_short_rows(tmp_path, steps=4)
    variants: dict[str, dict[str, object]] = {
        "ddp": {"parallel": "ddp"},
        "fsdp": {"parallel": "fsdp"},
        "copies": {"parallel": "hsdp", "shard_workers": 1},
        "group": {"parallel": "hsdp", "shard_workers": 2},
        "padded": {"parallel": "fsdp", "row_length": 0},
        "recomputed": {"parallel": "fsdp", "recompute_activations": True},
    }
    plans = [variant(plan, name, batch_size=2, **train) for name, train in variants.items()]
    on_two_ranks(plans)
    accumulated = variant(plan, "accumulated", batch_size=1, num_micro=4, row_length=0)
    for alone in (plan, accumulated):
        train(alone)
    for other in (accumulated, *plans):
        assert losses_of(other) == pytest.approx(losses_of(plan), rel=1e-6, abs=1e-6), other.out


@pytest.mark.slow
def test_frozen_parts_and_half_precision_are_sharded_too(tmp_path: Path):
    plan = plan_in_short_rows(tmp_path, steps=4)
    frozen = variant(plan, "frozen", freeze_vision=True)
    half = variant(plan, "half", precision="bfloat16")
    sharded = [
        variant(p, f"{Path(p.out).name}2", batch_size=2, parallel="fsdp") for p in (frozen, half)
    ]
    on_two_ranks(sharded)
    for alone, two, tolerance in zip((frozen, half), sharded, (1e-6, 3e-2), strict=True):
        train(alone)
        assert losses_of(two) == pytest.approx(losses_of(alone), rel=tolerance, abs=tolerance)


@pytest.mark.slow
def test_adapters_are_sharded_too(tmp_path: Path):
    plan = tuning_plan(tmp_path)
    plan = replace(plan, model=replace(plan.model, adapter=AdapterConfig(rank=4, dropout=0.0)))
    train(plan)
    two = variant(plan, "two", batch_size=3, parallel="fsdp")
    on_two_ranks([two])
    assert losses_of(two) == pytest.approx(losses_of(plan), rel=1e-5, abs=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_sharded_ranks_that_are_killed_end_with_the_same_bits(tmp_path: Path):
    """Both ranks are killed at random moments, also while a checkpoint is written; each run is then resumed."""
    options = {"steps": 24, "checkpoint_every": 2, "batch_size": 2, "parallel": "fsdp"}
    plan = mini_plan(tmp_path, row_length=1024, **options)
    on_two_ranks([plan])
    killed = variant(plan, "killed")
    Path(killed.out).mkdir()
    dice, stops = random.Random(5), []
    for _ in range(5):
        until = len(stops) * 4 + dice.randrange(1, 5)
        stops.append(killed_after(killed, until, dice.random() * 0.1))
    assert len(set(stops)) > 2 and stops[-1] > 0
    on_two_ranks([killed])
    assert same_state(killed, plan)
    assert are_equal(weights_of(Path(killed.out) / "model"), weights_of(Path(plan.out) / "model"))
    assert losses_of(killed) == losses_of(plan)


def killed_after(plan: TrainPlan, step: int, delay_s: float) -> int:
    """Kill both ranks a little after a step; the step of the newest checkpoint then."""
    (Path(plan.out) / "meeting").unlink(missing_ok=True)
    ranks = [start(train_ranks, rank, 2, [plan]) for rank in range(2)]
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and all(rank.exitcode is None for rank in ranks):
        rows = read_metrics(Path(plan.out))
        if rows and rows[-1]["step"] >= step:
            break
        time.sleep(0.002)
    time.sleep(delay_s)
    for rank in ranks:
        rank.kill()
    for rank in ranks:
        rank.join()
    (Path(plan.out) / "meeting").unlink(missing_ok=True)
    found = checkpoints(checkpoint_folder(plan))
    return found[-1].step if found else 0


def test_options_that_do_not_fit_are_refused():
    two = Ranks(Share(0, 2))
    config = TrainConfig(steps=1, batch_size=2)
    assert not shards_weights(config, two, CPU)
    assert shards_weights(replace(config, parallel="fsdp"), two, CPU)
    assert not shards_weights(replace(config, parallel="fsdp"), Ranks(), CPU)
    with pytest.raises(ValueError, match="shard_workers=2 is for hsdp alone, parallel is auto"):
        shards_weights(replace(config, shard_workers=2), two, CPU)
