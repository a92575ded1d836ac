"""What the processes of the server set in their interpreter; in a process of its own, since it holds for all of one."""

import gc
import multiprocessing
import sys
from multiprocessing.connection import Connection

from emu.serve.process import MANY, SWITCH_S, prepare_process


def prepare(results: Connection) -> None:
    before = len(gc.get_objects())
    prepare_process(MANY)
    results.send((before, gc.get_freeze_count(), gc.get_threshold(), sys.getswitchinterval()))


def test_what_is_loaded_is_not_collected_again() -> None:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=prepare, args=(there,))
    process.start()
    before, num_frozen, thresholds, switch_s = here.recv()
    process.join()
    assert num_frozen > before / 2 > 1000
    assert thresholds[0] == MANY and switch_s == SWITCH_S
