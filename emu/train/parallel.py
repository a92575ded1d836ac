"""Several ranks as one: wrapping in DistributedDataParallel, sums over ranks, gradient hand-over."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from emu.data.stream import Share


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
