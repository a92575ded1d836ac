"""A negative prompt takes the place of the empty prompt in guidance; its embeddings are kept by content."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import emu
from emu.decoders.base import decode
from emu.generate.conditions import NullConditions, condition_key
from emu.generate.engine import Engine
from emu.generate.image_loop import ImageJob
from emu.generate.prompts import ImageOptions, NegativePromptTooLong, TextOptions
from schemas.validation import ConfigError
from tests.generate.test_adapters import write_adapter

OPTIONS = ImageOptions(32, 32, num_inference_steps=2, guidance_scale=3.0, seed=5)
NEGATIVE = "a small black square"


def guided_against(engine: Engine, null_prompt: str) -> np.ndarray:
    """The image of the visual decoder alone, with the condition regressed from `null_prompt` as null condition."""
    condition_1QD = engine.regress_image(["a red circle"])
    (null_QD,) = engine.regress_image([null_prompt])
    seeded = torch.Generator().manual_seed(OPTIONS.seed)
    assert engine.decoder is not None
    return decode(engine.decoder, condition_1QD, null_QD, 32, 32, 2, 3.0, seeded)[0].numpy()


def test_guidance_leads_away_from_the_negative_prompt(engine: Engine) -> None:
    plain, empty, negative = (
        np.asarray(engine.generate_image("a red circle", options))
        for options in (
            OPTIONS,
            replace(OPTIONS, negative_prompt=""),
            replace(OPTIONS, negative_prompt=NEGATIVE),
        )
    )
    assert (plain == empty).all() and (plain == guided_against(engine, "")).all()
    assert (negative == guided_against(engine, NEGATIVE)).all()
    assert (negative != plain).any(), "the negative prompt changes nothing"


def test_without_guidance_the_negative_prompt_changes_nothing(engine: Engine) -> None:
    options = replace(OPTIONS, guidance_scale=1.0)
    plain = engine.generate_image("a red circle", options)
    negative = engine.generate_image("a red circle", replace(options, negative_prompt=NEGATIVE))
    assert (np.asarray(plain) == np.asarray(negative)).all()


class Recorder:
    """Keeps the jobs, and gives a blank image for each."""

    def __init__(self) -> None:
        self.jobs: list[ImageJob] = []

    def submit(self, job: ImageJob) -> Future[Image.Image]:
        self.jobs.append(job)
        done: Future[Image.Image] = Future()
        done.set_result(Image.new("RGB", (job.width, job.height)))
        return done


def test_conditions_are_those_of_the_weights_and_the_adapter(
    tiny_dir: Path, tmp_path: Path
) -> None:
    engine, recorder = emu.load(tiny_dir), Recorder()
    adapted = engine.load_adapter("tuned", write_adapter(tiny_dir, tmp_path, 1, rank=3))
    engine.decode_images_with(recorder)
    options = replace(OPTIONS, negative_prompt=NEGATIVE)

    def condition(of: Engine) -> torch.Tensor:
        of.generate_image("a red circle", options)
        return recorder.jobs[-1].null_condition_QD

    first = condition(engine)
    assert condition(engine) is first, "the second one is computed again"
    assert (condition(adapted) - first).abs().max() > 1e-4
    assert torch.equal(condition(adapted), adapted.regress_image([NEGATIVE])[0])
    with torch.no_grad():
        engine.model.language.regress_head.weight.mul_(2)
    assert torch.equal(condition(engine), engine.regress_image([NEGATIVE])[0])
    assert (condition(engine) - first).abs().max() > 1e-4


def test_a_condition_is_computed_once_for_all_who_wait() -> None:
    kept, calls, go = NullConditions(max_kept=2), [0], threading.Event()

    def regress() -> torch.Tensor:
        calls[0] += 1
        assert go.wait(60)
        return torch.zeros(1)

    found: list[torch.Tensor] = []
    ask = [threading.Thread(target=lambda: found.append(kept.of(b"a", regress))) for _ in range(4)]
    for thread in ask:
        thread.start()
    assert kept.of(b"b", lambda: torch.ones(1)).item() == 1, "another condition waits for this one"
    go.set()
    for thread in ask:
        thread.join(60)
    assert len(found) == 4 and calls == [1]


def test_the_least_recently_used_condition_goes_first() -> None:
    kept, made = NullConditions(max_kept=2), []
    for name in (b"a", b"b", b"a", b"c", b"a", b"b"):
        kept.of(name, lambda name=name: made.append(name) or torch.zeros(1))
    assert made == [b"a", b"b", b"c", b"b"]


def test_after_an_error_the_next_one_tries_again() -> None:
    kept = NullConditions()

    def fail() -> torch.Tensor:
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        kept.of(b"a", fail)
    assert kept.of(b"a", lambda: torch.ones(1)).item() == 1


def test_keys_differ_by_weights_and_by_ids() -> None:
    keys: Iterator[bytes] = (
        condition_key(weights, ids)
        for weights in (b"x" * 32, b"y" * 32)
        for ids in ([], [1], [1, 2])
    )
    assert len(set(keys)) == 6


def test_a_wrong_negative_prompt_is_refused_before_anything_is_generated(engine: Engine) -> None:
    too_long = replace(OPTIONS, negative_prompt="a red circle " * 200)
    with pytest.raises(NegativePromptTooLong, match="negative_prompt: the prompt takes"):
        engine.generate_image("a", too_long)
    with pytest.raises(NegativePromptTooLong):
        next(iter(engine.stream("a", TextOptions(), too_long, image_first=True)))
    with pytest.raises(ConfigError, match=r"negative_prompt is .*without <image>"):
        ImageOptions(negative_prompt="a <image>")
