"""Requests of all kinds that join, leave and share pages give what they give alone."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

import emu
from emu.generate.batch_loop import BatchLoop, StepFailed
from emu.generate.engine import Engine
from emu.generate.kv_cache import DecodeState
from emu.generate.prompts import EncodedPrompt, Prompt, TextOptions, TokenScore
from emu.generate.request_state import Finished, Losses, Output, PromptScores, Request, RequestState
from emu.generate.sampling import Detokenizer, decode_text
from emu.generate.scheduler import QueueFull, ScheduleOptions, Scheduler
from emu.generate.scoring import rank_request
from tests.generate.test_adapters import write_adapter

ANSWERS = ["red", "a blue square", "a blue circle", "it is green", "red", "stars"]
LONG = "what colour is the triangle in the picture? it is green, describe the image in detail. "
ROUNDING = 1e-3
"""What differences by rounding grow to in eight steps of a model with random adapters, where the products of a row
depend on the rows beside it: without packed weights (1e-5 without adapters)."""


@dataclass
class Answer:
    """What came out of a request."""

    ids: list[list[int]]
    images: list[Tensor]
    reason: str
    numbers: list[float] = field(default_factory=list)  # losses and log-probabilities


@pytest.fixture(scope="module")
def opening(tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """An engine with an adapter whose model opens images: `[IMG]` is likelier than a token that it often writes."""
    engine = emu.load(tiny_dir)
    folder = tmp_path_factory.mktemp("adapter")
    engine.load_adapter("tuned", write_adapter(tiny_dir, folder, seed=1, rank=3))
    often = engine.generate_ids([LONG], TextOptions(max_new_tokens=4))[0][-1]
    with torch.no_grad():
        rows = engine.model.language.lm.lm_head.weight
        rows[engine.config.special.image_start] = 1.02 * rows[often]
    return engine


@pytest.fixture(scope="module")
def requests(opening: Engine, photo: Image.Image) -> list[Request]:
    """Captions, questions, sampled texts, images and interleaved replies; some share their beginnings."""
    prompts: list[Prompt] = [
        "a red circle",
        LONG,
        LONG + "two blue squares",
        [photo, "describe the image"],
        [photo, photo.rotate(90), LONG],
    ]
    made: list[Request] = []
    for number, prompt in enumerate(prompts):
        closed = opening.encode(prompt)
        opened = opening.encode(prompt, opens_image=True, num_reserved=9)
        sampled = TextOptions(max_new_tokens=7, do_sample=True, top_p=0.9, seed=number)
        made += [
            Request(closed, TextOptions(max_new_tokens=6)),
            Request(closed, sampled, row=2),
            Request(opened, None, image_first=True),
            Request(closed, TextOptions(max_new_tokens=9), max_images=2),
            Request(closed, TextOptions(max_new_tokens=6, num_beams=3, length_penalty=-1.0)),
            rank_request(closed, [_answered(opening, closed, answer) for answer in ANSWERS]),
            Request(opened, TextOptions(max_new_tokens=3, min_length=3), True, 1),
        ]
    for prompt in prompts[1:4]:
        closed, opened = (
            opening.with_adapter("tuned").encode(prompt, is_opened, num_reserved=9)
            for is_opened in (False, True)
        )
        made[-1:-1] = [
            Request(closed, TextOptions(max_new_tokens=6), adapter="tuned"),
            Request(opened, None, image_first=True, adapter="tuned"),
            rank_request(closed, [_answered(opening, closed, a) for a in ANSWERS], "tuned"),
        ]
    scored = TextOptions(max_new_tokens=4, num_logprobs=2, prompt_logprobs=True)
    searched = TextOptions(max_new_tokens=4, num_beams=2)
    made[-1:-1] = [
        Request(made[0].prompt, scored),
        Request(made[2].prompt, searched, image_first=True),
    ]
    return made


def _answered(engine: Engine, prompt: EncodedPrompt, answer: str) -> EncodedPrompt:
    return engine.encode.encode_joined(f"{prompt.text} {answer}", prompt.pixels)


def collect(answer: Answer, state: RequestState, output: Output) -> None:
    if isinstance(output, Tensor):
        answer.images.append(output)
    elif isinstance(output, Losses):
        answer.numbers += output.losses
    elif isinstance(output, TokenScore | PromptScores):
        scores = [output] if isinstance(output, TokenScore) else output.scores
        answer.numbers += [score.logprob or 0.0 for score in scores]
    elif isinstance(output, Finished):
        answer.ids, answer.reason = [text.ids for text in state.texts], output.reason


def alone(engine: Engine, request: Request) -> Answer:
    scheduler = engine.scheduler(ScheduleOptions(64, deterministic=True))
    state, answer = scheduler.submit(request), Answer([], [], "")
    while not answer.reason:
        for _, output in scheduler.step():
            collect(answer, state, output)
    assert scheduler.pool.num_used == 0
    return answer


@pytest.fixture(scope="module")
def answers(opening: Engine, requests: list[Request]) -> list[Answer]:
    return [alone(opening, request) for request in requests]


def check_equal(found: Answer, expected: Answer, tolerance: float = ROUNDING) -> None:
    assert (found.ids, found.reason) == (expected.ids, expected.reason)
    assert found.numbers == pytest.approx(expected.numbers, abs=10 * tolerance)
    assert len(found.images) == len(expected.images)
    for one, other in zip(found.images, expected.images, strict=True):
        assert (one - other).abs().max() <= tolerance


def run_schedule(engine: Engine, requests: list[Request], answers: list[Answer], seed: int) -> int:
    """Runs random arrivals and aborts over a small pool; gives the pages that were shared."""
    rng = random.Random(seed)
    options = ScheduleOptions(
        num_pages=rng.choice((16, 24, 60)),
        max_rows=rng.choice((2, 4, 9)),
        chunk=rng.choice((5, 16, 40, 256)),
        max_prompt_positions=rng.choice((20, 64, 512)),
        max_cached_images=rng.choice((0, 1, 8)),
        deterministic=seed % 4 == 0,
        max_packed_mb=1024 * (seed % 4 != 1),
    )
    scheduler = engine.scheduler(options)
    arrivals = sorted((rng.randrange(12), rng.randrange(len(requests))) for _ in range(8))
    aborts = {n: arrivals[n][0] + rng.randrange(15) for n in range(8) if rng.random() < 0.25}
    states: dict[RequestState, int] = {}
    found = [Answer([], [], "") for _ in arrivals]
    time = 0
    while time <= 30 or scheduler.num_running or scheduler.num_waiting:
        for number, (arrival, kind) in enumerate(arrivals):
            if arrival == time:
                states[scheduler.submit(requests[kind])] = number
        ended = [s for s, n in states.items() if aborts.get(n) == time]
        for state in ended:
            scheduler.abort(state)
        for state, output in scheduler.step():
            assert state not in ended
            collect(found[states[state]], state, output)
        assert all(state.table is None for state in ended)
        time += 1
        assert time < 2000, "the schedule does not end"
    tolerance = 0.0 if scheduler.is_steady else ROUNDING
    for number, (_, kind) in enumerate(arrivals):
        if found[number].reason or number not in aborts:
            check_equal(found[number], answers[kind], tolerance)
    assert scheduler.pool.num_used == 0
    return scheduler.pool.num_hits


def test_requests_give_what_they_give_alone(
    opening: Engine, requests: list[Request], answers: list[Answer]
) -> None:
    hits = [run_schedule(opening, requests, answers, seed) for seed in range(40)]
    assert sum(hits) > 0, "no page was shared"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_thousand_schedules(
    opening: Engine, requests: list[Request], answers: list[Answer]
) -> None:
    hits = [run_schedule(opening, requests, answers, seed) for seed in range(1000, 2000)]
    print(f"schedules={len(hits)} pages_shared={sum(hits)}")


def test_the_kinds_cover_what_replies_can_be(
    requests: list[Request], answers: list[Answer]
) -> None:
    opened = [a for r, a in zip(requests, answers, strict=True) if a.images and not r.image_first]
    assert opened, "the model opened no image"
    assert any(len(answer.ids) > 1 for answer in opened), "no text follows an opened image"
    assert {answer.reason for answer in answers} <= {"stop", "length"}


def test_answers_are_those_of_the_plain_loops(
    opening: Engine, requests: list[Request], answers: list[Answer]
) -> None:
    model = opening.model
    for request, answer in zip(requests, answers, strict=True):
        is_search = request.text is not None and request.text.num_beams > 1
        if request.max_images > 1 or request.answers or is_search or request.adapter:
            continue  # that opens images; the others are compared with what is published and with plain forwards
        if request.row and request.text is not None:
            continue  # that samples with the seed of another row
        state = DecodeState(model, [request.prompt])
        if request.image_first:
            image_BQD = state.regress_image()
            assert (image_BQD[0] - answer.images[0]).abs().max() < 1e-4
            state.close_image(image_BQD)
        if request.text is not None:
            text = Detokenizer(opening.tokenizer, request.text.max_new_tokens)
            for _ in decode_text(state, [text], request.text):
                pass
            assert text.ids == answer.ids[0]


def test_a_queue_is_bounded_and_too_large_requests_are_named(
    opening: Engine, requests: list[Request]
) -> None:
    options = ScheduleOptions(num_pages=4, max_rows=1, max_waiting=1)
    scheduler = Scheduler(opening.model, opening.tokenizer, options)
    for _ in range(2):
        scheduler.submit(requests[0])
    with pytest.raises(QueueFull, match="2 requests wait"):
        scheduler.submit(requests[0])
    with pytest.raises(ValueError, match=r"pages of 16 positions, the pool has 4"):
        scheduler.submit(requests[-1])


def test_changed_weights_share_no_pages(opening: Engine, requests: list[Request]) -> None:
    scheduler = Scheduler(opening.model, opening.tokenizer, ScheduleOptions(num_pages=64))

    def run() -> int:
        before = scheduler.pool.num_hits
        scheduler.submit(requests[-1])
        while scheduler.num_waiting or scheduler.num_running:
            scheduler.step()
        return scheduler.pool.num_hits - before

    assert (run(), run() > 0) == (0, True)
    with torch.no_grad():
        opening.model.language.lm.lm_head.weight.mul_(1.0)
    assert run() == 0


@pytest.fixture
def loop(opening: Engine) -> Iterator[BatchLoop]:
    loop = BatchLoop(Scheduler(opening.model, opening.tokenizer, ScheduleOptions(num_pages=64)))
    yield loop
    loop.close()


def test_a_loop_serves_threads_and_frees_what_was_left(
    loop: BatchLoop, requests: list[Request], answers: list[Answer]
) -> None:
    left = loop.outputs(requests[0])
    next(left)
    left.close()
    found = Answer([], [], "")
    for state, output in loop.outputs(requests[3]):
        collect(found, state, output)
    check_equal(found, answers[3])
    assert loop.scheduler.num_running == 0 and loop.scheduler.pool.num_used == 0


def test_a_step_that_fails_ends_its_requests_and_no_later_one(
    loop: BatchLoop, opening: Engine, requests: list[Request], answers: list[Answer]
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("no memory")

    hook = opening.model.language.lm.lm_head.register_forward_hook(fail)
    with pytest.raises(StepFailed, match="a step of the model failed"):
        list(loop.outputs(requests[0]))
    hook.remove()
    found = Answer([], [], "")
    for state, output in loop.outputs(requests[0]):
        collect(found, state, output)
    check_equal(found, answers[0])
    assert loop.scheduler.pool.num_used == 0
