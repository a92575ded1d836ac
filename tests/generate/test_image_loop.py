"""Images decoded together are those decoded alone; text goes on while they are made."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import emu
from emu.config import tiny_config
from emu.decoders import DECODERS, decoder_class
from emu.decoders.base import VisualDecoder, decode
from emu.generate.engine import Engine
from emu.generate.image_loop import ImageJob, ImageLoop, ImageLoopOptions
from emu.generate.prompts import DecodedImage, ImageOptions, ImagePosition, Reply, TextOptions
from emu.generate.scheduler import QueueFull
from tests.generate.tiny import SMALL_DECODER

WIDTH, QUERIES = 16, 4


def job(
    seed: int,
    steps: int = 4,
    guidance: float = 3.0,
    height: int = 32,
    scheduler: str | None = None,
) -> ImageJob:
    generator = torch.Generator().manual_seed(100 + seed)
    condition, null = torch.randn(2, QUERIES, WIDTH, generator=generator)
    return ImageJob(condition, null, height, 32, steps, guidance, seed, scheduler)


def decoded(decoder: VisualDecoder, job: ImageJob) -> np.ndarray:
    """The image by the loop of one call."""
    images = decode(
        decoder,
        job.condition_QD[None],
        job.null_condition_QD,
        job.height,
        job.width,
        job.num_inference_steps,
        job.guidance_scale,
        torch.Generator().manual_seed(job.seed),
        job.initial_latents,
        job.scheduler,
    )
    return images[0].numpy().astype(int)


@pytest.fixture(scope="module", params=sorted(DECODERS))
def decoder(request: pytest.FixtureRequest) -> VisualDecoder:
    config = SMALL_DECODER
    if request.param == "pixel_diffusion":
        config = replace(tiny_config().decoder or config, num_block_embeddings=QUERIES)
    assert config.kind == request.param, "a test for the new kind"
    return decoder_class(request.param).from_config(config, WIDTH, seed=1)


def test_images_of_all_kinds_in_one_batch_are_those_made_alone(decoder: VisualDecoder) -> None:
    schedulers = DECODERS[decoder.kind].schedulers
    jobs = [
        job(
            n,
            steps=3 + n % 3,
            guidance=1.0 if n == 1 else 3.0,
            scheduler=schedulers[n % len(schedulers)],
        )
        for n in range(5)
    ]
    jobs += [job(9, height=48), job(10, height=48, scheduler=schedulers[-1])]
    loop = ImageLoop(decoder, ImageLoopOptions(max_batch=3))
    found = [loop.submit(each) for each in jobs]
    for each, result in zip(jobs, found, strict=True):
        levels = np.asarray(result.result(60)).astype(int)
        assert levels.shape == (each.height, each.width, 3)
        assert abs(levels - decoded(decoder, each)).max() <= 1
    counters = loop.counters()
    assert counters.images == len(jobs) and counters.num_waiting == 0
    assert counters.rows >= sum(each.num_inference_steps for each in jobs)
    assert counters.steps < counters.rows, "no forward had more than one image"
    loop.close()


@pytest.fixture
def small(request: pytest.FixtureRequest) -> Iterator[ImageLoop]:
    decoder = decoder_class("stable_diffusion").from_config(SMALL_DECODER, WIDTH, seed=1)
    loop = ImageLoop(decoder, ImageLoopOptions(max_batch=2, max_waiting=1))
    yield loop
    loop.close()


def test_a_cancelled_image_gives_its_place_to_others(small: ImageLoop) -> None:
    long = [small.submit(job(n, steps=900)) for n in range(2)]
    short = small.submit(job(3, steps=2))
    with pytest.raises(QueueFull, match="3 images wait"):
        small.submit(job(4))
    for result in long:
        assert result.cancel()
    assert short.result(60).size == (32, 32)
    assert small.counters().num_waiting == 0 and small.counters().images == 1


def test_a_failed_image_fails_alone_and_wrong_ones_are_named(small: ImageLoop) -> None:
    broken = job(1)
    broken.condition_QD[0, 0] = torch.nan
    with pytest.raises(ValueError, match="give multiples of"):
        small.submit(job(1, height=33))
    with pytest.raises(ValueError, match="no scheduler 'magic'"):
        small.submit(job(1, scheduler="magic"))

    def fail(*_: object) -> None:
        raise ValueError("no memory")

    hook = small.decoder.trained_network()[1].register_forward_hook(fail)
    failed = small.submit(job(2))
    with pytest.raises(ValueError, match="no memory"):
        failed.result(60)
    hook.remove()
    assert small.submit(job(3)).result(60).size == (32, 32)


class Gate:
    """A backend whose images are ready when they are told to be."""

    def __init__(self) -> None:
        self.results: list[Future[Image.Image]] = []

    def submit(self, job: ImageJob) -> Future[Image.Image]:
        self.results.append(Future())
        return self.results[-1]


@pytest.mark.parametrize("is_batching", [False, True])
def test_text_goes_on_while_pixels_are_made(tiny_dir: Path, is_batching: bool) -> None:
    engine, gate = emu.load(tiny_dir), Gate()
    engine.decode_images_with(gate)
    if is_batching:
        engine.start_batching()
    text = TextOptions(max_new_tokens=6, min_length=20)
    stream = engine.stream("a red", text, ImageOptions(32, 32), image_first=True, in_order=False)
    assert next(stream) == ImagePosition(0)
    pieces = [next(stream) for _ in range(6)]
    assert all(isinstance(piece, str) for piece in pieces), "text waits for pixels"
    gate.results[0].set_result(Image.new("RGB", (32, 32), "red"))
    decoded, reply = stream
    assert isinstance(decoded, DecodedImage) and decoded.number == 0
    assert isinstance(reply, Reply) and [s.kind for s in reply.segments] == ["image", "text"]
    assert decoded.segment is reply.segments[0], "encoded twice"
    assert reply.text == "".join(map(str, pieces))


def test_in_order_the_image_comes_first_though_text_is_there(tiny_dir: Path) -> None:
    engine, gate = emu.load(tiny_dir), Gate()
    engine.decode_images_with(gate)
    text = TextOptions(max_new_tokens=4, min_length=20)
    events: list[object] = []

    def read() -> None:
        events.extend(engine.stream("a red", text, ImageOptions(32, 32), image_first=True))

    thread = threading.Thread(target=read)
    thread.start()
    thread.join(0.5)
    assert events == [] and len(gate.results) == 1
    gate.results[0].set_result(Image.new("RGB", (32, 32)))
    thread.join(60)
    assert isinstance(events[0], Image.Image) and isinstance(events[-1], Reply)
    assert len(events) == 1 + 4 + 1


def test_an_image_that_fails_fails_its_reply_and_a_closed_stream_cancels_its_image(
    tiny_dir: Path, engine: Engine
) -> None:
    view, gate = emu.load(tiny_dir), Gate()
    view.decode_images_with(gate)
    text = TextOptions(max_new_tokens=2)
    stream = view.stream("a", text, ImageOptions(32, 32), image_first=True, in_order=False)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert gate.results[0].cancelled()
    stream = view.stream("a", text, ImageOptions(32, 32), image_first=True)

    def fail_the_second() -> None:
        deadline = time.monotonic() + 60
        while len(gate.results) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        gate.results[1].set_exception(ValueError("no memory"))

    thread = threading.Thread(target=fail_the_second)
    thread.start()
    with pytest.raises(ValueError, match="no memory"):
        list(stream)
