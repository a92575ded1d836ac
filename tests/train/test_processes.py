"""Work in several forked processes: results, progress, errors, lost processes; and the trainings that use them."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from emu.train.processes import Tell, run_in_processes
from emu.train.step import Ranks, TrainingError
from emu.weights.store import load_model
from jobs import train_decoder, train_emu, train_visual
from pipelines.core.run import run
from pipelines.miniworld.config import PairsConfig
from pipelines.miniworld.pairs import pairs_pipeline
from tests.train.processes import SERVER


def in_clean_process(work: Callable[..., None], *arguments: Any) -> int | None:
    """The exit code of work in a process that has differentiated nothing and may have processes of its own."""
    SERVER.set_forkserver_preload(["tests.train.processes"])
    process = SERVER.Process(target=work, args=arguments)
    process.start()
    process.join(240)
    return process.exitcode


def sum_of_ranks(ranks: Ranks, tell: Tell) -> list[float]:
    for number in range(3):
        tell(number, ranks.share.rank)
    own = float(ranks.share.rank)
    weight = torch.nn.Parameter(torch.zeros(2))
    (weight * own).sum().backward()
    ranks.average_gradients([weight])
    assert weight.grad is not None
    total = ranks.sum(torch.tensor(own + 1))
    return [float(total), *ranks.mean([own]), *weight.grad.tolist()]


def check_sums() -> None:
    heard: list[tuple[int, int]] = []
    result = run_in_processes(3, sum_of_ranks, lambda *told: heard.append(told))
    assert result == [6.0, 1.0, 1.0, 1.0]
    assert heard == [(0, 0), (1, 0), (2, 0)], "progress of the first rank alone, in order"


def fail_on_the_second(ranks: Ranks, tell: Tell) -> None:
    if ranks.share.rank == 1:
        raise ValueError("of rank 1")
    ranks.barrier()


def die_on_the_second(ranks: Ranks, tell: Tell) -> None:
    if ranks.share.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()


def check_failures() -> None:
    with pytest.raises(ValueError, match="of rank 1"):
        run_in_processes(2, fail_on_the_second)
    with pytest.raises(TrainingError, match="process 1 of 2 was lost"):
        run_in_processes(2, die_on_the_second)


def test_ranks_work_together_and_tell_their_progress() -> None:
    assert in_clean_process(check_sums) == 0


def test_an_error_and_a_lost_process_reach_the_caller() -> None:
    assert in_clean_process(check_failures) == 0


def test_one_process_is_the_calling_one() -> None:
    assert run_in_processes(1, lambda ranks, tell: (os.getpid(), ranks)) == (os.getpid(), Ranks())


def test_a_batch_is_shared_equally_or_refused() -> None:
    assert Ranks().share_of(7) == 7
    with pytest.raises(ValueError, match="a batch of 7 cannot be shared by 2 processes"):
        run_shared(7)


def run_shared(size: int) -> int:
    from emu.data.batches import Share

    return Ranks(Share(0, 2)).share_of(size)


def train_all(root: Path, num_processes: int) -> None:
    """All trainings of the demo through their jobs, with three steps each."""
    options = f"--num-processes={num_processes}"
    out = root / f"out{num_processes}"
    data = f"--data={root / 'pairs'}"
    visual = [data, f"--out={out / 'visual'}", "--steps=3", "--train.batch-size=8", options]
    assert train_visual.main(visual) == 0
    emu = [
        data,
        f"--out={out / 'emu'}",
        "--num-workers=0",
        "--steps=3",
        "--train.checkpoint-every=2",
    ]
    emu += [f"--init={out / 'visual/model'}", f"--batch-size={8 // num_processes}", options]
    assert train_emu.main(emu) == 0
    decoder = [data, f"--model={out / 'emu/model'}", "--steps=3", "--batch-size=4", options]
    assert train_decoder.main([*decoder, "--rules.max-images=16"]) == 0


def read_rows(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    run(pairs_pipeline(PairsConfig(num_pairs=60)), str(tmp_path / "pairs"), progress=False)
    for num_processes in (1, 2):
        assert in_clean_process(train_all, tmp_path, num_processes) == 0
    one, two = tmp_path / "out1", tmp_path / "out2"
    for model in ("visual/model", "emu/model"):
        states = [load_model(out / model)[0].state_dict() for out in (one, two)]
        for name, weight in states[0].items():
            torch.testing.assert_close(weight, states[1][name], atol=2e-3, rtol=1e-2, msg=name)
    for metrics, loss in (("visual/model", "former_loss"), ("emu", "text_loss")):
        losses = [
            [row[loss] for row in read_rows(out / metrics / "metrics.jsonl")] for out in (one, two)
        ]
        assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert (two / "emu/model/decoder/unet").is_dir()
    assert len(read_rows(two / "emu/model/decoder/metrics.jsonl")) == 1
