"""One optimizer step: parameter groups and learning rates, gradients over all ranks.

AdamW has the paper's parameter groups and schedule (section 3.2). With `global` normalisation each loss of a
micro-batch is weighted by its share of the targets of the whole step, so that W ranks x batch B give the
gradient of 1 rank x batch W B. With `micro_batch` every micro-batch has the same weight, as in the mean of
the released code.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW, Optimizer

from emu.config import EmuConfig
from emu.data.dataset import derived_seed
from emu.data.stream import Share
from emu.models.batch import Batch
from emu.models.emu import Emu
from emu.models.objective import IGNORED, Losses, Objective, regression_positions
from emu.recipes import OptimConfig, TrainConfig

NO_DECAY = re.compile(
    r"(^|\.)(bias|q_bias|v_bias|pos_embed|cls_token|queries)$"
    r"|(^|[._])(norm\d?|layernorm|ln_visual)\.|norm\.weight$"
    r"|(embed_tokens|relative_bias)\.weight$"
)
PARTS = (
    ("visual.", "vision"),
    ("ln_visual.", "former"),
    ("former.", "former"),
    ("language.regress_head.", "regress"),
    ("language.", "language"),
)


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


@dataclass(frozen=True)
class Ranks:
    """This process among `world_size` equal ones; one alone needs no process group."""

    share: Share = field(default_factory=Share)

    @property
    def is_first(self) -> bool:
        """True on the rank that writes files."""
        return self.share.rank == 0

    @property
    def is_parallel(self) -> bool:
        """True where gradients have to be exchanged."""
        return self.share.world_size > 1

    def wrap(self, module: nn.Module, device: torch.device) -> nn.Module:
        """The module with gradients averaged over ranks in the backward pass.

        A batch may hold no image, so weights may be unused in a step; the wrapper looks for them.
        """
        if not self.is_parallel:
            return module
        devices = [device.index] if device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=devices, find_unused_parameters=True)

    def without_exchange(self, module: nn.Module, is_last: bool) -> AbstractContextManager[None]:
        """Around all micro-batches of a step but the last: gradients are added up locally."""
        if isinstance(module, DistributedDataParallel) and not is_last:
            return module.no_sync()
        return nullcontext()

    def sum(self, values: Tensor) -> Tensor:
        """The sum over ranks, on every rank."""
        if self.is_parallel:
            dist.all_reduce(values)
        return values

    def wait(self) -> None:
        """Until every rank is here."""
        if self.is_parallel:
            dist.barrier()


def part_of(name: str) -> str:
    """The part of the model whose learning rate a weight takes."""
    for prefix, part in PARTS:
        if name.startswith(prefix):
            return part
    raise ValueError(f"weight '{name}' belongs to no known part; known are {[p for p, _ in PARTS]}")


def is_decayed(name: str, weight: torch.Tensor) -> bool:
    """True for matrices; false for norms, biases, positions, class token, queries, embeddings."""
    return weight.ndim > 1 and not NO_DECAY.search(name)


def weight_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Trainable weights by part and decay, as groups of an optimizer; frozen weights are left out.

    Each group names itself and its weights, and carries its peak rate as `peak_lr`.
    """
    peaks = {
        "vision": config.vision_lr,
        "former": config.former_lr,
        "language": config.language_lr,
        "regress": config.language_lr if config.regress_lr is None else config.regress_lr,
    }
    groups: dict[tuple[str, bool], dict[str, Any]] = {}
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            continue
        part, decayed = part_of(name), is_decayed(name, weight)
        fresh = {
            "name": f"{part}/{'decay' if decayed else 'no_decay'}",
            "peak_lr": peaks[part],
            "lr": peaks[part],
            "weight_decay": config.weight_decay if decayed else 0.0,
            "weight_names": [],
            "params": [],
        }
        group = groups.setdefault((part, decayed), fresh)
        group["params"].append(weight)
        group["weight_names"].append(name)
    return list(groups.values())


def make_optimizer(model: nn.Module, config: OptimConfig) -> AdamW:
    """AdamW over the trainable weights of a model, in one pass over them where they have values."""
    is_fused = not any(weight.is_meta for weight in model.parameters())
    groups = weight_groups(model, config)
    return AdamW(groups, betas=config.betas, eps=config.eps, fused=is_fused)


def rate_factor(step: int, steps: int, config: OptimConfig) -> float:
    """The part of the peak rate at a step (from 0): linear up over the warmup, then a cosine down."""
    warmup = round(config.warmup_ratio * steps)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.final_ratio + (1 - config.final_ratio) * cosine


def visual_factor(step: int, steps: int, config: OptimConfig) -> float:
    """The part of that rate that vision and former take at a step: 0 while they wait, then rising to 1."""
    wait = round(config.visual_wait_ratio * steps)
    if wait == 0:
        return 1.0
    warmup = max(1, round(config.warmup_ratio * steps))
    return min(1.0, max(0.0, (step - wait + 1) / warmup))


def set_rates(optimizer: Optimizer, step: int, steps: int, config: OptimConfig) -> None:
    """Give every group its rate for a step."""
    factor = rate_factor(step, steps, config)
    visual = factor * visual_factor(step, steps, config)
    for group in optimizer.param_groups:
        is_visual = group["name"].partition("/")[0] in ("vision", "former")
        group["lr"] = group["peak_lr"] * (visual if is_visual else factor)


def _is_finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")
