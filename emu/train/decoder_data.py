"""The images of a training of the visual decoder with their conditions, step by step, and the loss on them.

Shapes: B batch, Q causal queries, D language width, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor, nn

from emu.data.batches import Layout, Share, StepStream
from emu.data.dataset import Place, derived_seed
from emu.data.mixture import Mixture, Source
from emu.train.conditions import Conditions
from emu.train.step import LossModule
from schemas.images import decode_image


@dataclass(frozen=True)
class PromptedBatch:
    """Images, their conditions, and the seeds of their noise."""

    pixels_BCHW: Tensor  # uint8
    condition_BQD: Tensor  # float32
    seeds: tuple[int, ...]

    def to(self, device: torch.device) -> PromptedBatch:
        """The same batch on `device`."""
        pixels = self.pixels_BCHW.to(device, non_blocking=True)
        return PromptedBatch(pixels, self.condition_BQD.to(device, non_blocking=True), self.seeds)


Item = tuple[Tensor, Tensor, int]
"""Pixels `CHW`, condition `QD` and seed of an image."""


class PromptedStream(StepStream[Item, PromptedBatch]):
    """The images of each step for one rank, resized to `side` x `side` without regard to aspect."""

    def __init__(
        self,
        mixture: Mixture,
        conditions: Mapping[str, Conditions],
        side: int,
        seed: int,
        layout: Layout,
        share: Share | None = None,
        num_threads: int = 0,
    ) -> None:
        self.conditions, self.side, self.seed = conditions, side, seed
        super().__init__(mixture, layout, share, num_threads)

    def made(self, source: Source, place: Place) -> Item:
        """The image at a place."""
        shard = self.conditions[source.name].shards[place.shard]
        sample = source.reader.dataset.sample(place.shard, place.row)
        image = sample.segments[int(shard.segments_N[place.entry])].image
        seed = derived_seed("noise", self.seed, source.name, place.epoch, place.shard, place.entry)
        return pixels_of(image or b"", self.side), shard.condition(place.entry), seed

    def batches(self, source: Source, items: list[Item]) -> list[PromptedBatch]:
        """Micro-batches of at most the size of the layout."""
        size = self.layout.batch_size[source.name]
        parts = [items[start : start + size] for start in range(0, len(items), size)]
        return [
            PromptedBatch(
                torch.stack([pixels for pixels, _, _ in part]),
                torch.stack([condition for _, condition, _ in part]),
                tuple(seed for _, _, seed in part),
            )
            for part in parts
        ]

    def first_pixels(self, number: int) -> Tensor:
        """The first images of the stream `BCHW` in [-1, 1], of every corpus as many; bad ones are left out."""
        pixels: list[Tensor] = []
        for source in self.mixture.sources.values():
            share = min(len(source.reader), number // len(self.mixture.sources))
            places = [source.reader.place(position) for position in range(share)]
            batches, _ = self.held_out(source, places)
            pixels += [batch.pixels_BCHW for batch in batches]
        return centred(torch.cat(pixels))


class DecoderLosses(LossModule[PromptedBatch]):
    """The loss of a network under conditions, each replaced by the null condition with some probability."""

    visual_weight = 1.0

    def __init__(
        self,
        network: nn.Module,
        loss: Callable[..., Tensor],
        null_QD: Tensor,
        drop_probability: float,
        precision: str,
    ) -> None:
        super().__init__()
        self.network, self._loss = network, loss
        self.null_QD, self.drop_probability, self.precision = null_QD, drop_probability, precision

    def forward(
        self, batch: PromptedBatch, text_weight: Tensor, visual_weight: Tensor
    ) -> tuple[Tensor, ...]:
        """The weighted loss to differentiate; then nothing, the loss, and nothing, detached."""
        none = torch.zeros((), device=batch.pixels_BCHW.device)
        if not batch.seeds:  # other ranks wait for the gradients of all weights
            return sum((0 * w.flatten()[0] for w in self.image_weights()), none), none, none, none
        generators = [Generator().manual_seed(seed) for seed in batch.seeds]
        pixels_BCHW, is_half = centred(batch.pixels_BCHW), self.precision == "bfloat16"
        drop = self.drop_probability if self.training else 0.0
        with torch.autocast(pixels_BCHW.device.type, dtype=torch.bfloat16, enabled=is_half):
            loss = self._loss(batch.condition_BQD, pixels_BCHW, generators, self.null_QD, drop)
        return visual_weight * loss, none, loss.detach(), none

    def image_weights(self) -> list[Tensor]:
        """The trainable weights."""
        return [weight for weight in self.network.parameters() if weight.requires_grad]

    def counts(self, batch: PromptedBatch) -> Tensor:
        """No texts, as many targets, images and sequences as there are images, no positions."""
        number = len(batch.seeds)
        device = batch.pixels_BCHW.device
        return torch.tensor(
            [0, number, number, number, 0, 0, 0], dtype=torch.float64, device=device
        )

    def empty_batch(self, device: torch.device) -> PromptedBatch:
        """A batch without images."""
        nothing = torch.zeros(0, device=device)
        return PromptedBatch(nothing, nothing, ())


def centred(pixels_BCHW: Tensor) -> Tensor:
    """Pixels from 0 to 255 in [-1, 1]."""
    return pixels_BCHW.float() / 127.5 - 1


def pixels_of(image: bytes, side: int) -> Tensor:
    """The pixels `CHW` of an encoded image, uint8; raises `ImageError` for one that does not decode."""
    resized = decode_image(image).resize((side, side), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(resized).transpose(2, 0, 1).copy())
