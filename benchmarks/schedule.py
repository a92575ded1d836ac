"""Compares the scheduler with one request after the other, as JSON lines; both sides alternate within one process.

    SUBJECTS: mixed (16 requests at once: captions, questions, images, interleaved replies; against one by one through
    the loop over one cache), images_8 and images_16 (so many images regressed together, against one by one), single
    (one image through the scheduler against the loop: what paging costs), prefix (a second question over the same
    eight examples with images, against the first)

The model has about 100 million random parameters in float32, as in benchmarks/generate.py. Ratios hold within a run.
Options: `python -m benchmarks.schedule --help`.
"""

import itertools
import json
import os
import statistics
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import tyro
from torch import Tensor

from benchmarks.generate import Side, machine, measure
from benchmarks.random_emu import random_engine, synthetic_image, text_of
from emu.generate.engine import Engine
from emu.generate.kv_cache import DecodeState
from emu.generate.products import Products
from emu.generate.prompts import Prompt, TextOptions
from emu.generate.request_state import Request, RequestState
from emu.generate.sampling import Detokenizer, decode_text
from emu.generate.scheduler import ScheduleOptions, Scheduler
from emu.models.language_model import LanguageModel

Subject = Literal["mixed", "images_8", "images_16", "single", "prefix"]
Result = dict[int, tuple[list[list[int]], list[Tensor]]]
"""By the number of a request: the ids of its texts, and its images."""
NEW_TOKENS = 32
PRODUCTS: dict[LanguageModel, Products] = {}  # a server copies the weights once


@dataclass(frozen=True)
class Comparison:
    """Compares the scheduler with one request after the other. Subjects: benchmarks/schedule.py."""

    subjects: tuple[Subject, ...] = ("mixed", "images_8", "images_16", "single", "prefix")
    """What is compared."""
    num_rounds: int = 3
    """Rounds of each subject, alternating between both sides; medians are printed."""
    num_threads: int = 1
    """Threads of torch."""
    width: int = 1024
    """Width of the language model."""
    layers: int = 8
    """Layers of the language model."""


def requests_of(engine: Engine, subject: Subject) -> list[Request]:
    """The requests of a subject."""
    text = TextOptions(max_new_tokens=NEW_TOKENS, min_length=NEW_TOKENS + 2)
    if subject == "mixed":
        return [_mixed(engine, number, text) for number in range(16)]
    number = {"images_8": 8, "images_16": 16}.get(subject, 1)
    return [_image(engine, text_of(engine, 40 + 5 * n, n), None, n) for n in range(number)]


def _mixed(engine: Engine, number: int, text: TextOptions) -> Request:
    words = text_of(engine, 15 + 5 * number, number)
    if number % 4 == 0:
        return Request(engine.encode([synthetic_image(), words]), text, row=number)
    if number % 4 == 1:
        return Request(engine.encode(words), text, row=number)
    return _image(engine, words, None if number % 4 == 2 else text, number)


def _image(engine: Engine, prompt: Prompt, text: TextOptions | None, number: int) -> Request:
    num_reserved = engine.config.former.num_queries + 1
    encoded = engine.encode(prompt, opens_image=True, num_reserved=num_reserved)
    return Request(encoded, text, image_first=True, max_images=1, row=number)


def scheduled(engine: Engine, requests: list[Request]) -> Result:
    """All requests at once, in a scheduler of their own."""
    options = ScheduleOptions(num_pages=512)
    products = PRODUCTS.setdefault(engine.model.language, Products(engine.model.language, 2**30))
    return run(Scheduler(engine.model, engine.tokenizer, options, {}, products), requests)


def run(scheduler: Scheduler, requests: list[Request]) -> Result:
    """The results of requests that are submitted together."""
    states: list[RequestState] = [scheduler.submit(request) for request in requests]
    images: dict[RequestState, list[Tensor]] = {state: [] for state in states}
    while scheduler.num_waiting or scheduler.num_running:
        for state, output in scheduler.step():
            if isinstance(output, Tensor):
                images[state].append(output)
    return {s.request.row: ([text.ids for text in s.texts], images[s]) for s in states}


