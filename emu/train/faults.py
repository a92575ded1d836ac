"""What a run skips, by rule, and when it stops: bad samples, and steps whose loss or gradient is not finite.

A bad sample is left out of its step. A step with a loss or gradient norm that is not finite changes no weight; its
samples count as read. Both follow from data and weights, so that every number of ranks and a resumed run decide alike.
Each leaves a line in `skipped.jsonl` of the run folder. Too many in a row stop the run: `TrainConfig.max_bad_samples`,
`TrainConfig.max_skipped_steps`.

| field            | of a sample                                           | of a step                                |
|------------------|-------------------------------------------------------|------------------------------------------|
| skipped          | "sample"                                              | "step"                                   |
| step             | the step that would have had it, from 1               | the step, from 1                         |
| corpus           | its corpus                                            | its corpus                               |
| in_a_row         | bad samples up to this one, in the order of its corpus | skipped steps up to this one            |
| reason, detail   | a reason word (`emu.data.batches.BadSample`); the error | "not_finite"; losses and gradient norm |
| key, shard, epoch, position | which sample, and where in the stream of its corpus |                             |
| keys             |                                                       | the samples of the whole global batch    |
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from emu.data.batches import BadSample, StepStream
from emu.recipes import TrainConfig
from emu.train.step import Ranks, StepResult, TrainingError

log = logging.getLogger(__name__)

SKIPPED = "skipped.jsonl"
SHOWN = 8
"""Keys that an error names, at most; the ledger has all."""


class Faults:
    """The skipped samples and steps of a run; every rank decides alike, the first one writes.

    Of a resumed run the lines after `first_step` are removed: those steps are repeated.
    """

    def __init__(self, out: Path, ranks: Ranks, config: TrainConfig, first_step: int) -> None:
        self.path, self.ranks, self.config = out / SKIPPED, ranks, config
        self._samples: dict[str, tuple[int, int]] = {}
        """By corpus: the position after the last bad sample, and how many there were in a row."""
        self._steps = (0, 0)
        """The last skipped step, and how many there were in a row."""
        kept = [row for row in read_skipped(out) if row["step"] <= first_step]
        for row in kept:
            if row["skipped"] == "sample":
                self._samples[row["corpus"]] = (row["position"] + 1, row["in_a_row"])
            else:
                self._steps = (row["step"], row["in_a_row"])
        if ranks.is_first and self.path.is_file():
            temporary = out / f".{SKIPPED}.{os.getpid()}"
            temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))
            temporary.replace(self.path)

    def watch(self, step: int, result: StepResult, stream: StepStream[Any, Any]) -> None:
        """Note what a step skipped on any rank; raises `TrainingError` for too much in a row."""
        if result.num_bad:
            everywhere = self.ranks.gather(stream.bad)
            bad = sorted((b for own in everywhere for b in own), key=lambda b: b.position)
            self._watch_samples(step, bad, stream)
        if not result.is_finite:
            self._watch_step(step, result, stream)

    def _watch_samples(
        self, step: int, bad: Sequence[BadSample], stream: StepStream[Any, Any]
    ) -> None:
        for sample in bad:
            following, before = self._samples.get(sample.corpus, (sample.position, 0))
            source = stream.mixture.sources[sample.corpus]
            while following < sample.position and source.is_held_out(following):
                following += 1
            in_a_row = before + 1 if sample.position == following else 1
            self._samples[sample.corpus] = (sample.position + 1, in_a_row)
            self._write({"skipped": "sample", "step": step, "in_a_row": in_a_row} | asdict(sample))
            if in_a_row > self.config.max_bad_samples:
                raise TrainingError(
                    f"step {step}: {in_a_row} bad samples in a row of corpus '{sample.corpus}', the limit is "
                    f"{self.config.max_bad_samples} (--train.max-bad-samples); the last is '{sample.key}' of shard "
                    f"{sample.shard}: {sample.detail}; all are in {self.path}. emu inspect DATASET --lint finds "
                    "damaged files"
                )

    def _watch_step(self, step: int, result: StepResult, stream: StepStream[Any, Any]) -> None:
        before, in_a_row = self._steps
        in_a_row = in_a_row + 1 if step == before + 1 else 1
        self._steps = (step, in_a_row)
        detail = (
            f"text loss {result.text}, visual loss {result.visual}, "
            f"gradient norm {result.gradient_norm}"
        )
        keys = stream.keys()
        self._write(
            {
                "skipped": "step",
                "step": step,
                "in_a_row": in_a_row,
                "corpus": stream.corpus,
                "reason": "not_finite",
                "detail": detail,
                "keys": keys,
            }
        )
        if in_a_row > self.config.max_skipped_steps:
            more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
            raise TrainingError(
                f"step {step}: {in_a_row} steps in a row without a finite loss, the limit is "
                f"{self.config.max_skipped_steps} (--train.max-skipped-steps); the last: {detail}, on samples of "
                f"corpus '{stream.corpus}': {', '.join(keys[:SHOWN])}{more} (all in {self.path}). Lower the "
                "learning rates, or use float32"
            )

    def _write(self, row: Mapping[str, Any]) -> None:
        log.warning("skipped %s", " ".join(f"{n}={v}" for n, v in row.items() if n != "keys"))
        if self.ranks.is_first:
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")


def read_skipped(out: Path) -> list[dict[str, Any]]:
    """What a run has skipped so far, without a last line that a kill has truncated."""
    path = out / SKIPPED
    if not path.is_file():
        return []
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]
