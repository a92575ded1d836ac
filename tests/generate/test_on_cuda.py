"""On CUDA, replies of all kinds are those of the CPU in float32, and those that run alone in bfloat16."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageChops, ImageStat

import emu
from emu.generate.engine import Engine
from emu.generate.image_loop import ImageLoop
from emu.generate.prompts import ImageOptions, Prompt, TextOptions
from emu.generate.request_state import Finished, Output, Request
from emu.generate.scheduler import ScheduleOptions
from tests.generate.conftest import Golden
from tests.generate.test_adapters import write_adapter
from tests.generate.test_int8 import MAX_DRIFT, relative

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
ROUNDING = 1e-3
"""Of embeddings and losses in float32: other kernels sum in another order, and eight steps amplify it."""
HALF_ROUNDING = 0.1
"""Of embeddings in bfloat16, as a share of their root mean square."""


@pytest.fixture(scope="module")
def cuda(tiny_dir: Path) -> Engine:
    return emu.load(tiny_dir, device="cuda")


@pytest.fixture
def prompts(photo: Image.Image) -> list[Prompt]:
    return ["a red circle", [photo, "describe the image"], [photo, photo.rotate(90), "red or blue"]]


def test_texts_images_and_ranks_are_those_of_the_cpu(
    engine: Engine, cuda: Engine, prompts: list[Prompt]
) -> None:
    options = TextOptions(max_new_tokens=12)
    assert cuda.generate_ids(prompts, options) == engine.generate_ids(prompts, options)
    searched = replace(options, num_beams=3)
    assert cuda.generate_ids(prompts, searched) == engine.generate_ids(prompts, searched)
    found, expected = cuda.regress_image(prompts).cpu(), engine.regress_image(prompts)
    assert (found - expected).abs().max() < ROUNDING
    answers = ["red", "a blue square", "it is green", "stars"]
    for prompt in prompts:
        losses = [e.candidate_losses(prompt, answers, "sum") for e in (cuda, engine)]
        assert losses[0] == pytest.approx(losses[1], abs=ROUNDING)


def test_sampled_texts_are_those_of_the_cpu(
    engine: Engine, cuda: Engine, prompts: list[Prompt]
) -> None:
    options = TextOptions(max_new_tokens=12, do_sample=True, top_p=0.9, seed=3)
    assert cuda.generate_ids(prompts, options) == engine.generate_ids(prompts, options)


def test_a_generated_image_is_that_of_the_cpu(
    engine: Engine, cuda: Engine, prompts: list[Prompt]
) -> None:
    options = ImageOptions(num_inference_steps=4, seed=5)
    for prompt in prompts:
        found, expected = (e.generate_image(prompt, options) for e in (cuda, engine))
        assert found.size == expected.size
        difference = ImageStat.Stat(ImageChops.difference(found, expected))
        assert max(high for _, high in difference.extrema) <= 3, difference.extrema


def test_the_golden_record_holds_on_cuda(golden_pretrain: Golden) -> None:
    golden = golden_pretrain
    own = Engine(golden.engine.model.to("cuda"), golden.engine.tokenizer)
    try:
        found = own.regress_image(golden.meta["image_prompts"]["text"]).cpu()
    finally:
        own.model.to("cpu")
    assert (found - golden.expected["image_embeds_text"]).abs().max() < 1e-3


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_batch_in_half_precision_gives_what_its_requests_give_alone(
    tiny_dir: Path, prompts: list[Prompt], dtype: str
) -> None:
    half = emu.load(tiny_dir, device="cuda", dtype=dtype)
    alone = torch.cat([half.regress_image([prompt]) for prompt in prompts])
    together = half.regress_image(prompts)
    assert relative(together.float(), alone.float()) < HALF_ROUNDING
    full = emu.load(tiny_dir, device="cuda").regress_image(prompts)
    assert relative(alone.float(), full) < HALF_ROUNDING


def run(engine: Engine, requests: list[Request], options: ScheduleOptions) -> list[list[Output]]:
    """What each request gives; the later half arrives while the first runs."""
    scheduler = engine.scheduler(options)
    found: dict[int, list[Output]] = {request.row: [] for request in requests}
    waiting = list(requests)
    while waiting or scheduler.num_running or scheduler.num_waiting:
        for request in [waiting.pop(0) for _ in range(min(2, len(waiting)))]:
            scheduler.submit(request)
        for state, output in scheduler.step():
            found[state.request.row].append(output)
    assert scheduler.pool.num_used == 0
    return [found[request.row] for request in requests]


def test_requests_of_all_kinds_and_adapters_run_together(
    tiny_dir: Path, tmp_path: Path, prompts: list[Prompt]
) -> None:
    base = emu.load(tiny_dir, device="cuda")
    tuned = base.load_adapter("tuned", write_adapter(tiny_dir, tmp_path, seed=1, rank=3))
    requests: list[Request] = []
    for prompt in prompts:
        for engine in (base, tuned):
            closed = engine.encode(prompt)
            opened = engine.encode(prompt, opens_image=True, num_reserved=9)
            requests += [
                Request(closed, TextOptions(max_new_tokens=6), adapter=engine.adapter),
                Request(opened, TextOptions(max_new_tokens=3), True, 1, adapter=engine.adapter),
            ]
    requests = [replace(request, row=row) for row, request in enumerate(requests)]
    options = ScheduleOptions(num_pages=60, max_rows=5, chunk=16)
    together = run(base, requests, options)
    for request, outputs in zip(requests, together, strict=True):
        (alone,) = run(base, [request], options)
        assert len(outputs) == len(alone)
        for one, other in zip(outputs, alone, strict=True):
            if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
                assert (one - other).abs().max() < 1e-2  # a random adapter amplifies rounding
            else:
                assert one == other
        assert isinstance(outputs[-1], Finished)


def test_int8_weights_drift_as_on_the_cpu(repository: Path) -> None:
    from emu.generate.int8 import round_to_int8

    golden = Golden(repository / "tests/golden/emu1_small", "pretrain")
    model = golden.engine.model.to("cuda")
    round_to_int8(model)
    engine = Engine(model, golden.engine.tokenizer)
    found = engine.regress_image(golden.meta["image_prompts"]["text"]).cpu()
    drift = relative(found, golden.expected["image_embeds_text"])
    assert 1e-6 < drift < MAX_DRIFT, drift


def test_int8_weights_are_loaded_without_the_full_ones_on_the_card(tiny_dir: Path) -> None:
    def peak(weights: str) -> int:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        engine = emu.load(tiny_dir, "cuda", weights=weights)
        found = torch.cuda.max_memory_allocated() - before
        assert engine.generate_ids(["a red circle"], TextOptions(max_new_tokens=4))
        return found

    full, int8 = peak("full"), peak("int8")
    layers = emu.load(tiny_dir).model.language.lm.model.layers
    matrices = [m.weight for m in layers.modules() if isinstance(m, torch.nn.Linear)]
    saved = 3 * sum(weight.numel() for weight in matrices)  # bytes of float32 less int8
    largest = max(8 * weight.numel() for weight in matrices)  # one in full, and what rounds it
    assert int8 < full - saved + 2 * largest


def test_text_goes_on_while_an_image_is_decoded_in_its_own_loop(
    cuda: Engine, prompts: list[Prompt]
) -> None:
    with_loop = Engine(cuda.model, cuda.tokenizer, cuda.decoder)
    assert with_loop.decoder is not None
    loop, batching = ImageLoop(with_loop.decoder), with_loop.start_batching()
    try:
        with_loop.decode_images_with(loop)
        options = ImageOptions(num_inference_steps=4, seed=5)
        reply = with_loop.generate(
            prompts[1], TextOptions(max_new_tokens=4), options, image_first=True
        )
    finally:
        batching.close()
        loop.close()
    expected = cuda.generate(prompts[1], TextOptions(max_new_tokens=4), options, image_first=True)
    assert [type(piece) for piece in reply.segments] == [type(piece) for piece in expected.segments]
