"""One optimizer step: forward and backward of its micro-batches, gradients over all ranks.

With `global` normalisation each loss of a micro-batch is weighted by its part of the targets of the
whole step, so that W ranks x batch B give the gradient of 1 rank x batch W B. With `micro_batch` each
micro-batch counts the same, as in the released code's mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from emu.config import EmuConfig
from emu.data.dataset import derived_seed
from emu.models.batch import Batch
from emu.models.emu import Emu
from emu.models.objective import IGNORED, Losses, Objective, regression_positions
from emu.train.config import TrainConfig
from emu.train.parallel import Ranks


class TrainingError(RuntimeError):
    """Training that cannot go on, at which step and why."""


@dataclass(frozen=True)
class StepResult:
    """What one step measured, over all ranks."""

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


class LossModule(nn.Module):
    """A model and its objective as one module: a batch in, its losses out."""

    def __init__(self, model: Emu, precision: str) -> None:
        super().__init__()
        self.model, self.precision = model, precision
        self.objective = Objective(model.config.objective)

    def forward(
        self, batch: Batch, text_weight: Tensor, visual_weight: Tensor
    ) -> tuple[Tensor, ...]:
        """The weighted sum to differentiate, then text, visual and target variance without gradient."""
        is_half = self.precision == "bfloat16"
        device = batch.input_ids_BL.device.type
        with torch.autocast(device, dtype=torch.bfloat16, enabled=is_half):
            output = self.model(batch)
        losses: Losses = self.objective(output, batch)
        total = text_weight * losses.text
        total = total + visual_weight * self.model.config.objective.visual_weight * losses.visual
        return total, losses.text.detach(), losses.visual.detach(), losses.target_variance.detach()


class Stepper:
    """Takes optimizer steps on a model; holds what does not change between them."""

    def __init__(
        self,
        model: Emu,
        optimizer: Optimizer,
        config: TrainConfig,
        ranks: Ranks,
        device: torch.device,
    ) -> None:
        self.config, self.ranks, self.device = config, ranks, device
        self.model_config: EmuConfig = model.config
        self.module = ranks.wrap(LossModule(model, config.precision), device)
        self.optimizer = optimizer
        self.weights = [w for group in optimizer.param_groups for w in group["params"]]

    def step(self, batches: Sequence[Batch], step: int) -> StepResult:
        """Move the weights by one step; raises `TrainingError` for a loss that is not finite.

        Dropout is drawn from (seed, step, rank), so that a resumed run repeats an uninterrupted one.
        """
        torch.manual_seed(derived_seed("step", self.config.seed, step, self.ranks.share.rank))
        batches = [batch.to(self.device) for batch in batches]
        counts = torch.stack([self._counts(batch) for batch in batches])
        totals = self.ranks.sum(counts.sum(dim=0))
        measured = self._backward(batches, counts, totals)
        norm = nn.utils.clip_grad_norm_(self.weights, self.config.optim.clip_norm)
        text, visual, variance = self.ranks.sum(measured).tolist()
        if not (torch.isfinite(norm) and all(map(_is_finite, (text, visual)))):
            raise TrainingError(
                f"step {step}: text loss {text}, visual loss {visual}, gradient norm {float(norm)}; "
                "the last checkpoint is before this step: lower the learning rates or use float32"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        total = text + self.model_config.objective.visual_weight * visual
        numbers = [int(n) for n in totals.tolist()]
        return StepResult(text, visual, total, variance, float(norm), *numbers)

    def _backward(self, batches: list[Batch], counts: Tensor, totals: Tensor) -> Tensor:
        """Add up gradients; returns this rank's share of text loss, visual loss and variance."""
        world = self.ranks.share.world_size
        measured = torch.zeros(3, dtype=torch.float64, device=self.device)
        for number, batch in enumerate(batches):
            shares = self._shares(counts[number], totals, len(batches))
            is_last = number == len(batches) - 1
            with self.ranks.without_exchange(self.module, is_last):
                # ranks average their gradients; times their number it is the sum
                total, text, visual, variance = self.module(batch, *(shares * world).float())
                total.backward()
            parts = torch.stack((text * shares[0], visual * shares[1], variance * shares[1]))
            measured += parts.double()
        return measured

    def _shares(self, counts: Tensor, totals: Tensor, num_micro: int) -> Tensor:
        """The part of a micro-batch in the text and in the visual loss of the whole step."""
        if self.config.normalisation == "micro_batch":
            return torch.full(
                (2,), 1 / (num_micro * self.ranks.share.world_size), device=self.device
            )
        return counts[:2] / totals[:2].clamp(min=1)

    def _counts(self, batch: Batch) -> Tensor:
        """Text targets, visual targets, images, sequences, positions of a micro-batch."""
        predictors, _ = regression_positions(
            batch.input_ids_BL, self.model_config.special, self.model_config.objective
        )
        labels = batch.labels_BL[:, 1:]
        numbers = (
            (labels != IGNORED).sum(),
            predictors.sum(),
            torch.tensor(batch.num_images, device=self.device),
            torch.tensor(len(batch.input_ids_BL), device=self.device),
            batch.attention_mask_BL.sum(),
        )
        return torch.stack(numbers).double()


def _is_finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")