@torch.inference_mode()
def looped(engine: Engine, requests: list[Request]) -> Result:
    """One request after the other, each with its own cache."""
    found: Result = {}
    for request in requests:
        state = DecodeState(engine.model, [request.prompt])
        ids: list[list[int]] = []
        images: list[Tensor] = []
        if request.image_first:
            image_BQD = state.regress_image()
            images.append(image_BQD[0])
            if request.text is not None:
                state.close_image(image_BQD)
        if request.text is not None:
            text = Detokenizer(engine.tokenizer, request.text.max_new_tokens)
            for _ in decode_text(state, [text], request.text):
                pass
            ids.append(text.ids)
        found[request.row] = ids, images
    return found


def prefix_sides(engine: Engine) -> tuple[Side, Side]:
    """A question over eight examples whose pages are known, and over eight that are not."""
    image = synthetic_image()
    examples: list[Any] = []
    for number in range(8):
        examples += [image.rotate(9 * number), text_of(engine, 8, number)]
    questions = itertools.count(90)
    current: list[Request] = []

    def ask() -> (
        None
    ):  # a new one each time: pages that a question fills would be known the second time
        words = text_of(engine, 12, next(questions))
        current[:] = [Request(engine.encode([*examples, words]), TextOptions(max_new_tokens=1))]

    warm = Scheduler(engine.model, engine.tokenizer, ScheduleOptions(num_pages=512))
    ask()
    run(warm, current)

    def known() -> Result:
        ask()
        return run(warm, current)

    def cold() -> Result:
        return scheduled(engine, current)

    return known, cold


def agreement(ours: Result, other: Result) -> dict[str, Any]:
    """How far the results differ; raises AssertionError if ids do."""
    largest, num_ids = 0.0, 0
    for row, (ids, images) in ours.items():
        assert ids == other[row][0], f"request {row}: the texts differ"
        num_ids += sum(map(len, ids))
        pairs = zip(images, other[row][1], strict=True)
        largest = max([largest, *[float((a - b).abs().max()) for a, b in pairs]])
    return {"same_ids": num_ids, "largest_difference": largest}


def compare(subject: Subject, engine: Engine, num_rounds: int) -> dict[str, Any]:
    """The line of a subject: medians of the ratios within each round."""
    if subject == "prefix":
        ours, other = prefix_sides(engine)
    else:
        requests = requests_of(engine, subject)
        ours, other = lambda: scheduled(engine, requests), lambda: looped(engine, requests)
    ours()  # warm-up: memory, thread pools
    wall: list[float] = []
    cpu: list[float] = []
    costs: list[tuple[float, float]] = []
    found: dict[str, Any] = {}
    for _ in range(num_rounds):
        (our_cost, our_result), (other_cost, other_result) = measure(ours), measure(other)
        found = agreement(our_result, other_result)
        wall.append(other_cost.wall_s / our_cost.wall_s)
        cpu.append(other_cost.cpu_s / our_cost.cpu_s)
        costs.append((our_cost.cpu_s, other_cost.cpu_s))
    line = {"subject": subject, "times_faster": _rounded(wall), "times_less_cpu": _rounded(cpu)}
    ours_s, other_s = (round(statistics.median(side), 3) for side in zip(*costs, strict=True))
    return line | {"ours_cpu_s": ours_s, "other_cpu_s": other_s} | found


def _rounded(ratios: list[float]) -> dict[str, float]:
    """Median, least and largest."""
    values = {"median": statistics.median(ratios), "least": min(ratios), "largest": max(ratios)}
    return {name: round(value, 2) for name, value in values.items()}


def main() -> None:
    """Prints the machine, then a line per subject."""
    options = tyro.cli(Comparison)
    torch.set_num_threads(options.num_threads)
    load = {"load": os.getloadavg()[0]}
    print(json.dumps(machine() | load | asdict(options)), flush=True)
    engine = random_engine(0, options.width, options.layers)
    for subject in options.subjects:
        print(json.dumps(compare(subject, engine, options.num_rounds)), flush=True)


if __name__ == "__main__":
    main()
