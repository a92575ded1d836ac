"""What a run measures between two lines of its log: work per second, and the losses of each corpus."""

from __future__ import annotations

import torch

from emu.data.mixture import Mixture
from emu.recipes import TrainConfig
from emu.train.flops import BatchSize, StepCost, known_peak_tflops
from emu.train.step import StepResult


class WorkMeter:
    """Model FLOPs since the last line of the log, by the exact count of `emu/train/flops.py`."""

    def __init__(
        self,
        cost: StepCost | None,
        config: TrainConfig,
        world_size: int,
        device: torch.device,
    ) -> None:
        self._cost = cost
        self._flops = 0.0
        peak = config.peak_tflops
        if peak is None and device.type == "cuda" and config.precision == "bfloat16":
            peak = known_peak_tflops(torch.cuda.get_device_name(device))
        self._peak = None if peak is None else peak * world_size

    def add(self, result: StepResult) -> None:
        """Note the work of a step, over all ranks and without padding."""
        size = BatchSize(
            result.num_positions,
            result.num_squares,
            result.num_images,
            result.num_text,
            result.num_visual,
        )
        if self._cost is not None:
            self._flops += self._cost.model(size)

    def taken(self, seconds: float) -> dict[str, float]:
        """The fields `tflops_per_s` and, where the peak is known, `mfu`; starts again from zero."""
        tflops, self._flops = self._flops / max(seconds, 1e-9) / 1e12, 0.0
        if self._cost is None:
            return {}
        row = {"tflops_per_s": tflops}
        return row if self._peak is None else row | {"mfu": tflops / self._peak}


class CorpusLosses:
    """The mean losses of each corpus of a mixture since the last line of the log, and its steps so far."""

    def __init__(self, mixture: Mixture) -> None:
        self._mixture = mixture
        self._losses: dict[str, list[tuple[float, float]]] = {}

    def add(self, corpus: str, result: StepResult) -> None:
        """Note the losses of a step."""
        self._losses.setdefault(corpus, []).append((result.text, result.visual))

    def taken(self) -> dict[str, float]:
        """The fields `text_loss/NAME`, `visual_loss/NAME` and `steps/NAME` (none without a mixture); starts again."""
        losses, self._losses = self._losses, {}
        if len(self._mixture.sources) < 2:
            return {}
        row: dict[str, float] = {}
        for name, pairs in sorted(losses.items()):
            row[f"text_loss/{name}"] = sum(text for text, _ in pairs) / len(pairs)
            row[f"visual_loss/{name}"] = sum(visual for _, visual in pairs) / len(pairs)
            row[f"steps/{name}"] = self._mixture.sources[name].steps
        return row
