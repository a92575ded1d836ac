"""The baselines of `benchmarks.generate` against the golden record and against the engine."""

import pytest
import torch

from benchmarks.generate import agreement, compare
from benchmarks.plain_generate import plain_losses, plain_regress, ranks
from benchmarks.random_emu import random_answers, random_engine, synthetic_image, text_of
from emu.generate.engine import Engine
from tests.generate.conftest import Golden


def test_the_plain_loop_gives_the_published_embeddings(golden_pretrain: Golden) -> None:
    engine, expected = golden_pretrain.engine, golden_pretrain.expected
    prompts = golden_pretrain.meta["image_prompts"]
    for number, text in enumerate(prompts["text"]):
        found = plain_regress(engine.model, engine.encode(text, opens_image=True))
        assert (found - expected["image_embeds_text"][number]).abs().max() < 1e-4
    first, between, after = prompts["blend"][0].split("[<IMG_PLH>]")
    one, other = expected["pixel_values"][:2]
    blend = engine.encode([first, one, between, other, after], opens_image=True)
    found = plain_regress(engine.model, blend)
    assert (found - expected["image_embeds_blend"][0]).abs().max() < 1e-4


def test_the_plain_ranks_are_the_published_ones(golden_instruct: Golden) -> None:
    meta, expected = golden_instruct.meta, golden_instruct.expected
    for number, candidates in enumerate(meta["candidates"]):
        image = expected["pixel_values"][number]
        prompt = golden_instruct.pieces(meta["prompts"][number], [image])
        losses = plain_losses(golden_instruct.engine, prompt, candidates)
        assert ranks(losses) == expected["candidate_ranks"][number].tolist()


@pytest.fixture(scope="module")
def small() -> Engine:
    return random_engine(width=128, layers=2)


def test_both_sides_of_every_subject_agree(small: Engine) -> None:
    for subject in ("image_60", "image_200", "image_60_batch", "text", "rank"):
        line = compare(subject, small, num_rounds=1)  # raises where the results differ
        assert line["subject"] == subject and line["plain_wall_s"] > 0


def test_prompts_have_their_exact_lengths(small: Engine) -> None:
    for length in (20, 59, 200):
        assert len(small.encode(text_of(small, length, seed=length)).ids) == length
    answers = random_answers(100, seed=2)
    assert len(set(answers)) > 60 and synthetic_image().size == (256, 256)


def test_a_difference_is_noticed() -> None:
    wrong = torch.zeros(1, 8, 4)
    for subject, ours, plain in (
        ("image_60", wrong, wrong + 1e-3),
        ("text", [[1, 2]], [[1, 3]]),
        ("rank", [0.1, 0.2], [0.2, 0.1]),
    ):
        try:
            agreement(subject, ours, plain)  # type: ignore[arg-type]
        except AssertionError:
            continue
        raise AssertionError(f"{subject}: no difference seen")
