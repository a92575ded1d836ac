"""Data-parallel ranks, and how they share a model: a full copy on each, or sharded weights (FSDP2, HSDP).

Sharded weights are float32 and cut along their first dimension. Those of a block (a layer of a part of the model) are
gathered, in the precision of the products, when it runs, and given up after; its gradients are summed in float32 onto
the shards. What is in no block (embeddings, heads, norms) is gathered for the whole step. With HSDP the ranks of a
group shard the weights, and groups average their gradients after the last micro-batch of a step.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from emu.data.batches import Share
from emu.models.emu import Emu
from emu.recipes import TrainConfig
from emu.train.compiled import blocks_of

Value = TypeVar("Value")


@dataclass(frozen=True)
class Ranks:
    """This process among `world_size` data-parallel ones; a single one needs no process group."""

    share: Share = field(default_factory=Share)

    @property
    def is_first(self) -> bool:
        """True on the rank that writes files."""
        return self.share.rank == 0

    @property
    def is_parallel(self) -> bool:
        """True if gradients have to be synchronised."""
        return self.share.world_size > 1

    def wrap(self, module: nn.Module, device: torch.device) -> nn.Module:
        """The module with gradients averaged over ranks in the backward pass; each has to use all weights."""
        if not self.is_parallel or is_sharded(module):
            return module
        devices = [device.index] if device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=devices)

    def gradient_sync(self, module: nn.Module, enabled: bool) -> AbstractContextManager[None]:
        """A context for a backward pass; gradients are synchronised after the last micro-batch of a step only.

        Of sharded weights they are summed within a group after each: a rank has no room for those of all weights.
        """
        if isinstance(module, FSDPModule):
            module.set_requires_all_reduce(enabled)
        if isinstance(module, DistributedDataParallel) and not enabled:
            return module.no_sync()
        return nullcontext()

    def sum(self, values: Tensor) -> Tensor:
        """The sum over ranks, on every rank."""
        if self.is_parallel:
            dist.all_reduce(values)
        return values

    def gather(self, value: Value) -> list[Value]:
        """The values of all ranks, in order, on every rank."""
        if not self.is_parallel:
            return [value]
        found: list[Any] = [None] * self.share.world_size
        dist.all_gather_object(found, value)
        return found

    def on_first(
        self, context: Callable[[], AbstractContextManager[Value]]
    ) -> AbstractContextManager[Value | None]:
        """The context on the rank that writes files, None on the others."""
        return context() if self.is_first else nullcontext(None)

    def share_of(self, batch_size: int) -> int:
        """This rank's rows of a batch; raises ValueError for a batch that cannot be shared equally."""
        world = self.share.world_size
        if batch_size % world:
            raise ValueError(
                f"a batch of {batch_size} cannot be shared by {world} processes; give a multiple of {world}"
            )
        return batch_size // world

    def mean(self, values: Sequence[float]) -> list[float]:
        """The means of numbers over ranks, on every rank."""
        total = self.sum(torch.tensor(values, dtype=torch.float64))
        return (total / self.share.world_size).tolist()

    def average_gradients(self, weights: Sequence[Tensor]) -> None:
        """Replace the gradients of weights by their means over ranks, for modules that are not wrapped."""
        if not self.is_parallel:
            return
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        flat = self.sum(torch.cat([gradient.flatten() for gradient in gradients]))
        parts = (flat / self.share.world_size).split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def barrier(self) -> None:
        """Block until every rank has reached this call."""
        if self.is_parallel:
            dist.barrier()


def shards_weights(config: TrainConfig, ranks: Ranks, device: torch.device) -> bool:
    """Whether a run shards its weights; raises ValueError for options that do not fit."""
    if config.shard_workers is not None and config.parallel != "hsdp":
        raise ValueError(
            f"shard_workers={config.shard_workers} is for hsdp alone, parallel is {config.parallel}"
        )
    if config.parallel == "auto":
        return ranks.is_parallel and device.type == "cuda"
    return config.parallel != "ddp" and ranks.is_parallel


def shard(losses: nn.Module, model: Emu, config: TrainConfig, device: torch.device) -> None:
    """Replace the weights of a model by this rank's shards; `losses` is the module that is called in a step.

    Raises ValueError for a number of ranks that cannot be divided into groups.
    """
    is_half = config.precision == "bfloat16"
    compute, sums = (torch.bfloat16, torch.float32) if is_half else (None, None)
    mesh = device_mesh(config, device.type)
    for block in blocks_of(model):
        fully_shard(block, mesh=mesh, mp_policy=MixedPrecisionPolicy(compute, sums))
    # the weights of the losses are inputs too, and keep their precision
    policy = MixedPrecisionPolicy(compute, sums, cast_forward_inputs=False)
    fully_shard(losses, mesh=mesh, mp_policy=policy)
    if is_half:
        model.visual.fill_buffers(device, torch.bfloat16)


def device_mesh(config: TrainConfig, device_type: str) -> DeviceMesh:
    """All ranks in a row, or for hsdp in as many rows as there are copies of the model."""
    world = dist.get_world_size()
    if config.parallel != "hsdp":
        return init_device_mesh(device_type, (world,), mesh_dim_names=("shard",))
    size = config.shard_workers or int(os.environ.get("LOCAL_WORLD_SIZE", world))
    if world % size:
        raise ValueError(
            f"{world} workers cannot be divided into groups of {size}; give another --train.shard-workers"
        )
    names = ("replicate", "shard")
    return init_device_mesh(device_type, (world // size, size), mesh_dim_names=names)


def is_sharded(module: nn.Module) -> bool:
    """Whether the weights of a module are sharded."""
    return isinstance(module, FSDPModule)


def give_up(module: nn.Module) -> None:
    """After a forward pass without a backward pass: give up the weights that were gathered."""
    if isinstance(module, FSDPModule):
        module.reshard()


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor as a whole, on every rank; all ranks call it. Another one as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
