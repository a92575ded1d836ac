"""Work in several processes of this machine without Ray: data-parallel training of small models on the cores.

The processes are forked, so they start at once; each has one thread. Work that needs GPUs, several
machines or a restart of lost workers belongs to Ray Train (`emu.train.ray_trainer`).
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from emu.data.batches import Share
from emu.train.step import Ranks, TrainingError
from emu.train.stopping import Stopped, StopRequest

END_S = 10.0
"""Seconds that a process has for removing what it has not finished."""
Tell = Callable[..., None]
"""Takes the progress of the first process to the caller."""
Work = Callable[[Ranks, Tell], Any]


def run_in_processes(num_processes: int, work: Work, tell: Tell = lambda *progress: None) -> Any:
    """Run `work` on so many ranks; returns what it returns on the first.

    Ctrl-C and SIGTERM are passed on as SIGTERM, once: work that saves first (`emu.train.stopping`) has the time to; a
    second Ctrl-C ends it. The processes end at once when this one is killed.

    The calling process must not have differentiated anything before: autograd does not survive a fork. With one
    process the work is done in the calling one.

    Raises:
        Stopped: if the work saved and stopped on a request.
        KeyboardInterrupt: if it did not.
        TrainingError: where a process was lost.
        ValueError: for several processes on a machine with a GPU.
        Exception: that of the rank that failed first; the other processes are ended.
    """
    if num_processes == 1:
        return work(Ranks(), tell)
    if torch.cuda.is_available():
        raise ValueError(
            f"num_processes is {num_processes}: processes without Ray share the cores of a machine without a GPU; "
            "give 1, or workers of Ray Train where the job has them"
        )
    fork = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        alive, kept = os.pipe()  # readable in the processes when this one has ended
        ours: list[Connection] = []
        processes = []
        for rank in range(num_processes):
            receiver, sender = fork.Pipe(duplex=False)
            share = Share(rank, num_processes)
            arguments = (work, share, Path(folder) / "meeting", sender, alive, kept)
            processes.append(fork.Process(target=_run_rank, args=arguments, daemon=True))
            processes[-1].start()
            sender.close()
            ours.append(receiver)
        stop = StopRequest()
        try:
            with stop.on_signals(lambda: _ask_to_end(processes)):
                return _result(ours, tell)
        except Stopped as error:
            raise Stopped(error.step, stop.signal or error.signal) from None
        except TrainingError as error:
            if not stop.is_made:
                raise
            raise KeyboardInterrupt from error  # it does not save, and was lost to the signal
        finally:
            _end(processes)
            os.close(alive)
            os.close(kept)


def _ask_to_end(processes: Sequence[BaseProcess]) -> None:
    for process in processes:
        process.terminate()


def _end(processes: Sequence[BaseProcess]) -> None:
    """End what still runs; each process may remove what it has not finished writing."""
    _ask_to_end(processes)
    for process in processes:
        process.join(END_S)
        process.kill()
        process.join()


def _result(connections: list[Connection], tell: Tell) -> Any:
    """What the first rank returned, when all have; passes its progress on."""
    results: dict[int, Any] = {}
    while len(results) < len(connections):
        waiting = [c for rank, c in enumerate(connections) if rank not in results]
        for connection in wait(waiting):
            rank = connections.index(connection)  # type: ignore[arg-type]
            try:
                kind, value = connections[rank].recv()
            except EOFError as error:
                raise TrainingError(
                    f"process {rank} of {len(connections)} was lost (killed, or out of memory)"
                ) from error
            if kind == "error":
                raise value
            if kind == "result":
                results[rank] = value
            else:
                tell(*value)
    return results[0]


def _run_rank(
    work: Work, share: Share, meeting: Path, sender: Connection, alive: int, kept: int
) -> None:
    """The life of one process."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller is interrupted, and ends this process
    os.close(kept)
    threading.Thread(target=_end_with_the_caller, args=(alive,), daemon=True).start()
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{meeting}", rank=share.rank, world_size=share.world_size
        )
        tell = (
            (lambda *progress: sender.send(("progress", progress))) if not share.rank else _silent
        )
        sender.send(("result", work(Ranks(share), tell)))
    except Exception as error:  # noqa: BLE001 - raised again by the caller
        sender.send(("error", _sendable(error)))
    finally:
        sender.close()
    os._exit(0)  # nothing of the caller's is to be closed or flushed here


def _sendable(error: Exception) -> Exception:
    """The error, or one that says the same where it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - whatever its constructor raises
        return TrainingError(f"{type(error).__name__}: {error}")
    return error


def _silent(*progress: Any) -> None:
    """Progress of other ranks than the first."""


def _end_with_the_caller(alive: int) -> None:
    os.read(alive, 1)
    os._exit(1)
