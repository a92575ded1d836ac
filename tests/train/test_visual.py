"""Pretraining of the visual parts: what is predicted, that it learns, what is written, refusals."""

import json
from pathlib import Path

import pytest
import torch

from emu.data.dataset import ShardReader
from emu.recipes import VisualTrainConfig, tiny, with_vocabulary
from emu.tokenizer import EmuTokenizer
from emu.train.start import learned_tokenizer
from emu.train.visual import CaptionHeads, VisualPlan, caption_classes, train_visual
from emu.weights.store import load_model
from jobs.train_visual import main
from pipelines.core.run import run
from pipelines.miniworld.config import PairsConfig
from pipelines.miniworld.pairs import pairs_pipeline
from schemas.sample import Sample, Segment
from tests.data.small_dataset import document, image_segment, write_dataset
from tests.exit_codes import exit_code


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("world") / "pairs"
    run(pairs_pipeline(PairsConfig(num_pairs=300)), str(out), progress=False)
    return out


def plan_of(pairs: Path, out: Path, **options: int) -> VisualPlan:
    tokenizer = out / "tokenizer.model"
    recipe = with_vocabulary(tiny(), learned_tokenizer([str(pairs)], tokenizer, 1000).num_pieces)
    train = VisualTrainConfig(**{"steps": 60, "batch_size": 16, "num_threads": 0, **options})
    return VisualPlan(
        str(pairs), str(out / "model"), str(tokenizer), recipe.model, recipe.sequence, train
    )


def test_predicted_are_the_tokens_that_tell_captions_apart(pairs: Path, tmp_path: Path) -> None:
    plan = plan_of(pairs, tmp_path)
    tokenizer = EmuTokenizer.load(plan.tokenizer)
    classes = set(caption_classes(ShardReader(plan.data, 0), tokenizer, 0.9).tolist())
    for word in ("red", "mint", "star", "top"):
        assert set(tokenizer.encode_text(f"a {word} on")) & classes, word
    assert not set(tokenizer.encode_text("on a background.")) & classes


def test_targets_are_the_classes_of_each_row() -> None:
    recipe = with_vocabulary(tiny(), 100)
    heads = CaptionHeads(recipe.model, torch.tensor([4, 7, 9]))
    labels_BL = torch.tensor([[4, 4, 5, -100], [9, 7, -100, -100]])
    assert heads.targets(labels_BL).tolist() == [[1, 0, 0], [0, 1, 1]]


def test_both_heads_learn_and_the_model_is_written(pairs: Path, tmp_path: Path) -> None:
    summary = train_visual(plan_of(pairs, tmp_path))
    rows = [
        json.loads(line) for line in (tmp_path / "model/metrics.jsonl").read_text().splitlines()
    ]
    assert [row["step"] for row in rows] == [10, 20, 30, 40, 50, 60]
    for name in ("encoder_loss", "former_loss"):
        assert rows[-1][name] < 0.9 * rows[0][name], name
    assert summary.num_images == 960 and 0 <= summary.former_recall <= 1
    model, tokenizer = load_model(tmp_path / "model")
    assert tokenizer.num_pieces == model.config.language.vocab_size


def test_the_same_seed_gives_the_same_weights(pairs: Path, tmp_path: Path) -> None:
    states = []
    for name in ("one", "two"):
        plan = plan_of(pairs, tmp_path / name, steps=3)
        train_visual(plan)
        states.append(load_model(plan.out)[0].state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    fresh = plan_of(pairs, tmp_path / "three", steps=3, seed=1)
    train_visual(fresh)
    changed = load_model(fresh.out)[0].state_dict()
    assert not torch.equal(states[0]["former.queries"], changed["former.queries"])


def test_the_job_trains_and_its_model_starts_a_training(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(["--data", str(pairs), "--out", str(out), "--steps", "2"]) == 0
    shown = capsys.readouterr().out
    assert "2 (64 images)" in shown and str(out / "model") in shown


def test_the_tokenizer_knows_the_words_of_later_trainings(pairs: Path, tmp_path: Path) -> None:
    later, out, yawn = tmp_path / "later", tmp_path, Segment.of_text("Zebras yawn.")
    samples = [Sample(f"zebra-{n}", "pairs", (image_segment(n), yawn)) for n in range(60)]
    write_dataset(later, samples)
    options = [f"--data={pairs}", "--steps=2", "--train.batch-size=4", "--train.num-threads=0"]
    assert main([*options, f"--out={out}/a"]) == 0
    assert main([*options, f"--out={out}/b", f"--tokenizer-data={later}"]) == 0
    alone, both = (EmuTokenizer.load(out / name / "model/tokenizer.model") for name in "ab")
    assert len(both.encode_text("Zebras yawn.")) == 3 < len(alone.encode_text("Zebras yawn."))
    assert exit_code(main, [*options, f"--out={out}/c", "--tokenizer=x", "--tokenizer-data=y"]) == 2


def test_documents_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_dataset(tmp_path / "documents", [document(n) for n in range(8)])
    arguments = ["--data", str(tmp_path / "documents"), "--out", str(tmp_path / "run")]
    assert main(arguments) == 2
    assert "image-text pairs" in capsys.readouterr().err
    assert not (tmp_path / "run" / "model").exists()
