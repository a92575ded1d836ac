"""Sampling tokens, ending texts, and the errors of wrong options."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emu.generate.beam import Search
from emu.generate.engine import Engine
from emu.generate.prompts import ImageOptions, TextOptions
from emu.generate.sampling import Detokenizer, Sampler, nucleus

PROMPT = "describe the image"


def test_a_seed_repeats_and_another_differs(engine: Engine) -> None:
    def sampled(seed: int) -> list[str]:
        return engine.generate_text(
            [PROMPT], TextOptions(do_sample=True, temperature=3.0, seed=seed)
        )

    assert sampled(5) == sampled(5)
    assert sampled(5) != sampled(6)


def test_small_top_p_is_greedy(engine: Engine) -> None:
    greedy = engine.generate_ids([PROMPT], TextOptions(max_new_tokens=8))
    sampled = engine.generate_ids(
        [PROMPT], TextOptions(max_new_tokens=8, do_sample=True, top_p=1e-6)
    )
    assert sampled == greedy


def test_the_nucleus_holds_just_enough() -> None:
    probabilities = torch.tensor([[0.1, 0.5, 0.15, 0.25]])
    assert nucleus(probabilities, 0.7).tolist() == torch.tensor([[0.0, 0.5, 0.0, 0.25]]).tolist()
    assert nucleus(probabilities, 0.5).count_nonzero() == 1
    assert nucleus(probabilities, 1.0).equal(probabilities)


def test_samples_follow_the_distribution() -> None:
    logits = torch.log(torch.tensor([[0.2, 0.8]])).expand(4000, 2)
    chosen = Sampler(TextOptions(do_sample=True), 4000)(logits)
    assert sum(chosen) / 4000 == pytest.approx(0.8, abs=0.03)


def test_text_ends_before_a_stop_string(engine: Engine) -> None:
    (whole,) = engine.generate_text(
        [PROMPT], TextOptions(max_new_tokens=12, do_sample=True, temperature=9.0)
    )
    middle = whole[len(whole) // 2 :][:3]
    (cut,) = engine.generate_text(
        [PROMPT], TextOptions(max_new_tokens=12, do_sample=True, temperature=9.0, stop=(middle,))
    )
    assert cut == whole[: whole.index(middle)]


def test_min_length_keeps_the_end_away(engine: Engine) -> None:
    bias = torch.zeros(engine.config.num_embeddings)
    bias[engine.config.special.eos] = 1e4
    head = engine.model.language.lm.lm_head
    hook = head.register_forward_hook(lambda _module, _args, logits: logits + bias)
    try:
        for beams in (1, 3):
            (ids,) = engine.generate_ids([PROMPT], TextOptions(num_beams=beams))
            assert ids == [1, 2]
            (ids,) = engine.generate_ids([PROMPT], TextOptions(num_beams=beams, min_length=6))
            assert len(ids) == 7 and ids[-1] == 2  # 6 with the start id, then the end
    finally:
        hook.remove()


def test_the_last_position_ends_a_text(engine: Engine) -> None:
    limit = engine.config.language.max_positions
    ids = engine.encode("a red circle ").ids
    words = "a red circle " * ((limit - 10) // (len(ids) - 1))
    left = limit - len(engine.encode(words).ids)
    assert left > 0
    (answer,) = engine.generate_ids(
        [words], TextOptions(max_new_tokens=left + 50, min_length=limit)
    )
    assert len(answer) == 1 + left


def test_beams_score_at_least_as_high_as_greedy(engine: Engine) -> None:
    def score(ids: list[int]) -> float:
        whole = torch.tensor([[*engine.encode(PROMPT).ids, *ids[1:]]])
        with torch.inference_mode():
            logits = engine.model.language.head(engine.model.language(engine.model.embed(whole)))
        log_probs = logits[0, :-1].log_softmax(-1).gather(1, whole[0, 1:, None])
        return float(log_probs[-(len(ids) - 1) :].sum())

    options = {"max_new_tokens": 6, "min_length": 20}
    (greedy,) = engine.generate_ids([PROMPT], TextOptions(**options))
    (beams,) = engine.generate_ids([PROMPT], TextOptions(num_beams=8, **options))
    assert score(beams) >= score(greedy) - 1e-5


def test_a_search_finishes_by_the_published_rules() -> None:
    search = Search(num_beams=2, length_penalty=1.0, limit=5)
    origins = search.advance([(-1.0, 0, 7), (-1.5, 0, 2), (-2.0, 0, 8), (-9.0, 1, 7)], eos=2)
    assert (origins, search.beams, search.scores) == ([0, 0], [[7], [8]], [-1.0, -2.0])
    assert search.finished == [(-1.5, [2])] and not search.is_over
    # an end below the first num_beams ranks does not count
    search.advance([(-1.1, 0, 9), (-2.1, 1, 9), (-2.2, 0, 2), (-9.0, 1, 3)], eos=2)
    assert len(search.finished) == 1
    search.advance([(-1.2, 0, 2), (-5.0, 0, 9), (-6.0, 1, 9), (-9.0, 1, 3)], eos=2)
    assert search.finished[0] == (pytest.approx(-1.2 / 3), [7, 9, 2])
    assert not search.is_over  # -1.5 may still be beaten at length 3: -1.2 / 3
    search.advance([(-5.1, 0, 2), (-5.2, 0, 4), (-6.1, 1, 4), (-9.0, 1, 3)], eos=2)
    assert search.is_over or len(search.finished) == 2
    assert search.best() == [7, 9, 2]


@given(
    st.lists(st.integers(0, 280), max_size=40), st.lists(st.text("ae r", min_size=1), max_size=3)
)
@settings(max_examples=60, deadline=None)
def test_pieces_join_to_the_text(engine: Engine, ids: list[int], stop: list[str]) -> None:
    text = Detokenizer(engine.tokenizer, 1000, stop)
    joined = text.push_all(ids)
    assert text.text.startswith(joined)
    if text.reason is None:
        joined += text.push(engine.config.special.eos)
    assert joined == text.text
    assert not any(s in text.text for s in stop)


def test_half_a_character_is_held_back(engine: Engine) -> None:
    ids = engine.tokenizer.encode("é€", bos=False)
    text = Detokenizer(engine.tokenizer, 100)
    pieces = [text.push(token) for token in [*ids, engine.config.special.eos]]
    assert "".join(pieces).strip() == "é€"
    assert all("\ufffd" not in piece for piece in pieces)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"num_beams": 0}, "num_beams is 0"),
        ({"num_beams": 2, "do_sample": True}, "one or the other"),
        ({"temperature": 0}, "temperature is 0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"stop": "end"}, "give a tuple"),
        ({"stop": ("",)}, "empty string"),
        ({"max_new_tokens": True}, "whole number"),
    ],
)
def test_wrong_text_options_are_named(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TextOptions(**arguments)  # type: ignore[arg-type]


def test_wrong_image_options_are_named() -> None:
    with pytest.raises(ValueError, match="height is -8"):
        ImageOptions(height=-8)
    with pytest.raises(ValueError, match="num_inference_steps is 0"):
        ImageOptions(num_inference_steps=0)
    with pytest.raises(ValueError, match="guidance_scale is nan"):
        ImageOptions(guidance_scale=float("nan"))
