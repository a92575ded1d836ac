"""Training on a device without Ray: what a step takes, beside what the device allows and beside a plain loop.

    python -m benchmarks.train_limits                                      # tiny sizes on the CPU: the script runs
    python -m benchmarks.train_limits --device cuda --size 1b --compile    # the figures that count, three minutes each

Random weights, and sequences with the lengths of the paper's formats. Subjects:

- step: a pretraining step (tower included) of packed rows in bfloat16: positions per second, memory, and MFU by the
  exact count of operations, of the card's peak and of a measured matrix product;
- plain: the same sequences padded, eager, with logits at every position; `packed_to_plain` is the ratio of real
  positions per second, of interleaved rounds on the same weights (the learning rate is 0, so that losses compare);
- lora: a step of instruction tuning, adapters alone trained, the base frozen in bfloat16;
- features: images per second of the visual encoder; the limit is that of its matrix products.

Prints JSON lines.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from random import Random
from statistics import median
from typing import Any, Literal

import torch
import tyro
from torch import nn
from torch.optim import Optimizer

from benchmarks.device_limits import (
    CONFIGS,
    DeviceOptions,
    Size,
    multiplication_rate,
    timed,
)
from benchmarks.paper_sequences import KINDS, paper_sequence
from emu.config import AdapterConfig, EmuConfig
from emu.data.batches import collate
from emu.data.packing import collate_packed, pack
from emu.data.sequence import Sequence
from emu.generate.precision import DTYPES
from emu.models.emu import Emu
from emu.models.objective import Batch, Objective
from emu.recipes import OptimConfig
from emu.train.compiled import compile_layers
from emu.train.flops import BatchSize, StepCost, known_peak_tflops, step_cost
from emu.train.optim import make_optimizer
from emu.train.plan import GPU_MULTIPLE
from emu.train.step import EmuLosses

Subject = Literal["step", "plain", "lora", "features"]
Made = tuple[Sequence, torch.Tensor]
NO_RATES = OptimConfig(vision_lr=0, former_lr=0, language_lr=0)
"""An update costs what it costs, and changes nothing."""


@dataclass(frozen=True)
class TrainLimits:
    """Measures training steps of random models."""

    subjects: tuple[Subject, ...] = ("step", "plain", "lora", "features")
    """What is measured. plain measures step as well, round by round."""
    device: str = "cpu"
    """A torch device: cpu, cuda, cuda:1."""
    size: Size = "tiny"
    """Sizes of step, plain and features."""
    lora_size: Size | None = None
    """Sizes of lora. None: those of `size`; the paper's are 14b."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Of matrix products; weights and optimizer state are float32 but for lora's frozen weights."""
    compile: bool = False
    """Compile the layers of all parts for step, lora and features; plain stays eager."""
    recompute_activations: bool = False
    """Activation checkpointing in step and lora."""
    row_length: int = 2048
    """Positions of a packed row."""
    num_rows: int = 4
    """Packed rows per micro-batch."""
    num_rounds: int = 5
    """Measured steps of each side; medians are printed."""
    batch_images: int = 64
    """Images that the visual encoder takes together, for features."""


def run_benchmark(options: TrainLimits) -> Iterator[dict[str, Any]]:
    """The device, then a record per subject."""
    is_large = torch.device(options.device).type == "cuda"
    limits = DeviceOptions(options.device, options.dtype)
    rate = multiplication_rate(limits, 8192 if is_large else 1024)
    card = torch.cuda.get_device_name(options.device) if is_large else "cpu"
    peak = known_peak_tflops(card)
    yield {
        "card": card,
        "torch": torch.__version__,
        "measured_TFLOP_per_s": rate / 1e12,
        "peak_TFLOP_per_s": peak,
        **asdict(options),
    }
    for subject in options.subjects:
        if is_large:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(options.device)
        yield {"subject": subject, **MEASURES[subject](options, rate, peak)}


def sequences(config: EmuConfig, row_length: int, num_rows: int, seed: int = 0) -> list[Made]:
    """Sequences of all formats with random words and images, about as many as fill the rows."""
    dice = Random(seed)
    made: list[Made] = []
    room = row_length * num_rows
    while True:
        kind = dice.choices(list(KINDS), list(KINDS.values()))[0]
        sequence = _sequence(kind, config, dice, row_length)
        room -= len(sequence[0].ids_L)
        if made and room < 0:
            return made
        made.append(sequence)


def _sequence(kind: str, config: EmuConfig, dice: Random, row_length: int) -> Made:
    sequence, side = paper_sequence(kind, config, dice, row_length), config.vision.image_size
    return sequence, torch.randn(len(sequence.slots), 3, side, side)


def _model(config: EmuConfig, options: TrainLimits, seed: int = 0) -> Emu:
    with torch.device("meta"):
        model = Emu(config)
    model.to_empty(device=options.device)
    generator = torch.Generator(options.device).manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(std=0.02, generator=generator)
            else:
                weight.fill_(1.0)
    model.visual.fill_buffers(torch.device(options.device), torch.float32)
    return model.train()


class _Side:
    """A model with its optimizer, and one batch that is trained on again and again."""

    def __init__(
        self, model: Emu, optimizer: Optimizer, batches: list[Batch], is_plain: bool, dtype: str
    ) -> None:
        self.model, self.optimizer, self.batches = model, optimizer, batches
        self.is_plain, self.dtype = is_plain, DTYPES[dtype]
        self.losses = EmuLosses(model, dtype)
        self.seconds: list[float] = []
        self.loss = 0.0

    def step(self) -> float:
        """Forward, backward and update; returns the summed text loss."""
        device = self.batches[0].input_ids_BL.device
        one, total = torch.ones((), device=device), 0.0
        for batch in self.batches:
            if self.is_plain:
                with torch.autocast(device.type, self.dtype, enabled=self.dtype != torch.float32):
                    losses = Objective(self.model.config.objective)(self.model(batch), batch)
                losses.total.backward()
                total += losses.text.item() * int(losses.num_text)
            else:
                loss, text, *_ = self.losses(batch, one, one)
                loss.backward()
                total += text.item() * float(self.losses.counts(batch)[0])
        nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total

    def time(self, device: str) -> None:
        """One measured step."""
        self.seconds.append(timed(self._measured, device))

    def _measured(self) -> None:
        with torch.compiler.set_stance("force_eager" if self.is_plain else "default"):
            self.loss = self.step()

    @property
    def size(self) -> BatchSize:
        """What the cost of the step depends on."""
        text, visual, images, _, positions, _, squares = (
            sum(self.losses.counts(batch)[n].item() for batch in self.batches) for n in range(7)
        )
        return BatchSize(positions, squares, images, text, visual)


def _packed_batches(made: list[Made], options: TrainLimits, config: EmuConfig) -> list[Batch]:
    device = torch.device(options.device)
    multiple = GPU_MULTIPLE if device.type == "cuda" else 1
    lengths = [len(sequence.ids_L) for sequence, _ in made]
    batches = [
        collate_packed([made[index] for index in row], config.special.pad, False, multiple)
        for row in pack(lengths, options.row_length * options.num_rows)
    ]
    return [batch.to(device) for batch in batches]


def _padded_batches(made: list[Made], options: TrainLimits, config: EmuConfig) -> list[Batch]:
    per_batch = max(1, options.row_length * options.num_rows // 1024)
    groups = [made[n : n + per_batch] for n in range(0, len(made), per_batch)]
    return [
        collate([s for s, _ in g], [images for _, images in g], config.special.pad, False).to(
            torch.device(options.device)
        )
        for g in groups
    ]


def _packed_side(options: TrainLimits, config: EmuConfig, made: list[Made]) -> _Side:
    model = _model(config, options)
    if options.recompute_activations:
        model.recompute_activations()
    if options.compile:
        compile_layers(model)
    optimizer = make_optimizer(model, NO_RATES)
    side = _Side(model, optimizer, _packed_batches(made, options, config), False, options.dtype)
    side.step()  # warm-up: kernels are chosen and compiled
    return side


def _figures(
    side: _Side, options: TrainLimits, cost: StepCost, rate: float, peak: float | None
) -> dict[str, Any]:
    size, took = side.size, median(side.seconds)
    work = cost.model(size) / took
    figures: dict[str, Any] = {
        "seconds_per_step": took,
        "positions_per_s": size.positions / took,
        "images_per_s": size.images / took,
        "share_of_measured_products": work / rate,
        "mfu": None if peak is None else work / (peak * 1e12),
    }
    if torch.device(options.device).type == "cuda":
        figures["peak_memory_GB"] = torch.cuda.max_memory_allocated(options.device) / 1e9
    return figures


def measure_step(options: TrainLimits, rate: float, peak: float | None) -> dict[str, Any]:
    """A packed pretraining step."""
    config = CONFIGS[options.size]()
    made = sequences(config, options.row_length, options.num_rows)
    side = _packed_side(options, config, made)
    for _ in range(options.num_rounds):
        side.time(options.device)
    return _figures(side, options, step_cost(config), rate, peak)


def measure_plain(options: TrainLimits, rate: float, peak: float | None) -> dict[str, Any]:
    """The packed step and the plain one, a round each in turn; both from the same weights."""
    config = CONFIGS[options.size]()
    made = sequences(config, options.row_length, options.num_rows)
    packed = _packed_side(options, config, made)
    batches = _padded_batches(made, options, config)
    plain = _Side(packed.model, packed.optimizer, batches, True, options.dtype)
    plain.time(options.device)
    plain.seconds.clear()
    for _ in range(options.num_rounds):
        packed.time(options.device)
        plain.time(options.device)
    pairs = zip(plain.seconds, packed.seconds, strict=True)
    return {
        "packed_to_plain": median(slow / fast for slow, fast in pairs),
        "relative_difference_of_losses": abs(plain.loss / packed.loss - 1),
        **_figures(packed, options, step_cost(config), rate, peak),
    }


def measure_lora(options: TrainLimits, rate: float, peak: float | None) -> dict[str, Any]:
    """A step that trains adapters alone; base and tower are frozen, in the dtype of the products."""
    base = CONFIGS[options.lora_size or options.size](instruct=True)
    config = replace(base, adapter=AdapterConfig())
    model = _model(config, options).to(DTYPES[options.dtype])
    model.visual.fill_buffers(torch.device(options.device), DTYPES[options.dtype])
    for name, weight in model.named_parameters():
        weight.requires_grad_("lora_" in name)
        if weight.requires_grad:
            weight.data = weight.data.float()
    if options.recompute_activations:
        model.recompute_activations()
    if options.compile:
        compile_layers(model)
    made = sequences(config, options.row_length, options.num_rows)
    optimizer = make_optimizer(model, NO_RATES)
    side = _Side(model, optimizer, _packed_batches(made, options, config), False, options.dtype)
    side.step()
    for _ in range(options.num_rounds):
        side.time(options.device)
    cost = step_cost(config, recompute_activations=options.recompute_activations)
    return _figures(side, options, cost, rate, peak)


@torch.inference_mode()
def measure_features(options: TrainLimits, rate: float, peak: float | None) -> dict[str, Any]:
    """The visual encoder alone."""
    config = CONFIGS[options.size]()
    model = _model(config, options).eval().to(DTYPES[options.dtype])
    model.visual.fill_buffers(torch.device(options.device), DTYPES[options.dtype])
    if options.compile:
        compile_layers(model)
    side, number = config.vision.image_size, options.batch_images
    pixels_NCHW = torch.randn(
        number, 3, side, side, device=options.device, dtype=DTYPES[options.dtype]
    )
    model.visual(pixels_NCHW)
    seconds = [
        timed(lambda: model.visual(pixels_NCHW), options.device) for _ in range(options.num_rounds)
    ]
    per_image = (
        step_cost(config).forward.images - step_cost(config, use_features=True).forward.images
    )
    measured = number / median(seconds)
    return {
        "images_per_s": measured,
        "limit_images_per_s": rate / per_image,
        "share_of_limit": measured * per_image / rate,
    }


MEASURES: dict[Subject, Callable[[TrainLimits, float, float | None], dict[str, Any]]] = {
    "step": measure_step,
    "plain": measure_plain,
    "lora": measure_lora,
    "features": measure_features,
}

if __name__ == "__main__":
    for record in run_benchmark(tyro.cli(TrainLimits)):
        print(json.dumps(record), flush=True)
