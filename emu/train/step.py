"""One optimizer step: gradients over all ranks.

With `global` normalisation each loss of a micro-batch is weighted by its share of the targets of the whole step:
W ranks x batch B give the gradient of 1 rank x batch W B. With `micro_batch` every micro-batch has the same weight, as
in the mean of the released code. Parameter groups and learning rates: `emu/train/optim.py`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from emu.data.dataset import derived_seed
from emu.models.emu import Emu
from emu.models.objective import IGNORED, Batch, Losses, Objective, regression_positions
from emu.recipes import TrainConfig
from emu.train.parallel import Ranks as Ranks
from emu.train.parallel import is_sharded, whole


class OnDevice(Protocol):
    """What can be moved to a device, as a batch can."""

    def to(self, device: torch.device) -> Self:
        """The same on `device`."""
        ...


AnyBatch = TypeVar("AnyBatch", bound=OnDevice)


class TrainingError(RuntimeError):
    """Training that cannot continue: the step and the reason."""


@dataclass(frozen=True)
class StepResult:
    """Measurements of one step, over all ranks."""

    text: float
    visual: float
    total: float
    target_variance: float
    gradient_norm: float
    num_text: int
    num_visual: int
    num_images: int
    num_sequences: int
    num_positions: int
    """Text and image positions without padding."""
    num_computed: int
    """The same with padding."""
    num_squares: int
    """Sum of the squared lengths of the sequences."""
    num_bad: int = 0
    """Bad samples that were left out."""
    is_finite: bool = True
    """False if a loss or the gradient norm was not; then no weight has changed."""
    is_last: bool = False
    """True if a rank has been asked to stop."""


class LossModule(nn.Module, ABC, Generic[AnyBatch]):
    """A model and its objective as one module, from a batch to its losses; each stage of training has its own."""

    visual_weight: float
    """Of the visual loss in the total."""

    @abstractmethod
    def forward(
        self, batch: AnyBatch, text_weight: Tensor, visual_weight: Tensor
    ) -> tuple[Tensor, ...]:
        """The weighted sum to differentiate; then text loss, visual loss and target variance, detached."""

    @abstractmethod
    def image_weights(self) -> list[Tensor]:
        """The trainable weights that get no gradient from a step without images."""

    @abstractmethod
    def counts(self, batch: AnyBatch) -> Tensor:
        """What a batch holds, in the order of `StepResult`: `num_text` to `num_squares`."""

    @abstractmethod
    def empty_batch(self, device: torch.device) -> AnyBatch:
        """A batch without targets, which counts as nothing."""


class EmuLosses(LossModule[Batch]):
    """Emu and its objective."""

    def __init__(self, model: Emu, precision: str, are_patches: bool = False) -> None:
        """With `are_patches` the images of batches are precomputed features."""
        super().__init__()
        self.model, self.precision, self.are_patches = model, precision, are_patches
        self.objective = Objective(model.config.objective)
        self.visual_weight = model.config.objective.visual_weight

    def forward(
        self, batch: Batch, text_weight: Tensor, visual_weight: Tensor
    ) -> tuple[Tensor, ...]:
        """The weighted sum to differentiate; then text loss, visual loss and target variance, detached."""
        # sharded weights have the precision of the products already
        is_half = self.precision == "bfloat16" and not is_sharded(self)
        device = batch.input_ids_BL.device.type
        with torch.autocast(device, dtype=torch.bfloat16, enabled=is_half):
            nothing = 0 if batch.num_images else self._nothing_of_images(batch)
            output = self.model(batch, with_logits=False)
        losses: Losses = self.objective(output, batch)
        total = text_weight * losses.text
        factor = self.visual_weight
        if factor or self.model.language.regress_head.weight.requires_grad:
            total = total + visual_weight * factor * losses.visual
        total = total + nothing  # other ranks wait for the gradients of all weights
        return total, losses.text.detach(), losses.visual.detach(), losses.target_variance.detach()

    def _nothing_of_images(self, batch: Batch) -> Tensor | int:
        """Zero, with zero gradients of the weights that only images use.

        Sharded weights are gathered by the modules that use them, in the same order on all ranks: an empty image is
        encoded, before the sequences as elsewhere.
        """
        if not is_sharded(self):
            return sum(0 * weight.flatten()[0] for weight in self.image_weights())
        vision, device = self.model.config.vision, batch.input_ids_BL.device
        if self.are_patches:
            patches_NPV = torch.zeros(1, vision.num_tokens, vision.width, device=device)
            return 0 * self.model.encode_patches(patches_NPV).sum()
        pixels_NCHW = torch.zeros(1, 3, vision.image_size, vision.image_size, device=device)
        return 0 * self.model.encode_images(pixels_NCHW).sum()

    def image_weights(self) -> list[Tensor]:
        """The trainable weights that only images use."""
        parts = (self.model.visual, self.model.ln_visual, self.model.former)
        return [weight for part in parts for weight in part.parameters() if weight.requires_grad]

    def counts(self, batch: Batch) -> Tensor:
        """The numbers of text targets, visual targets, images, sequences, positions, those with padding, squares."""
        predictors, _ = regression_positions(
            batch.input_ids_BL, self.model.config.special, self.model.config.objective
        )
        labels = batch.labels_BL[:, 1:]
        numbers = (
            (labels != IGNORED).sum(),
            predictors.sum(),
            torch.tensor(batch.num_images, device=batch.input_ids_BL.device),
            torch.tensor(batch.num_sequences, device=batch.input_ids_BL.device),
            batch.attention_mask_BL.sum(),
            torch.tensor(batch.input_ids_BL.numel(), device=batch.input_ids_BL.device),
            batch.squares,
        )
        return torch.stack(numbers).double()

    def empty_batch(self, device: torch.device) -> Batch:
        """A sequence without targets and images; it counts as nothing."""
        special = self.model.config.special
        ids = torch.tensor([[special.bos, special.eos]], device=device)
        return Batch(ids, torch.ones_like(ids, dtype=torch.bool), torch.full_like(ids, IGNORED))


class Stepper(Generic[AnyBatch]):
    """Takes optimizer steps on a model."""

    def __init__(
        self,
        losses: LossModule[AnyBatch],
        optimizer: Optimizer,
        config: TrainConfig,
        ranks: Ranks,
        device: torch.device,
    ) -> None:
        self.config, self.ranks, self.device = config, ranks, device
        self.losses = losses
        self.image_weights = losses.image_weights()
        self.module = ranks.wrap(losses, device)
        self.optimizer = optimizer
        self.weights = [w for group in optimizer.param_groups for w in group["params"]]
        self.is_updating = False
        """True while the optimizer changes weights."""
        optimizer.register_step_pre_hook(lambda *_: self._update(True))
        optimizer.register_step_post_hook(lambda *_: self._update(False))

    def _update(self, begins: bool) -> None:
        self.is_updating = begins

    def step(
        self, batches: Sequence[AnyBatch], step: int, num_bad: int = 0, stops: bool = False
    ) -> StepResult:
        """Update the weights once, unless a loss or gradient is not finite or no rank has a sequence.

        Dropout masks follow from (seed, step, rank), so that a resumed run repeats an uninterrupted one. All ranks
        decide alike whether weights change.

        Args:
            batches: the micro-batches of this rank; none where all its samples are bad.
            num_bad: bad samples of this rank, to be summed over all.
            stops: true if this rank has been asked to stop, for the others to know.
        """
        torch.manual_seed(derived_seed("step", self.config.seed, step, self.ranks.share.rank))
        batches = [batch.to(self.device) for batch in batches]
        counted = [self.losses.counts(batch) for batch in batches]
        # a rank without sequences takes part in the synchronisation of gradients, and of sharded weights too
        most = max(self.ranks.gather(len(batches))) if is_sharded(self.module) else 0
        num_empty = max(1, most) - len(batches)
        batches += [self.losses.empty_batch(self.device) for _ in range(num_empty)]
        counted += [torch.zeros(7, dtype=torch.float64, device=self.device)] * num_empty
        counts = torch.stack(counted)
        own = torch.cat([counts.sum(dim=0), counts.new_tensor([num_bad, stops])])
        totals = self.ranks.sum(own)
        measured = self._backward(batches, counts, totals)
        if totals[2] == 0:  # no image on any rank: nothing to learn, and no weight decay
            for weight in self.image_weights:
                weight.grad = None
        norm = whole(nn.utils.clip_grad_norm_(self.weights, self.config.optim.clip_norm))
        is_infinite = (~torch.isfinite(norm)).to(measured)
        text, visual, variance, num_infinite = self.ranks.sum(
            torch.cat([measured, is_infinite.reshape(1)])
        ).tolist()
        is_finite = num_infinite == 0 and all(map(math.isfinite, (text, visual)))
        *numbers, num_stops = (int(n) for n in totals.tolist())
        if is_finite and totals[3]:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        total = text + self.losses.visual_weight * visual
        measures = (text, visual, total, variance, float(norm))
        return StepResult(*measures, *numbers, is_finite=is_finite, is_last=bool(num_stops))

    def _backward(self, batches: list[AnyBatch], counts: Tensor, totals: Tensor) -> Tensor:
        """Accumulate gradients; returns this rank's share of text loss, visual loss and variance."""
        world = self.ranks.share.world_size
        measured = torch.zeros(3, dtype=torch.float64, device=self.device)
        for number, batch in enumerate(batches):
            shares = self._shares(counts[number], totals, len(batches))
            is_last = number == len(batches) - 1
            with self.ranks.gradient_sync(self.module, enabled=is_last):
                # gradients are averaged over ranks; times their number that is the sum
                total, text, visual, variance = self.module(batch, *(shares * world).float())
                total.backward()
            parts = torch.stack((text * shares[0], visual * shares[1], variance * shares[1]))
            measured += parts.double()
        return measured

    def _shares(self, counts: Tensor, totals: Tensor, num_micro: int) -> Tensor:
        """The weights of a micro-batch in the text loss and in the visual loss of the whole step."""
        if self.config.normalisation == "micro_batch":
            return torch.full(
                (2,), 1 / (num_micro * self.ranks.share.world_size), device=self.device
            )
        return counts[:2] / totals[:2].clamp(min=1)
