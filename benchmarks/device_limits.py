"""Tokens and images per second of a model on a device, compared with what the device allows.

A text or visual step reads every weight of the layers and the cache of its rows, so it is bound by memory bandwidth
(measured by a copy); an image is bound by the measured rate of a large matrix product. text and visual are the loop
over one cache, engine_text and engine_visual the same requests through the scheduler that serves.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from emu.config import (
    DecoderConfig,
    EmuConfig,
    emu_14b_config,
    emu_llama_1b_config,
    tiny_config,
)
from emu.decoders.base import decode
from emu.decoders.stable_diffusion import StableDiffusionDecoder
from emu.generate import kv_cache
from emu.generate.kv_cache import DecodeState
from emu.generate.page_pool import pages_for
from emu.generate.paged_attention import reading_of
from emu.generate.precision import DTYPES
from emu.generate.prompts import EncodedPrompt, TextOptions
from emu.generate.request_state import Request
from emu.generate.scheduler import ScheduleOptions, Scheduler
from emu.models.emu import Emu
from emu.tokenizer import EmuTokenizer, train_tokenizer

Size = Literal["tiny", "1b", "14b"]
CONFIGS = {"tiny": tiny_config, "1b": emu_llama_1b_config, "14b": emu_14b_config}


@dataclass(frozen=True)
class DeviceOptions:
    """Which model runs on which device."""

    device: str = "cpu"
    dtype: str = "float32"
    compile: bool = False
    size: Size = "tiny"
    """Random weights created on the device: tiny sizes, a language model of 1.3 billion weights, or that of the paper
    (29 GB in bfloat16, decoder 2 GB)."""
    num_rows: tuple[int, ...] = (1, 64)
    """Requests that run together."""
    num_images: tuple[int, ...] = (1, 4)
    """Images that are decoded together; guidance doubles the rows of the U-Net."""
    num_ids: int = 200
    """Ids of each prompt."""
    num_steps: int = 64
    num_inference_steps: int = 50


SMALL_DECODER = DecoderConfig(
    image_size=64,
    unet_channels=(32, 64),
    unet_attention=(True, True),
    unet_layers=1,
    unet_heads=4,
    unet_groups=8,
    vae_channels=(16, 32, 32),
    vae_layers=1,
    vae_groups=1,
)
"""Stable Diffusion at tiny sizes; the tiny recipe itself has another kind of decoder."""


def random_model(options: DeviceOptions) -> tuple[Emu, StableDiffusionDecoder]:
    """Model and visual decoder with random weights, created on the device in its dtype."""
    config = CONFIGS[options.size]()
    with torch.device("meta"):
        model = Emu(config)
        decoder = StableDiffusionDecoder.from_config(
            SMALL_DECODER if options.size == "tiny" else config.decoder or DecoderConfig(),
            config.language.hidden_size,
            seed=0,
        )
    for module in (model, decoder):
        module.to(DTYPES[options.dtype]).to_empty(device=options.device)
        _randomize(module, torch.Generator(options.device).manual_seed(0))
    return model.eval(), decoder.eval()


@torch.no_grad()
def _randomize(module: nn.Module, generator: torch.Generator) -> None:
    for weight in module.parameters():
        if weight.dim() > 1:
            weight.normal_(std=0.02, generator=generator)
        else:
            weight.fill_(1.0)  # norms, and biases, which do not affect speed
    for buffer in module.buffers():
        buffer.zero_()


def weight_bytes(model: Emu, head: nn.Module) -> int:
    """Bytes of weights that one step reads: the layers, the final norm, and the head in use."""
    trunk = model.language.lm.model
    parts = (trunk.layers, trunk.norm, head)
    weights = (weight for part in parts for weight in part.parameters())
    return sum(weight.numel() * weight.element_size() for weight in weights)


def cache_bytes(config: EmuConfig, num_positions: int, element_size: int) -> int:
    """Bytes of keys and values that one row reads per step."""
    sizes = config.language
    return 2 * sizes.num_layers * num_positions * sizes.hidden_size * element_size


def step_limit(
    model: Emu, head: nn.Module, num_rows: int, num_positions: int, bandwidth: float
) -> float:
    """Maximum positions per second over all rows, for `bandwidth` in bytes per second."""
    size = model.ln_visual.weight.element_size()
    read = weight_bytes(model, head) + num_rows * cache_bytes(model.config, num_positions, size)
    return num_rows * bandwidth / read


def count_flops(call: Callable[[], Any]) -> int:
    """Floating-point operations of the matrix products, convolutions and attentions of a call."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def timed(call: Callable[[], Any], device: str) -> float:
    """Seconds of a call until the device has finished."""
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: str) -> None:
    """Block until the device has finished."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def bandwidth(options: DeviceOptions, num_bytes: int) -> float:
    """Bytes per second that a copy reads and writes, best of ten."""
    source = torch.ones(num_bytes // 4, device=options.device)
    target = torch.empty_like(source)
    best = min(timed(lambda: target.copy_(source), options.device) for _ in range(10))
    return 2 * source.numel() * 4 / best


def multiplication_rate(options: DeviceOptions, width: int) -> float:
    """Operations per second of a square matrix product in the dtype, best of ten."""
    some = torch.randn(width, width, device=options.device, dtype=DTYPES[options.dtype])
    best = min(timed(lambda: some @ some, options.device) for _ in range(10))
    return 2 * width**3 / best


def compile_parts(decoder: StableDiffusionDecoder) -> None:
    """Compiles the two halves of the language model's layers around attention, and the U-Net."""
    for name in ("before_attention", "after_attention"):
        setattr(kv_cache, name, torch.compile(getattr(kv_cache, name), dynamic=True))
    decoder.unet.compile()


