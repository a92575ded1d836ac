"""Log-probabilities of new tokens and of prompts, against one forward over the whole sequence."""

import pytest
import torch
from PIL import Image

from emu.generate.engine import Engine
from emu.generate.prompts import Prompt, Reply, TextOptions, TokenScore
from emu.generate.scheduler import ScheduleOptions
from schemas.validation import ConfigError


def whole_log_probs(engine: Engine, prompt: Prompt, new: list[int]) -> torch.Tensor:
    """The log-probabilities `LW` at every position of prompt and new tokens."""
    encoded = engine.encode(prompt)
    ids = torch.tensor([[*encoded.ids, *new]])
    pixels = torch.stack(encoded.pixels) if encoded.pixels else None
    scores = engine.model.score(ids, torch.ones_like(ids), pixels)
    return scores.logits_BLV[0].log_softmax(-1)


def test_scores_are_those_of_one_forward(engine: Engine, photo: Image.Image) -> None:
    prompt: Prompt = [photo, "what colour is it?"]
    options = TextOptions(max_new_tokens=5, num_logprobs=3, prompt_logprobs=True, min_length=20)
    *events, reply = engine.stream(prompt, options)
    assert isinstance(reply, Reply)
    assert [e for e in events if isinstance(e, TokenScore)] == list(reply.scores)
    kinds = [isinstance(event, TokenScore) for event in events]
    assert kinds == [True, False] * 5, "a score comes before the piece of its token"
    ids, start = engine.encode(prompt).ids, len(engine.encode(prompt).ids)
    expected_LW = whole_log_probs(engine, prompt, [score.token for score in reply.scores])
    for number, score in enumerate(reply.scores):
        row_W = expected_LW[start - 1 + number]
        assert score.logprob == pytest.approx(float(row_W[score.token]), abs=1e-4)
        assert [token for token, _, _ in score.top] == row_W.topk(3).indices.tolist()
    assert [score.token for score in reply.prompt_scores] == list(ids)
    for number, score in enumerate(reply.prompt_scores):
        if number == 0 or score.token == engine.config.special.image:
            assert score.logprob is None
            continue
        expected = float(expected_LW[number - 1, ids[number]])
        assert score.logprob == pytest.approx(expected, abs=1e-4)
        assert score.text == engine.tokenizer.piece(score.token)


def test_scores_are_the_models_and_not_the_samplers(engine: Engine) -> None:
    options = TextOptions(
        max_new_tokens=3, do_sample=True, temperature=0.01, num_logprobs=0, min_length=9
    )
    scores = engine.generate("a red", options).scores
    expected_LW = whole_log_probs(engine, "a red", [score.token for score in scores])
    start = len(engine.encode("a red").ids) - 1
    for number, score in enumerate(scores):
        expected = float(expected_LW[start + number, score.token])
        assert score.logprob == pytest.approx(expected, abs=1e-4) and score.top == ()


def test_a_known_prompt_is_scored_as_a_new_one(tiny_dir: object, engine: Engine) -> None:
    shared = Engine(engine.model, engine.tokenizer)
    loop = shared.start_batching(ScheduleOptions(num_pages=64, chunk=7))
    prompt = "what colour is the triangle in the picture? it is green " * 2
    options = TextOptions(max_new_tokens=1, num_logprobs=0, prompt_logprobs=True)
    first, second = (shared.generate(prompt, options).prompt_scores for _ in range(2))
    assert len(first) == len(shared.encode(prompt).ids) and first == second
    shared.generate(prompt, TextOptions(max_new_tokens=1))
    counters = loop.scheduler.counters()
    assert counters.prefix_pages_hit > 0 and counters.finished == 3 and counters.tokens == 3
    assert (counters.num_running, counters.num_waiting, counters.num_pages_used) == (0, 0, 0)
    loop.close()


def test_pieces_tell_words_bytes_and_special_tokens(engine: Engine) -> None:
    ids = engine.tokenizer.encode("a\na[IMG]")
    assert [engine.tokenizer.piece(token) for token in ids] == ["<s>", " a", "<0x0A>", "a", "[IMG]"]


def test_wrong_options_are_named() -> None:
    with pytest.raises(ConfigError, match="num_logprobs is 21"):
        TextOptions(num_logprobs=21)
    with pytest.raises(ConfigError, match="prompt_logprobs is True with num_logprobs None"):
        TextOptions(prompt_logprobs=True)
    with pytest.raises(ConfigError, match="num_logprobs is 1 with num_beams 3"):
        TextOptions(num_logprobs=1, num_beams=3)
