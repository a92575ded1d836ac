"""What decoding images costs the text beside it, as JSON lines; both sides alternate within one process.

    SUBJECTS: gap (the 95th percentile of the time between text tokens of four callers while images are decoded, against
    without), reply (wall time of an image with text after it, against the longer of the two alone), step (the steps of
    the language model between the last visual step and the next token), batch (images of 1, 2, 4 and 8 decoded in
    one forward, against one by one)

Random weights; the language model and the U-Net have some 30 million parameters each. gap and reply need two cores.
Options: `python -m benchmarks.image_loop --help`.
"""

import json
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import tyro

from benchmarks.device_limits import SMALL_DECODER
from benchmarks.generate import machine, measure
from benchmarks.random_emu import random_engine, text_of
from emu.decoders.stable_diffusion import StableDiffusionDecoder
from emu.generate.engine import Engine
from emu.generate.image_loop import ImageJob, ImageLoop, ImageLoopOptions
from emu.generate.prompts import ImageOptions, TextOptions
from emu.generate.request_state import Request
from emu.generate.scheduler import ScheduleOptions

Subject = Literal["gap", "reply", "step", "batch"]
QUERIES = 32


@dataclass(frozen=True)
class Comparison:
    """Measures image decoding beside text. Subjects: benchmarks/image_loop.py."""

    subjects: tuple[Subject, ...] = ("step", "batch", "gap", "reply")
    """What is measured."""
    num_rounds: int = 3
    """Rounds of each subject; medians are printed."""
    num_tokens: int = 40
    """New tokens of each text."""
    num_inference_steps: int = 20
    """Denoising steps of an image."""
    width: int = 768
    """Width of the language model."""
    layers: int = 4
    """Layers of the language model."""
    channels: int = 128
    """Channels of the first level of the U-Net; the second has twice as many."""


def engine_of(options: Comparison) -> Engine:
    """A random engine with a random visual decoder."""
    engine = random_engine(0, options.width, options.layers)
    config = replace(SMALL_DECODER, unet_channels=(options.channels, 2 * options.channels))
    decoder = StableDiffusionDecoder.from_config(config, options.width, seed=1).eval()
    return Engine(engine.model, engine.tokenizer, decoder)


def image_options(options: Comparison) -> ImageOptions:
    """Of every image."""
    return ImageOptions(64, 64, num_inference_steps=options.num_inference_steps)


def text_options(options: Comparison) -> TextOptions:
    """Of every text: its length is fixed."""
    return TextOptions(max_new_tokens=options.num_tokens, min_length=options.num_tokens + 2)


