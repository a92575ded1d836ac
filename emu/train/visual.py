"""Pretraining of the visual encoder and the Causal Former from captions, for models without pretrained weights.

The paper starts from EVA-CLIP, which a small model trained from scratch does not have. This stage stands for it: image
and text are joined by classification instead of contrast. The labels of an image are the tokens of its caption, except
those that nearly every caption has (as in SuperClass, arXiv 2411.03313, which weights them by their inverse document
frequency). Two linear heads predict them, one from the mean of the encoder's tokens, one from the mean of the causal
embeddings; the loss is the sum of their binary cross-entropies. The heads are thrown away. The result is a model
folder whose language model is still random, for `--init` of the training of Emu.

A run that is stopped starts again. `metrics.jsonl` has one line per `log_every` steps:

| field          | meaning                                                                        |
|----------------|--------------------------------------------------------------------------------|
| step           | optimizer steps done, from 1                                                   |
| encoder_loss   | of the head on the visual encoder, mean since the previous line                |
| former_loss    | the same of the head on the causal embeddings                                  |
| encoder_recall | share of the captions' tokens that the encoder's head predicts, since then     |
| former_recall  | the same of the causal embeddings                                              |
| gradient_norm  | of that step, before clipping                                                  |
| learning_rate  | of that step                                                                   |

Shapes: B batch, L sequence, C channels, H W pixels, P patches, V vision width, Q causal queries, D language width,
K classes (tokens that are predicted).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from emu.config import EmuConfig, SequenceConfig
from emu.data.batches import BatchStream, Layout
from emu.data.dataset import ShardReader, derived_seed
from emu.data.mixture import Mixture, Source
from emu.data.sequence import SequenceMaker
from emu.models.emu import Emu
from emu.models.objective import Batch
from emu.recipes import OptimConfig, VisualTrainConfig
from emu.tokenizer import EmuTokenizer
from emu.train.optim import rate_factor
from emu.train.run_folder import METRICS
from emu.train.step import Ranks, TrainingError
from emu.weights.layout import check_free, new_directory
from emu.weights.store import save_model

NUM_COUNTED = 2000  # captions from which the frequencies of tokens are counted

Advance = Callable[[int, float], None]
"""Called after each step with its number and its loss, for a progress bar."""


@dataclass(frozen=True)
class VisualPlan:
    """Model, data, options and output of the stage."""

    data: str
    out: str
    tokenizer: str
    model: EmuConfig
    sequence: SequenceConfig
    train: VisualTrainConfig = field(default_factory=VisualTrainConfig)


@dataclass(frozen=True)
class VisualSummary:
    """What a finished stage did; recalls are means over the last tenth of the steps."""

    steps: int
    num_images: int
    num_classes: int
    """Tokens that are predicted."""
    encoder_recall: float
    former_recall: float
    out: str


class CaptionHeads(nn.Module):
    """Logits of the caption's tokens from the visual encoder and from the Causal Former."""

    def __init__(self, config: EmuConfig, classes_K: Tensor) -> None:
        super().__init__()
        self.register_buffer("classes_K", classes_K)
        self.norm = nn.LayerNorm(config.vision.width)
        self.encoder = nn.Linear(config.vision.width, len(classes_K))
        self.former = nn.Linear(config.language.hidden_size, len(classes_K))

    def forward(self, model: Emu, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Logits `BK` of both heads."""
        patches_BPV = model.visual(pixels_BCHW)
        embeddings_BQD = model.encode_patches(patches_BPV)
        return (
            self.encoder(self.norm(patches_BPV).mean(dim=1)),
            self.former(embeddings_BQD.mean(dim=1)),
        )

    def targets(self, labels_BL: Tensor) -> Tensor:
        """Which classes each row of labels holds, `BK` of 0 and 1."""
        assert isinstance(self.classes_K, Tensor)
        return (labels_BL[:, None, :] == self.classes_K[None, :, None]).any(dim=2).float()


def train_visual(
    plan: VisualPlan,
    device: torch.device | None = None,
    advance: Advance = lambda step, loss: None,
    ranks: Ranks | None = None,
) -> VisualSummary:
    """Pretrains the visual parts of a new model and writes it to `plan.out`, replacing a model there.

    Several ranks share each batch; the first one writes.

    Raises:
        DatasetError: for unusable data.
        ValueError: for a dataset that is not one of image-text pairs.
        TrainingError: for a loss that is not finite; nothing is written then.
    """
    device, ranks = device or torch.device("cpu"), ranks or Ranks()
    folder = Path(plan.out)
    check_free(folder, _is_model, overwrite=True)
    tokenizer = EmuTokenizer.load(plan.tokenizer)
    config = plan.train
    reader = ShardReader(plan.data, config.seed)
    classes_K = caption_classes(reader, tokenizer, config.common_share)
    maker = SequenceMaker(plan.sequence, plan.model, tokenizer, config.seed)
    name = reader.dataset.manifest.corpus
    mixture = Mixture([Source(name, 1.0, reader, config.batch_size)])
    layout = Layout({name: ranks.share_of(config.batch_size)})
    stream = BatchStream(mixture, maker, layout, ranks.share, num_threads=config.num_threads)
    model = Emu(plan.model)
    model.init_weights(config.seed)
    torch.manual_seed(derived_seed("caption heads", config.seed))
    heads = CaptionHeads(plan.model, classes_K)
    try:
        with ranks.on_first(lambda: new_directory(folder, _is_model, overwrite=True)) as new:
            metrics = None if new is None else new / METRICS
            trainer = _Trainer(config, model.to(device), heads.to(device), metrics, ranks)
            for step in range(config.steps):
                advance(step + 1, trainer.step(stream.next_step()[0].to(device), step))
            if new is not None:
                save_model(new, model.cpu(), plan.tokenizer)
    finally:
        stream.close()
    tenth = trainer.rows[-max(1, config.steps // 10) :]
    return VisualSummary(
        steps=config.steps,
        num_images=config.steps * config.batch_size,
        num_classes=len(classes_K),
        encoder_recall=fmean(row["encoder_recall"] for row in tenth),
        former_recall=fmean(row["former_recall"] for row in tenth),
        out=str(folder),
    )


def caption_classes(reader: ShardReader, tokenizer: EmuTokenizer, common_share: float) -> Tensor:
    """The ids of the tokens that occur in the first captions, but not in more than `common_share` of them.

    Raises ValueError where none is left: all captions are then alike.
    """
    counts: Counter[int] = Counter()
    num_captions = min(NUM_COUNTED, len(reader))
    for index in range(num_captions):
        text = reader.visit(index).sample.text
        counts.update(set(tokenizer.encode_text(text)))
    ids = sorted(token for token, n in counts.items() if n <= common_share * num_captions)
    if not ids:
        raise ValueError(
            f"{reader.dataset.address}: every token stands in more than {common_share:.0%} of the texts; there is "
            "nothing to tell images apart by (give captions, or a higher --train.common-share)"
        )
    return torch.tensor(ids)


class _Trainer:
    """Takes the optimizer steps and writes their metrics."""

    def __init__(
        self,
        config: VisualTrainConfig,
        model: Emu,
        heads: CaptionHeads,
        metrics: Path | None,
        ranks: Ranks,
    ) -> None:
        self.config, self.model, self.heads = config, model, heads
        self.metrics, self.ranks = metrics, ranks
        modules = (model.visual, model.ln_visual, model.former, heads)
        self.weights = [w for m in modules for w in m.parameters() if w.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.weights,
            lr=config.learning_rate,
            betas=(0.9, 0.98),
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.schedule = OptimConfig(warmup_ratio=config.warmup_ratio)
        self.rows: list[dict[str, Any]] = []

    def step(self, batch: Batch, step: int) -> float:
        """Updates the weights once; returns the loss."""
        rate = self.config.learning_rate * rate_factor(step, self.config.steps, self.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        targets_BK = self.heads.targets(batch.labels_BL)
        logits = self.heads(self.model, _pixels(batch))
        losses = [_loss(each, targets_BK) for each in logits]
        total = losses[0] + losses[1]
        total.backward()
        self.ranks.average_gradients(self.weights)
        norm = float(nn.utils.clip_grad_norm_(self.weights, self.config.clip_norm))
        recalls = [_recall(each, targets_BK) for each in logits]
        encoder_loss, former_loss, *recalls = self.ranks.mean(
            [*(float(loss.detach()) for loss in losses), *recalls]
        )
        value = encoder_loss + former_loss
        if not (math.isfinite(value) and math.isfinite(norm)):
            raise TrainingError(
                f"step {step + 1}: loss {value}, gradient norm {norm}; nothing was written: lower the learning rate"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.rows.append(
            {
                "step": step + 1,
                "encoder_loss": encoder_loss,
                "former_loss": former_loss,
                "encoder_recall": recalls[0],
                "former_recall": recalls[1],
                "gradient_norm": norm,
                "learning_rate": rate,
            }
        )
        self._write()
        return value

    def _write(self) -> None:
        every, last = self.config.log_every, self.rows[-1]
        is_due = last["step"] % every == 0 or last["step"] == self.config.steps
        if self.metrics is None or not is_due:
            return
        since = self.rows[-(last["step"] % every or every) :]
        means = {
            name: fmean(row[name] for row in since)
            for name in ("encoder_loss", "former_loss", "encoder_recall", "former_recall")
        }
        with self.metrics.open("a") as file:
            file.write(json.dumps(last | means) + "\n")


def _pixels(batch: Batch) -> Tensor:
    """The pixels of a batch with one image per row; raises ValueError for any other."""
    rows = len(batch.input_ids_BL)
    if batch.pixels_NCHW is None or len(batch.pixels_NCHW) != rows:
        raise ValueError(
            f"a batch of {rows} samples holds {batch.num_images} images; the visual parts are pretrained on "
            "image-text pairs, one image per sample (documents come later, in the training of Emu)"
        )
    return batch.pixels_NCHW


def _loss(logits_BK: Tensor, targets_BK: Tensor) -> Tensor:
    """Binary cross-entropy, summed over the classes, mean over the batch."""
    total = functional.binary_cross_entropy_with_logits(logits_BK, targets_BK, reduction="sum")
    return total / len(logits_BK)


def _recall(logits_BK: Tensor, targets_BK: Tensor) -> float:
    """Share of the present classes with a probability above one half."""
    found = ((logits_BK.detach() > 0) & (targets_BK > 0)).sum()
    return float(found / targets_BK.sum().clamp(min=1))


def _is_model(folder: Path) -> bool:
    return (folder / "config.json").is_file()
