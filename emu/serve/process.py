"""The interpreter of a serving process: requests wait neither for the garbage collector nor long for threads."""

from __future__ import annotations

import gc
import sys

MANY = 200_000
"""Objects made, beyond those freed, after which the collector of a process of many connections looks at the youngest.

A request leaves no cycles behind, so there is little to find. What requests free counts against what they make: with
700, the default, the 120 objects of each of 500 streams were looked at together every few requests, for 20 ms."""
SWITCH_S = 0.0005
"""Seconds after which a thread that waits for the interpreter gets it; by default 0.005, as long as a first token takes
in a small model."""


def prepare_process(num_young: int | None = None) -> None:
    """Call it when all is loaded: what exists now is never looked at again by the garbage collector.

    With all modules, a collection took 0.1 s, in which no request was answered. `num_young` is as `MANY`; a process
    with tensors keeps the default, so that tensors in cycles are freed soon.
    """
    gc.collect()
    gc.freeze()
    if num_young is not None:
        gc.set_threshold(num_young, *gc.get_threshold()[1:])
    sys.setswitchinterval(SWITCH_S)