def gaps(engine: Engine, options: Comparison) -> list[float]:
    """Seconds between the tokens of four texts that run together."""
    found: list[float] = []

    def read(number: int) -> None:
        before = None
        for _ in engine.stream(text_of(engine, 20, number), text_options(options)):
            now = time.perf_counter()
            if before is not None:
                found.append(now - before)
            before = now

    threads = [threading.Thread(target=read, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def gap(engine: Engine, options: Comparison) -> dict[str, Any]:
    """The ratio of the 95th percentiles, with and without images beside the texts."""
    ratios: list[float] = []
    embeddings_BQD = engine.regress_image([text_of(engine, 20, 5)])
    loop = ImageLoop(_decoder(engine))
    gaps(engine, options)
    for _ in range(options.num_rounds):
        quiet = statistics.quantiles(gaps(engine, options), n=20)[-1]
        stop = threading.Event()

        def decode(stop: threading.Event = stop) -> None:
            while not stop.is_set():
                jobs = [_job(embeddings_BQD[0], options, number) for number in range(4)]
                for image in [loop.submit(job) for job in jobs]:
                    image.result()

        thread = threading.Thread(target=decode)
        thread.start()
        ratios.append(statistics.quantiles(gaps(engine, options), n=20)[-1] / quiet)
        stop.set()
        thread.join()
    loop.close()
    return {"p95_ratio": round(statistics.median(ratios), 2), "all": [round(r, 2) for r in ratios]}


def reply(engine: Engine, options: Comparison) -> dict[str, Any]:
    """Wall time of a reply with an image and text, against the longer of both alone."""
    prompt, text, image = text_of(engine, 20, 7), text_options(options), image_options(options)
    (embeddings_QD,) = engine.regress_image([prompt])
    engine.generate(prompt, text, image, image_first=True)
    loop = ImageLoop(_decoder(engine))
    ratios: list[float] = []
    for _ in range(options.num_rounds):
        both = measure(lambda: engine.generate(prompt, text, image, image_first=True))[0].wall_s
        language = measure(lambda: _language(engine, options))[0].wall_s
        pixels = measure(lambda: loop.submit(_job(embeddings_QD, options, 0)).result())[0].wall_s
        regressed = measure(lambda: engine.regress_image([prompt]))[0].wall_s
        # pixels can be begun only when the embeddings are there
        ratios.append(both / max(language, regressed + pixels))
    loop.close()
    return {"wall_ratio": round(statistics.median(ratios), 2), "all": [round(r, 2) for r in ratios]}


def step(engine: Engine, options: Comparison) -> dict[str, Any]:
    """Steps of the language model from the last embedding of an image to the first token after it."""
    scheduler = engine.scheduler(ScheduleOptions(num_pages=64))
    scheduler.submit(_interleaved(engine, options))
    image_at = text_at = number = 0
    while scheduler.num_waiting or scheduler.num_running:
        number += 1
        for _, output in scheduler.step():
            if isinstance(output, torch.Tensor):
                image_at = number
            elif isinstance(output, str) and not text_at:
                text_at = number
    return {"steps_to_next_token": text_at - image_at}


def batch(engine: Engine, options: Comparison) -> dict[str, Any]:
    """CPU time of 8 images for each number of them in one forward, against one by one."""
    (embeddings_QD,) = engine.regress_image([text_of(engine, 20, 7)])
    jobs = [_job(embeddings_QD, options, number) for number in range(8)]
    costs: dict[int, list[float]] = {size: [] for size in (1, 2, 4, 8)}
    for _ in range(options.num_rounds):
        for size, found in costs.items():
            loop = ImageLoop(_decoder(engine), ImageLoopOptions(max_batch=size))

            def run(loop: ImageLoop = loop) -> None:
                for image in [loop.submit(job) for job in jobs]:
                    image.result()

            found.append(measure(run)[0].cpu_s)
            loop.close()
    alone = statistics.median(costs[1])
    ratios = {size: round(alone / statistics.median(found), 2) for size, found in costs.items()}
    return {"times_less_cpu_by_images_in_a_forward": ratios}


def _interleaved(engine: Engine, options: Comparison) -> Request:
    encoded = engine.encode(text_of(engine, 20, 7), opens_image=True, num_reserved=QUERIES + 1)
    return Request(encoded, text_options(options), image_first=True, max_images=1)


def _language(engine: Engine, options: Comparison) -> None:
    scheduler = engine.scheduler(ScheduleOptions(num_pages=64, max_packed_mb=0))
    scheduler.submit(_interleaved(engine, options))
    while scheduler.num_waiting or scheduler.num_running:
        scheduler.step()


def _job(embeddings_QD: torch.Tensor, options: Comparison, number: int) -> ImageJob:
    image = image_options(options)
    null_QD, steps = embeddings_QD * 0, image.num_inference_steps
    return ImageJob(embeddings_QD, null_QD, 64, 64, steps, image.guidance_scale, number)


def _decoder(engine: Engine) -> StableDiffusionDecoder:
    assert isinstance(engine.decoder, StableDiffusionDecoder)
    return engine.decoder


RUNS: dict[Subject, Callable[[Engine, Comparison], dict[str, Any]]] = {
    "gap": gap,
    "reply": reply,
    "step": step,
    "batch": batch,
}


def lines(options: Comparison) -> Iterator[dict[str, Any]]:
    """A line for each subject."""
    engine = engine_of(options)
    for subject in options.subjects:
        if subject == "gap":
            engine.start_batching(ScheduleOptions(num_pages=128))
        yield {"subject": subject} | RUNS[subject](engine, options)


def main() -> None:
    """Prints the machine, then a line per subject."""
    options = tyro.cli(Comparison)
    torch.set_num_threads(1)
    print(json.dumps(machine() | {"load": os.getloadavg()[0]}), flush=True)
    for line in lines(options):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
