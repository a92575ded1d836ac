"""Held-out samples: chosen by key, never trained on, measured alike on any number of ranks."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from emu.data.dataset import DatasetError
from emu.data.mixture import Corpus, held_out_places, is_held_out
from emu.train.checkpoint_folder import CheckpointError
from emu.train.loop import TrainPlan, check_plan, train
from emu.train.plan import open_stream
from emu.train.run_folder import read_metrics
from emu.train.step import EmuLosses, Ranks
from emu.weights.store import load_model
from tests.data.small_dataset import document, pair, write_dataset
from tests.train.plans import are_equal, mini_plan, weights_of
from tests.train.processes import start, train_rank
from tests.train.test_resume import stopped_after

SHARE = 0.3
FIELDS = [
    f"validation_{kind}_loss/{name}" for name in ("mmc4", "pairs") for kind in ("text", "visual")
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> TrainPlan:
    """A run of six steps on two corpora with held-out samples, validated after steps 2, 4 and 6."""
    root = tmp_path_factory.mktemp("validation")
    plan = mini_plan(root, held_out=SHARE, validate_every=2, validation_samples=5)
    pairs = write_dataset(root / "pairs", [pair(n) for n in range(30)], 7)
    plan = replace(plan, data=(Corpus(str(plan.data)), Corpus(str(pairs))))
    train(plan)
    return plan


def test_keys_decide_what_is_held_out():
    keys = [f"pair-{n:05d}" for n in range(20_000)]
    few, more = ({k for k in keys if is_held_out(k, share)} for share in (0.01, 0.05))
    assert 150 < len(few) < 250 and 900 < len(more) < 1100 and few < more
    assert not any(is_held_out(k, 0.0) for k in keys)


def test_an_epoch_has_every_other_sample_once(whole: TrainPlan):
    stream = open_stream(whole, None, Ranks())
    read: dict[str, list[str]] = {"mmc4": [], "pairs": []}
    sequences = 0
    for _ in range(14):
        batches = stream.next_step()
        read[stream.corpus] += stream.keys()
        sequences += sum(batch.num_sequences for batch in batches)
    documents = [document(n).key for n in range(24)]  # an epoch is six steps of four
    assert sorted(read["mmc4"][: len(set(read["mmc4"]))]) == [
        key for key in documents if not is_held_out(key, SHARE)
    ]
    assert sequences == len(read["mmc4"]) + len(read["pairs"])


def test_held_out_samples_are_spread_over_the_shards(whole: TrainPlan):
    source = open_stream(whole, None, Ranks()).mixture.sources["pairs"]
    places = held_out_places(source, 4)
    assert len({place.shard for place in places}) == 4  # of five shards
    every = held_out_places(source, 30 * 16)
    assert {p.key for p in every} == {
        pair(n).key for n in range(30) if is_held_out(pair(n).key, SHARE)
    }


def test_losses_by_corpus_are_logged_at_intervals(whole: TrainPlan):
    rows = read_metrics(Path(whole.out))
    assert [row["step"] for row in rows if FIELDS[0] in row] == [2, 4, 6]
    assert all(set(FIELDS) <= set(row) for row in rows[1::2])
    assert all(0 <= row["data_wait"] <= 1 for row in rows)
    model, _ = load_model(Path(whole.out) / "model")
    stream, one = open_stream(whole, None, Ranks()), torch.ones(())
    source = stream.mixture.sources["pairs"]
    model.eval()
    batches, bad = stream.held_out(source, held_out_places(source, 5))
    assert not bad
    with torch.no_grad():
        found = [
            (EmuLosses(model, "float32")(b, one, one), EmuLosses(model, "float32").counts(b))
            for b in batches
        ]
    texts = sum(float(losses[1] * counts[0]) for losses, counts in found)
    assert rows[-1]["validation_text_loss/pairs"] == pytest.approx(
        texts / sum(float(counts[0]) for _, counts in found), rel=1e-5
    )


def test_validation_changes_no_weight_and_a_resumed_run_repeats_it(
    whole: TrainPlan, tmp_path: Path
):
    plan = replace(whole, out=str(tmp_path), train=replace(whole.train, validate_every=3))
    stopped_after(plan, 5)
    train(plan)
    assert are_equal(weights_of(tmp_path / "model"), weights_of(Path(whole.out) / "model"))
    ours, theirs = read_metrics(tmp_path)[-1], read_metrics(Path(whole.out))[-1]
    assert [ours[name] for name in FIELDS] == [theirs[name] for name in FIELDS]


def test_three_ranks_measure_the_same(whole: TrainPlan, tmp_path: Path):
    """Also where a rank has fewer micro-batches than others."""
    rates = replace(whole.train.optim, vision_lr=0, former_lr=0, language_lr=0)
    config = replace(whole.train, optim=rates, steps=2, batch_size=3)
    alone = replace(whole, out=str(tmp_path / "alone"), train=config)
    train(alone)
    three = replace(alone, out=str(tmp_path / "three"), train=replace(config, batch_size=1))
    (tmp_path / "three").mkdir()
    ranks = [start(train_rank, rank, 3, three) for rank in range(3)]
    for rank in ranks:
        rank.join(240)
        assert rank.exitcode == 0
    ours, theirs = read_metrics(tmp_path / "three")[-1], read_metrics(tmp_path / "alone")[-1]
    assert [ours[n] for n in FIELDS] == pytest.approx([theirs[n] for n in FIELDS], rel=1e-6)


def test_a_part_without_samples_is_refused(whole: TrainPlan, tmp_path: Path):
    plan = replace(whole, out=str(tmp_path), train=replace(whole.train, held_out=1e-9))
    with pytest.raises(
        DatasetError, match=r"none of its 24 samples is in the held-out part of 1e-09; raise"
    ):
        check_plan(plan)


def test_another_held_out_part_is_another_run(whole: TrainPlan):
    with pytest.raises(CheckpointError, match=r"train.held_out: was 0.3, now None"):
        train(replace(whole, train=replace(whole.train, held_out=0.0)))
