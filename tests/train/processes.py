"""Work in processes of their own that can be killed; forked from a server that has imported torch."""

import multiprocessing
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from emu.data.batches import Share
from emu.train.loop import TrainPlan, train
from emu.train.optim import make_optimizer
from emu.train.plan import open_stream
from emu.train.start import start_model
from emu.train.step import EmuLosses, Ranks, Stepper, StepResult

CPU = torch.device("cpu")
SERVER = multiprocessing.get_context("forkserver")


def start(work: Callable[..., Any], *arguments: Any) -> BaseProcess:
    """Begin the work in a fresh process."""
    SERVER.set_forkserver_preload(["tests.train.processes"])
    process = SERVER.Process(target=work, args=arguments, daemon=True)
    process.start()
    return process


def gradients_after(
    plan: TrainPlan, ranks: Ranks, device: torch.device = CPU
) -> tuple[dict[str, torch.Tensor], StepResult]:
    """Gradients that one step moves the weights by, and what it measured."""
    model = start_model(plan.model, plan.train, None, device)
    optimizer = make_optimizer(model, plan.train.optim)
    seen: dict[str, torch.Tensor] = {}

    def keep(*_: object) -> None:
        for name, weight in model.named_parameters():
            if weight.grad is not None:
                seen[name] = weight.grad.clone()

    optimizer.register_step_pre_hook(keep)
    batches = open_stream(plan, None, ranks).next_step()
    return seen, Stepper(
        EmuLosses(model, plan.train.precision), optimizer, plan.train, ranks, device
    ).step(batches, 0)


def gradient_work(rank: int, world: int, plan: TrainPlan, folder: Path) -> None:
    """Write what `gradients_after` gives on one of several ranks."""
    torch.set_num_threads(1)
    meeting = f"file://{folder / 'meeting'}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
    torch.save(gradients_after(plan, Ranks(Share(rank, world))), folder / f"{rank}.pt")
    dist.destroy_process_group()


def train_work(plan: TrainPlan) -> None:
    """Train to the end of the plan."""
    torch.set_num_threads(1)
    train(plan)


def train_rank(rank: int, world: int, plan: TrainPlan) -> None:
    """Train to the end of the plan as one of several ranks."""
    train_ranks(rank, world, [plan])


def train_ranks(rank: int, world: int, plans: list[TrainPlan]) -> None:
    """Train to the ends of the plans, one after the other, as one of several ranks."""
    torch.set_num_threads(1)
    meeting = f"file://{plans[0].out}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
    for plan in plans:
        train(plan, Ranks(Share(rank, world)))
    dist.destroy_process_group()


def train_without_ray(plan: TrainPlan) -> None:
    """Train where Ray cannot be imported; nothing imported so far has asked for it."""
    assert not [name for name in sys.modules if name == "ray" or name.startswith("ray.")]
    sys.modules["ray"] = None  # type: ignore[assignment]
    train_work(plan)
