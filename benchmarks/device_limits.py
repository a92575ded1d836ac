"""Tokens and pictures per second of a model on a device, beside what the device allows.

A text or visual step has to read every weight of the layers and the cache of its rows, so memory bandwidth
(measured by a copy) bounds it; a picture has to multiply, so the measured rate of a large matrix product bounds it.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from emu.config import DecoderConfig, EmuConfig, emu_14b_config, tiny_config
from emu.decoders.stable_diffusion import StableDiffusionDecoder
from emu.generate import kv_cache as decoding
from emu.generate.engine import DTYPES
from emu.generate.interleaved import regress_next
from emu.generate.kv_cache import Continuation
from emu.generate.prompts import EncodedPrompt
from emu.models.emu import Emu

Size = Literal["tiny", "14b"]


@dataclass(frozen=True)
class DeviceOptions:
    """What is run where."""

    device: str = "cpu"
    dtype: str = "float32"
    compile: bool = False
    size: Size = "tiny"
    """Weights drawn on the device: tiny sizes, or those of the paper (29 GB in bfloat16, decoder 2 GB)."""
    num_rows: tuple[int, ...] = (1, 8)
    num_ids: int = 200
    """Ids of each prompt."""
    num_steps: int = 64
    num_inference_steps: int = 50


def drawn_model(options: DeviceOptions) -> tuple[Emu, StableDiffusionDecoder]:
    """Model and visual decoder with weights drawn on the device, in its dtype."""
    config = emu_14b_config() if options.size == "14b" else tiny_config()
    with torch.device("meta"):
        model = Emu(config)
        decoder = StableDiffusionDecoder.from_config(
            config.decoder or DecoderConfig(), config.language.hidden_size, seed=0
        )
    for module in (model, decoder):
        module.to(DTYPES[options.dtype]).to_empty(device=options.device)
        _draw(module, torch.Generator(options.device).manual_seed(0))
    return model.eval(), decoder.eval()


@torch.no_grad()
def _draw(module: nn.Module, generator: torch.Generator) -> None:
    for weight in module.parameters():
        if weight.dim() > 1:
            weight.normal_(std=0.02, generator=generator)
        else:
            weight.fill_(1.0)  # norms; biases, too, which speed does not mind
    for buffer in module.buffers():
        buffer.zero_()


def weight_bytes(model: Emu, head: nn.Module) -> int:
    """Bytes of weights that one step reads: the layers, the final norm, and the head that is asked."""
    trunk = model.language.lm.model
    parts = (trunk.layers, trunk.norm, head)
    weights = (weight for part in parts for weight in part.parameters())
    return sum(weight.numel() * weight.element_size() for weight in weights)


def cache_bytes(config: EmuConfig, num_positions: int, element_size: int) -> int:
    """Bytes of keys and values that one row reads at a step."""
    sizes = config.language
    return 2 * sizes.num_layers * num_positions * sizes.hidden_size * element_size


def step_limit(
    model: Emu, head: nn.Module, num_rows: int, num_positions: int, bandwidth: float
) -> float:
    """Positions per second over all rows at most, for `bandwidth` in bytes per second."""
    size = model.ln_visual.weight.element_size()
    read = weight_bytes(model, head) + num_rows * cache_bytes(model.config, num_positions, size)
    return num_rows * bandwidth / read


def count_flops(work: Callable[[], Any]) -> int:
    """Floating-point operations of the matrix products, convolutions and attentions of a call."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def timed(work: Callable[[], Any], device: str) -> float:
    """Seconds of a call until the device is done."""
    _wait(device)
    start = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def bandwidth(options: DeviceOptions, num_bytes: int) -> float:
    """Bytes per second that a copy reads and writes, the best of ten."""
    source = torch.ones(num_bytes // 4, device=options.device)
    target = torch.empty_like(source)
    best = min(timed(lambda: target.copy_(source), options.device) for _ in range(10))
    return 2 * source.numel() * 4 / best


def multiplication_rate(options: DeviceOptions, width: int) -> float:
    """Operations per second of a square matrix product in the dtype, the best of ten."""
    some = torch.randn(width, width, device=options.device, dtype=DTYPES[options.dtype])
    best = min(timed(lambda: some @ some, options.device) for _ in range(10))
    return 2 * width**3 / best


def compile_parts(decoder: StableDiffusionDecoder) -> None:
    """Compiles the two halves of the language model's layers around attention, and the U-Net."""
    for name in ("before_attention", "after_attention"):
        setattr(decoding, name, torch.compile(getattr(decoding, name), dynamic=True))
    decoder.unet.compile()


@torch.inference_mode()
def step_line(
    model: Emu, options: DeviceOptions, num_rows: int, bytes_per_s: float
) -> dict[str, Any]:
    """Greedy text steps of some rows after a prompt, measured and at most."""
    special = model.config.special
    ids = tuple([special.bos] + [5 + i % 200 for i in range(options.num_ids - 1)])
    rows = Continuation(model, [EncodedPrompt(ids)] * num_rows)

    def write() -> None:
        for _ in range(options.num_steps):
            rows.feed_ids(model.language.head(rows.hidden_BD).argmax(-1).tolist())

    write()  # kernels are chosen and compiled here
    rows = Continuation(model, [EncodedPrompt(ids)] * num_rows)
    took = timed(write, options.device)
    middle = options.num_ids + options.num_steps // 2
    limit = step_limit(model, model.language.lm.lm_head, num_rows, middle, bytes_per_s)
    return _line("text", num_rows * options.num_steps / took, limit, "tokens") | {"rows": num_rows}


@torch.inference_mode()
def visual_line(
    model: Emu, options: DeviceOptions, num_rows: int, bytes_per_s: float
) -> dict[str, Any]:
    """The steps of an image's embeddings after a prompt, measured and at most; the prompt is not counted."""
    special, queries = model.config.special, model.config.former.num_queries
    ids = tuple([special.bos] + [5 + i % 200 for i in range(options.num_ids - 2)])
    prompts = [EncodedPrompt((*ids, special.image_start))] * num_rows
    regress_next(Continuation(model, prompts))
    rows = Continuation(model, prompts)
    took = timed(lambda: regress_next(rows), options.device)
    middle = options.num_ids + queries // 2
    limit = step_limit(model, model.language.regress_head, num_rows, middle, bytes_per_s)
    line = _line("visual", num_rows * queries / took, limit, "embeddings")
    return line | {"rows": num_rows}


def drawing(
    model: Emu, decoder: StableDiffusionDecoder, options: DeviceOptions
) -> Callable[[], Any]:
    """Draws one picture from embeddings under guidance: U-Net and autoencoder."""
    config = model.config
    side = (config.decoder or DecoderConfig()).image_size
    queries, width = config.former.num_queries, config.language.hidden_size
    condition = torch.randn(1, queries, width, device=options.device).to(DTYPES[options.dtype])
    steps = options.num_inference_steps

    def draw() -> None:
        noise = torch.Generator().manual_seed(0)
        decoder.decode(condition, condition[0] * 0, side, side, steps, 7.5, noise)

    return draw


def picture_line(
    draw: Callable[[], Any], flops: int, options: DeviceOptions, flops_per_s: float
) -> dict[str, Any]:
    """Pictures per second, measured and at most."""
    draw()
    took = timed(draw, options.device)
    line = _line("picture", 1 / took, flops_per_s / flops, "images")
    return line | {"tera_operations_an_image": flops / 1e12}


def _line(subject: str, measured: float, limit: float, unit: str) -> dict[str, Any]:
    return {
        "subject": subject,
        f"{unit}_per_s": measured,
        f"limit_{unit}_per_s": limit,
        "part_of_limit": measured / limit,
    }


def lines(options: DeviceOptions) -> Iterator[dict[str, Any]]:
    """The device's own speed, then a line a measurement."""
    is_large = torch.device(options.device).type == "cuda"
    bytes_per_s = bandwidth(options, 2**32 if is_large else 2**28)
    flops_per_s = multiplication_rate(options, 8192 if is_large else 1024)
    model, decoder = drawn_model(options)
    yield {
        "device": torch.cuda.get_device_name(options.device) if is_large else "cpu",
        "GB_per_s": bytes_per_s / 1e9,
        "TFLOP_per_s": flops_per_s / 1e12,
        "GB_a_text_step": weight_bytes(model, model.language.lm.lm_head) / 1e9,
    }
    draw = drawing(model, decoder, options)
    flops = count_flops(draw)  # before anything is compiled: compiled code hides its operations
    if options.compile:
        compile_parts(decoder)
    for num_rows in options.num_rows:
        yield step_line(model, options, num_rows, bytes_per_s)
        yield visual_line(model, options, num_rows, bytes_per_s)
    yield picture_line(draw, flops, options, flops_per_s)