@torch.inference_mode()
def step_line(
    model: Emu, options: DeviceOptions, num_rows: int, bytes_per_s: float
) -> dict[str, Any]:
    """Greedy text steps of several rows after a prompt: measured, and the maximum."""
    special = model.config.special
    ids = tuple([special.bos] + [5 + i % 200 for i in range(options.num_ids - 1)])
    rows = DecodeState(model, [EncodedPrompt(ids)] * num_rows)

    def write() -> None:
        for _ in range(options.num_steps):
            rows.feed_ids(model.language.head(rows.hidden_BD).argmax(-1).tolist())

    write()  # warm-up: kernels are chosen and compiled
    rows = DecodeState(model, [EncodedPrompt(ids)] * num_rows)
    took = timed(write, options.device)
    middle = options.num_ids + options.num_steps // 2
    limit = step_limit(model, model.language.lm.lm_head, num_rows, middle, bytes_per_s)
    return _line("text", num_rows * options.num_steps / took, limit, "tokens") | {"rows": num_rows}


@torch.inference_mode()
def visual_line(
    model: Emu, options: DeviceOptions, num_rows: int, bytes_per_s: float
) -> dict[str, Any]:
    """The steps of an image's embeddings after a prompt: measured, and the maximum; the prompt is excluded."""
    special, queries = model.config.special, model.config.former.num_queries
    ids = tuple([special.bos] + [5 + i % 200 for i in range(options.num_ids - 2)])
    prompts = [EncodedPrompt((*ids, special.image_start))] * num_rows
    DecodeState(model, prompts).regress_image()
    rows = DecodeState(model, prompts)
    took = timed(lambda: rows.regress_image(), options.device)
    middle = options.num_ids + queries // 2
    limit = step_limit(model, model.language.regress_head, num_rows, middle, bytes_per_s)
    line = _line("visual", num_rows * queries / took, limit, "embeddings")
    return line | {"rows": num_rows}


def engine_lines(
    model: Emu, options: DeviceOptions, num_rows: int, bytes_per_s: float
) -> Iterator[dict[str, Any]]:
    """Text and visual steps of several requests through the scheduler: measured, and the maximum.

    Prompts differ and are excluded, so every step is one position of each request.
    """
    special, queries = model.config.special, model.config.former.num_queries
    for subject in ("engine_text", "engine_visual"):
        is_text = subject == "engine_text"
        num_new = options.num_steps + 3 if is_text else queries
        text = TextOptions(max_new_tokens=num_new, min_length=num_new + 2) if is_text else None
        requests = []
        for row in range(num_rows):
            words = [5 + (row + i * (1 + row % 7)) % 200 for i in range(options.num_ids - 2)]
            last = 5 if is_text else special.image_start
            requests.append(
                Request(EncodedPrompt((special.bos, *words, last)), text, not is_text, row=row)
            )
        per_request = pages_for(options.num_ids + num_new)
        sizes = ScheduleOptions(num_rows * (per_request + 1), max_rows=num_rows)
        scheduler = Scheduler(model, _tokenizer(), sizes)
        engine_steps(scheduler, requests, options.device)  # the first time kernels are chosen
        made, took = engine_steps(scheduler, requests, options.device)
        head = model.language.lm.lm_head if is_text else model.language.regress_head
        middle = options.num_ids + num_new // 2
        limit = step_limit(model, head, num_rows, middle, bytes_per_s)
        unit = "tokens" if is_text else "embeddings"
        yield _line(subject, made / took, limit, unit) | {"rows": num_rows}


