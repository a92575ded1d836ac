"""All candidates over one prompt, against one forward per candidate."""

import random

import pytest
import torch
from PIL import Image

from emu.generate import scoring
from emu.generate.engine import Engine
from emu.generate.scoring import Tree

WORDS = ["a", "red", "blue", "green circle", "square", "two", "three", "it is", "yes", "no", "not"]


def plain_losses(engine: Engine, prompt: list[object], candidates: list[str]) -> list[float]:
    """One forward per candidate; the sum of the losses of its tokens."""
    start = len(engine.encode(prompt).ids)  # type: ignore[arg-type]
    losses = []
    for candidate in candidates:
        encoded = engine.encode([*prompt, " " + candidate])  # type: ignore[list-item]
        ids = torch.tensor([encoded.ids])
        pixels = torch.stack(encoded.pixels) if encoded.pixels else None
        logits = engine.model.score(ids, torch.ones_like(ids), pixels).logits_BLV[0, :-1]
        picked = logits.log_softmax(-1).gather(1, ids[0, 1:, None])
        losses.append(-float(picked[start - 1 :].sum()))
    return losses


def random_candidates(number: int) -> list[str]:
    generator = random.Random(3)
    return [" ".join(generator.choices(WORDS, k=generator.randint(1, 9))) for _ in range(number)]


@pytest.mark.parametrize("limit", [512, 40])
def test_losses_agree_with_one_forward_per_candidate(
    engine: Engine, photo: Image.Image, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(scoring, "MAX_POSITIONS", limit)
    prompt: list[object] = [photo, "what is in the picture?"]
    candidates = random_candidates(60)
    found = engine.candidate_losses(prompt, candidates, "sum")  # type: ignore[arg-type]
    assert found == pytest.approx(plain_losses(engine, prompt, candidates), abs=1e-4)


def test_the_released_score_divides_by_the_whole_length(engine: Engine) -> None:
    candidates = ["red", "a blue square"]
    sums = engine.candidate_losses("it is", candidates, "sum")
    lengths = [len(engine.encode(f"it is {text}").ids) for text in candidates]
    released = engine.candidate_losses("it is", candidates)
    assert released == [loss / length for loss, length in zip(sums, lengths, strict=True)]


def test_equal_candidates_keep_their_order(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "MAX_POSITIONS", 5)
    candidates = ["red", "a blue square", "red", "green", "a blue square", "red"]
    losses = engine.candidate_losses("it is", candidates)
    assert losses[0] == losses[2] == losses[5] and losses[1] == losses[4]
    ranks = engine.rank("it is", candidates)
    assert ranks.index(0) + 2 == ranks.index(2) + 1 == ranks.index(5)
    assert ranks.index(1) + 1 == ranks.index(4)


def test_a_thousand_candidates_take_bounded_memory(engine: Engine) -> None:
    candidates = random_candidates(1000)
    sizes: list[int] = []
    head = engine.model.language.lm.lm_head
    hook = head.register_forward_hook(lambda _module, _args, logits: sizes.append(len(logits)))
    try:
        ranks = engine.rank("a picture of", candidates)
    finally:
        hook.remove()
    assert sorted(ranks) == list(range(1000))
    assert len(sizes) > 1 and max(sizes) <= scoring.MAX_POSITIONS + 1


def test_shared_prefixes_run_once() -> None:
    tree = Tree()
    assert tree.add((7, 8, 9)) == [-1, 0, 1]
    assert tree.add((7, 8, 5, 4)) == [-1, 0, 1, 2]
    assert tree.add((7,)) == [-1] and tree.add((6, 8)) == [-1, 3]
    assert (tree.tokens, tree.parents, tree.depths) == ([7, 8, 5, 6], [-1, 0, 1, -1], [0, 1, 2, 0])
    assert tree.sees().int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 1]]


def test_one_candidate_of_one_token_and_an_empty_prompt(engine: Engine) -> None:
    assert engine.rank("", ["red"]) == [0]
    assert engine.rank([], ["red", "a"]) in ([0, 1], [1, 0])


def test_wrong_candidates_are_named(engine: Engine, photo: Image.Image) -> None:
    for wrong in ([], "red", ()):
        with pytest.raises(ValueError, match="candidates is"):
            engine.rank("a", wrong)
    for wrong in ("", "  ", "<image>", 3):
        with pytest.raises(ValueError, match=r"candidates\[1\] is"):
            engine.rank([photo], ["red", wrong])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="score is 'mean'"):
        engine.rank("a", ["b"], score="mean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"positions.*has 1024"):
        engine.rank("a", ["red", "circle " * 2000])
