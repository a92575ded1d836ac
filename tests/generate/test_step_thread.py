"""The thread of a loop: it steps while there is work, and after its end takes none."""

import threading
from concurrent.futures import Future
from pathlib import Path

import pytest
from PIL import Image

import emu
from emu.generate.batch_loop import BatchLoop
from emu.generate.image_loop import ImageJob, ImageLoop
from emu.generate.prompts import TextOptions
from emu.generate.request_state import Request
from emu.generate.step_thread import LoopClosed, StepThread


def test_it_steps_while_there_is_work_and_ends_once() -> None:
    work: list[int] = []
    done: list[int] = []
    ended: list[int] = []
    third = threading.Event()

    def step() -> None:
        with thread.lock:
            done.append(work.pop(0))
        if len(done) == 3:
            third.set()

    thread = StepThread("adder", lambda: bool(work), step, lambda: ended.append(len(done)))
    thread.start()
    for number in range(3):
        with thread.adding():
            work.append(number)
    assert third.wait(60)
    thread.close()
    assert done == [0, 1, 2] and ended == [3]
    with pytest.raises(LoopClosed, match="the adder is closed"), thread.adding():
        work.append(4)
    assert work == []


def test_work_that_is_refused_adds_nothing_and_the_thread_goes_on() -> None:
    work: list[int] = []
    stepped = threading.Event()

    def step() -> None:
        work.clear()
        stepped.set()

    thread = StepThread("adder", lambda: bool(work), step, lambda: None)
    thread.start()
    with pytest.raises(ValueError, match="too many"), thread.adding():
        raise ValueError("too many")
    with thread.adding():
        work.append(1)
    assert stepped.wait(60)
    thread.close()


def test_requests_of_a_closed_loop_end(tiny_dir: Path) -> None:
    engine = emu.load(tiny_dir)
    loop: BatchLoop = engine.start_batching()
    options = TextOptions(max_new_tokens=200, min_length=10**6)
    request = Request(engine.encode("a red"), options)
    outputs = loop.outputs(request)
    next(outputs)
    loop.close()
    with pytest.raises(LoopClosed, match="was closed"):
        list(outputs)
    with pytest.raises(LoopClosed, match="the batch-loop is closed"):
        next(loop.outputs(request))


def test_images_of_a_closed_loop_are_cancelled(tiny_dir: Path) -> None:
    engine = emu.load(tiny_dir)
    assert engine.decoder is not None
    loop = ImageLoop(engine.decoder)
    embeddings_QD, null_QD = engine.regress_image(["a red", ""])
    job = ImageJob(embeddings_QD, null_QD, 64, 64, 1000, 3.0, 1)
    result: Future[Image.Image] = loop.submit(job)
    loop.close()
    assert result.cancelled()
    with pytest.raises(LoopClosed, match="the image-loop is closed"):
        loop.submit(job)