def engine_steps(scheduler: Scheduler, requests: list[Request], device: str) -> tuple[int, float]:
    """How many tokens and embeddings come after the prompts of all, and the seconds that they take."""
    states = [scheduler.submit(request) for request in requests]
    scheduler.step()
    while any(state.is_prefill for state in states):
        scheduler.step()

    def run() -> None:
        while scheduler.num_running:
            scheduler.step()

    before = scheduler.counters()
    took = timed(run, device)
    after = scheduler.counters()
    return after.tokens - before.tokens + after.embeddings - before.embeddings, took


def _tokenizer() -> EmuTokenizer:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.model"
        train_tokenizer([f"w{number} {number * 7}" for number in range(400)], 400, path)
        return EmuTokenizer.load(path)


def image_call(
    model: Emu, decoder: StableDiffusionDecoder, options: DeviceOptions, num_images: int = 1
) -> Callable[[], Any]:
    """A call that decodes images from embeddings with guidance: U-Net and autoencoder."""
    config = model.config
    side = (config.decoder or DecoderConfig()).image_size
    queries, width = config.former.num_queries, config.language.hidden_size
    condition = torch.randn(num_images, queries, width, device=options.device).to(
        DTYPES[options.dtype]
    )
    steps = options.num_inference_steps

    def call() -> None:
        noise = torch.Generator().manual_seed(0)
        decode(decoder, condition, condition[0] * 0, side, side, steps, 7.5, noise)

    return call


def image_line(
    decode: Callable[[], Any],
    flops: int,
    options: DeviceOptions,
    flops_per_s: float,
    num_images: int,
) -> dict[str, Any]:
    """Images per second: measured, and the maximum."""
    decode()
    took = timed(decode, options.device)
    line = _line("image", num_images / took, num_images * flops_per_s / flops, "images")
    return line | {"images": num_images, "tera_operations_per_image": flops / num_images / 1e12}


def _line(subject: str, measured: float, limit: float, unit: str) -> dict[str, Any]:
    return {
        "subject": subject,
        f"{unit}_per_s": measured,
        f"limit_{unit}_per_s": limit,
        "share_of_limit": measured / limit,
    }


def lines(options: DeviceOptions) -> Iterator[dict[str, Any]]:
    """The speed of the device, then one line per measurement."""
    is_large = torch.device(options.device).type == "cuda"
    bytes_per_s = bandwidth(options, 2**32 if is_large else 2**28)
    flops_per_s = multiplication_rate(options, 8192 if is_large else 1024)
    model, decoder = random_model(options)
    width, num_heads = model.config.language.hidden_size, model.config.language.num_heads
    yield {
        "device": torch.cuda.get_device_name(options.device) if is_large else "cpu",
        "GB_per_s": bytes_per_s / 1e9,
        "TFLOP_per_s": flops_per_s / 1e12,
        "GB_per_text_step": weight_bytes(model, model.language.lm.lm_head) / 1e9,
        # tried against plain attention, and equal to it
        "reading": reading_of(
            torch.device(options.device), DTYPES[options.dtype], num_heads, width // num_heads
        ),
    }
    # counted before compilation, since compiled code hides its operations
    calls = {number: image_call(model, decoder, options, number) for number in options.num_images}
    flops = {number: count_flops(call) for number, call in calls.items()}
    if options.compile:
        compile_parts(decoder)
    for num_rows in options.num_rows:
        yield step_line(model, options, num_rows, bytes_per_s)
        yield visual_line(model, options, num_rows, bytes_per_s)
        yield from engine_lines(model, options, num_rows, bytes_per_s)
    for number, call in calls.items():
        yield image_line(call, flops[number], options, flops_per_s, number)
