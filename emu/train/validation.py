"""Losses on the held-out part of each corpus, at intervals of a run.

Which samples are held out follows from their keys alone (`emu.data.mixture.is_held_out`), so no step of any run with
the same share has seen them. They are read as in the first epoch, without dropout; the losses are means over all
targets, the same on any number of ranks.

| field of metrics.jsonl                             | meaning                                   |
|----------------------------------------------------|-------------------------------------------|
| validation_text_loss/NAME, validation_visual_loss/NAME | losses on held-out samples of a corpus |
"""

from __future__ import annotations

import logging
from typing import Any

import torch

from emu.data.batches import StepStream
from emu.data.mixture import held_out_places
from emu.recipes import TrainConfig
from emu.train.parallel import give_up
from emu.train.step import LossModule, Ranks

log = logging.getLogger(__name__)


class Validation:
    """The held-out samples of a run; raises `DatasetError` for a corpus without any."""

    def __init__(
        self,
        stream: StepStream[Any, Any],
        losses: LossModule[Any],
        config: TrainConfig,
        ranks: Ranks,
        device: torch.device,
    ) -> None:
        self.stream, self.losses, self.config = stream, losses, config
        self.ranks, self.device = ranks, device
        self.places = {
            name: held_out_places(source, config.validation_samples)
            for name, source in stream.mixture.sources.items()
            if config.held_out
        }

    def is_due(self, step: int) -> bool:
        """True after every `validate_every` steps and the last one, if samples are held out."""
        is_time = step % self.config.validate_every == 0 or step == self.config.steps
        return bool(self.places) and is_time

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """The losses by corpus."""
        modes = [(module, module.training) for module in self.losses.modules()]
        self.losses.eval()
        try:
            row: dict[str, float] = {}
            for name in self.places:
                text, visual = self._losses_of(name)
                row |= {
                    f"validation_text_loss/{name}": text,
                    f"validation_visual_loss/{name}": visual,
                }
            return row
        finally:
            give_up(self.losses)
            for module, mode in modes:
                module.training = mode

    def _losses_of(self, name: str) -> tuple[float, float]:
        places = self.places[name]
        own = [places[index] for index in self.ranks.share.of(len(places))]
        batches, bad = self.stream.held_out(self.stream.mixture.sources[name], own)
        for sample in bad:
            log.warning("bad held-out sample key=%s detail=%s", sample.key, sample.detail)
        most = max(self.ranks.gather(len(batches)))  # sharded ranks run their parts together
        sums = torch.zeros(4, dtype=torch.float64, device=self.device)
        one = torch.ones((), device=self.device)
        for number in range(most):
            is_own = number < len(batches)
            batch = batches[number] if is_own else self.losses.empty_batch(self.device)
            batch = batch.to(self.device)
            _, text, visual, _ = self.losses(batch, one, one)
            if is_own:
                counts = self.losses.counts(batch)[:2]
                means = torch.stack((text, visual)).double()
                sums += torch.cat([means * counts, counts])
        text, visual, num_text, num_visual = self.ranks.sum(sums).tolist()
        return text / max(num_text, 1), visual / max(num_visual, 1)
