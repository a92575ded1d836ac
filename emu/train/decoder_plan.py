"""What a training of the visual decoder costs: operations per image for its log, and for `--plan` memory, steps, days.

Operations are counted by torch's `FlopCounterMode` while the loss of one image is computed and differentiated, frozen
parts included; those of a batch are as many times as much. For a plan that happens on fake tensors, which have
shapes alone, and so does the measurement of what autograd saves (`emu/train/memory.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from emu.config import DecoderConfig, EmuConfig
from emu.decoder_recipe import DecoderTrainConfig
from emu.decoders import decoder_class
from emu.models.emu import Emu
from emu.train.decoder_data import DecoderLosses, PromptedBatch
from emu.train.flops import Cost, StepCost
from emu.train.forecast import GB, RESERVED_GB, Cluster
from emu.train.memory import FLOAT, MOMENTS, fill_fake, saved_bytes


@dataclass(frozen=True)
class DecoderForecast:
    """What a training of the visual decoder needs on a cluster; bytes are those of one GPU."""

    weights: float
    """Of the trained network and of the frozen parts."""
    gradients: float
    """And the buckets in which they are averaged over workers."""
    optimizer: float
    activations: float
    images: int
    """Images of a micro-batch."""
    cost: StepCost
    step_s: float
    days: float
    limit_gb: float
    condition_bytes: float
    """On disk, per prompt."""
    frozen_bytes: float
    """Of the model that computes the conditions before the first step."""

    @property
    def peak(self) -> float:
        """An upper bound: activations are given up while gradients appear, which is not counted."""
        return self.weights + self.gradients + self.optimizer + self.activations

    @property
    def fits(self) -> bool:
        """True if the peak leaves room for what is not counted."""
        return self.peak / GB <= self.limit_gb


def image_cost(losses: DecoderLosses, side: int) -> StepCost:
    """The operations of an image of `side` x `side` pixels, counted in a pass of one; weights get no gradient."""
    device = next(losses.network.parameters()).device
    batch = _batch(1, side, losses.null_QD).to(device)
    with torch.random.fork_rng(devices=[]), FlopCounterMode(display=False) as counter:
        total = _total(losses, batch)
        forward = counter.get_total_flops()
        total.backward()
        both = counter.get_total_flops()
    losses.zero_grad(set_to_none=True)
    return StepCost(Cost(images=forward), Cost(images=both - forward), Cost())


def forecast_decoder(
    model: EmuConfig, options: DecoderTrainConfig, cluster: Cluster
) -> DecoderForecast:
    """The needs of a training from weights of the sizes in `model`; raises ValueError for a batch below the workers."""
    if options.batch_size < cluster.num_workers:
        raise ValueError(
            f"batch_size is {options.batch_size} for {cluster.num_workers} workers; give at least one image each"
        )
    sizes = model.decoder or DecoderConfig()
    width = model.language.hidden_size
    with torch.device("meta"):
        decoder = decoder_class(sizes.kind).from_config(sizes, width, 0)
    assert isinstance(decoder, nn.Module)
    num_images = -(-options.batch_size // cluster.num_workers)
    micro = min(options.micro_batch_size or num_images, num_images)
    with FakeTensorMode(allow_non_fake_inputs=True):
        fill_fake(decoder)
        _, network = decoder.trained_network()
        network.requires_grad_(True).train()
        null_QD = torch.zeros(model.former.num_queries, width)
        losses = DecoderLosses(network, decoder.loss, null_QD, 0.1, options.precision)
        cost = image_cost(losses, sizes.image_size)
        one, two = (_saved(decoder, losses, sizes.image_size, n) for n in (1, 2))
    trained = sum(w.numel() for w in network.parameters())
    every = sum(w.numel() for w in decoder.parameters())
    step_s = num_images * cost.model_of_images / (cluster.peak_tflops * 1e12 * cluster.utilisation)
    return DecoderForecast(
        weights=every * FLOAT,
        gradients=trained * FLOAT * (2 if cluster.num_workers > 1 else 1),
        optimizer=trained * MOMENTS,
        activations=one + (micro - 1) * (two - one),
        images=micro,
        cost=cost,
        step_s=step_s,
        days=step_s * options.steps / 86_400,
        limit_gb=cluster.memory_gb - RESERVED_GB,
        condition_bytes=null_QD.numel() * getattr(torch, options.condition_precision).itemsize,
        frozen_bytes=_weights_of(model) * FLOAT,
    )


def smaller_batches(found: DecoderForecast) -> Iterator[str]:
    """The largest micro-batch with which a training that does not fit would fit, if there is one."""
    fixed = found.peak - found.activations
    left = found.limit_gb * GB - fixed
    images = int(left / found.activations * found.images) if left > 0 else 0
    if images:
        yield f"--train.micro-batch-size {images}"


def described(found: DecoderForecast, options: DecoderTrainConfig, cluster: Cluster) -> str:
    """The forecast as lines for a terminal."""
    parts = ("weights", "gradients", "optimizer", "activations")
    lines = [f"{name:<12} {getattr(found, name) / GB:8.2f} GB" for name in parts]
    executed = found.cost.model_of_images / 1e12
    return "\n".join(
        [
            f"memory per GPU, of {cluster.num_workers}, full copies, {found.images} images at once:",
            *lines,
            f"{'peak':<12} {found.peak / GB:8.2f} GB of {found.limit_gb:.1f} GB, at most",
            f"image        {executed:8.3f} TFLOP forward and backward, "
            f"{found.cost.forward.images / 1e12:.3f} of them forward",
            f"step         {executed * options.batch_size:8.1f} TFLOP over all GPUs, {found.step_s:.2f} s at "
            f"{cluster.utilisation:.0%} of {cluster.peak_tflops:g} TFLOP/s",
            f"run          {options.steps:,} steps of {options.batch_size:,} images, {found.days:.1f} days",
            f"conditions   {found.condition_bytes * 1e6 / GB:8.1f} GB on disk per million prompts "
            f"({options.condition_precision})",
            f"before       {found.frozen_bytes / GB:8.1f} GB per GPU for the model that computes them",
        ]
    )


def _batch(number: int, side: int, null_QD: Tensor) -> PromptedBatch:
    pixels = torch.zeros(number, 3, side, side, dtype=torch.uint8)
    conditions = torch.zeros(number, *null_QD.shape)
    return PromptedBatch(pixels, conditions, tuple(range(number)))


def _total(losses: DecoderLosses, batch: PromptedBatch) -> Tensor:
    one = torch.ones((), device=batch.pixels_BCHW.device)
    return losses(batch, one, one)[0]


def _saved(decoder: nn.Module, losses: DecoderLosses, side: int, number: int) -> float:
    batch = _batch(number, side, losses.null_QD)
    return saved_bytes(decoder, lambda: _total(losses, batch))


def _weights_of(model: EmuConfig) -> int:
    with torch.device("meta"):
        frozen = Emu(replace(model, decoder=None))
    return sum(weight.numel() for weight in frozen.parameters())
