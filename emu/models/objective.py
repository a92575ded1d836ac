"""The unified objective (paper section 2.2), and what one forward pass takes and gives.

`Batch` is the input of a forward pass and `EmuOutput` its output; `Objective` turns both into cross-entropy on text
and regression on visual embeddings. The released masks say which positions predict what; the regression loss itself
was never released. Chosen here: mean squared error over positions and dimensions in float32, weighted by a
configuration value, against detached targets.

Shapes: B batch, L sequence, T positions that predict a text target, N images of the batch, C channels, H W pixels,
P patches, V vision width (of logits: rows of the vocabulary), W rows of the vocabulary, D language width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from emu.config import ObjectiveConfig, SpecialTokens
from emu.models.attention import Documents

IGNORED = -100


@dataclass(frozen=True)
class Batch:
    """Right-padded sequences, and their images in reading order, row by row of the batch.

    With `documents` a row holds several sequences side by side. Images come as pixels or as precomputed outputs of
    the tower, never as both.
    """

    input_ids_BL: Tensor  # int64
    attention_mask_BL: Tensor  # bool, False at the padding
    labels_BL: Tensor  # int64, aligned with input_ids; -100 = no cross-entropy
    pixels_NCHW: Tensor | None = None  # float32, normalised with CLIP's mean and deviation
    patches_NPV: Tensor | None = None  # float16 or float32
    documents: Documents | None = None  # of packed rows; the first label of each is -100

    def __post_init__(self) -> None:
        shape = self.input_ids_BL.shape
        assert self.attention_mask_BL.shape == shape and self.labels_BL.shape == shape, shape
        assert self.attention_mask_BL.dtype == torch.bool, self.attention_mask_BL.dtype
        assert self.pixels_NCHW is None or self.patches_NPV is None, "pixels and patches"

    @property
    def num_images(self) -> int:
        """Images in the whole batch."""
        images = self.pixels_NCHW if self.pixels_NCHW is not None else self.patches_NPV
        return 0 if images is None else images.shape[0]

    @property
    def num_sequences(self) -> int:
        """Sequences in the batch, however many a row holds."""
        if self.documents is None:
            return len(self.input_ids_BL)
        return len(self.documents.real)

    @property
    def squares(self) -> Tensor:
        """The sum of the squared lengths of all sequences, float64: what attention costs."""
        if self.documents is None:
            return self.attention_mask_BL.sum(dim=1).double().square().sum()
        return self.attention_mask_BL.new_tensor(
            sum(n * n for n in self.documents.real), dtype=torch.float64
        )

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on `device`."""

        def moved(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        return Batch(
            self.input_ids_BL.to(device, non_blocking=True),
            self.attention_mask_BL.to(device, non_blocking=True),
            self.labels_BL.to(device, non_blocking=True),
            moved(self.pixels_NCHW),
            moved(self.patches_NPV),
            None if self.documents is None else self.documents.to(device),
        )


@dataclass(frozen=True)
class EmuOutput:
    """What one forward gives; regressions in reading order."""

    logits_BLV: Tensor | None  # None where only the losses were asked for
    hidden_BLD: Tensor  # after the final norm; without logits zero at the padding
    inputs_BLD: Tensor  # what the language model was fed
    regressed_ND: Tensor  # predicted next visual embeddings; N counts regression positions here
    targets_ND: Tensor  # the inputs that they predict, not detached
    text_sum: Tensor | None = None  # without logits: the cross-entropy summed over the targets


@dataclass(frozen=True)
class Scores:
    """What a model gives for whole sequences, and its losses on them; see `Emu.score`."""

    logits_BLV: Tensor
    last_hidden_BLD: Tensor  # after the final norm
    text_loss: Tensor  # mean over all text targets of the batch, a scalar (released reduction)
    visual_loss: Tensor  # mean squared error over regression positions and dimensions, a scalar
    regressed_ND: Tensor  # predicted next visual embeddings; N counts regression positions here
    targets_ND: Tensor  # the inputs that they predict


@dataclass(frozen=True)
class Losses:
    """The two terms, their weighted sum, and what a run should watch."""

    total: Tensor
    text: Tensor  # mean over the text targets of the batch
    visual: Tensor  # mean over the regression positions and dimensions
    target_variance: (
        Tensor  # of the targets over positions, mean over dimensions; near 0 = collapse
    )
    num_text: Tensor  # text targets in the batch
    num_visual: Tensor  # regression positions in the batch


@dataclass(frozen=True)
class Objective:
    """Losses of a forward under the choices of an `ObjectiveConfig`."""

    config: ObjectiveConfig

    def __call__(self, output: EmuOutput, batch: Batch) -> Losses:
        """The losses of one micro-batch; a term without a target is zero, with zero gradient."""
        text, num_text = text_loss(output, batch.labels_BL)
        targets = output.targets_ND.detach() if self.config.detach_targets else output.targets_ND
        squares = (output.regressed_ND.float() - targets.float()).square()
        visual = squares.mean() if squares.numel() else output.regressed_ND.float().sum()
        weight = self.config.visual_weight
        return Losses(
            total=text + weight * visual if weight else text,
            text=text,
            visual=visual,
            target_variance=variance(output.targets_ND.detach().float()),
            num_text=num_text,
            num_visual=torch.tensor(len(squares), device=squares.device),
        )


def text_loss(output: EmuOutput, labels_BL: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy of each label given what stands before it, and the number of labels."""
    is_label_BL = labels_BL[:, 1:] != IGNORED
    num_labels = is_label_BL.sum()
    total = output.text_sum
    if total is None:
        assert output.logits_BLV is not None, "an output without logits and without their loss"
        logits_TW = output.logits_BLV[:, :-1][is_label_BL].float()
        total = functional.cross_entropy(logits_TW, labels_BL[:, 1:][is_label_BL], reduction="sum")
    return total / num_labels.clamp(min=1), num_labels


def predicts_target(labels_BL: Tensor) -> Tensor:
    """A mask `BL` of the positions whose next token is a target of the cross-entropy."""
    edge = torch.zeros_like(labels_BL[:, :1], dtype=torch.bool)
    return torch.cat([labels_BL[:, 1:] != IGNORED, edge], dim=1)


def text_labels(input_ids_BL: Tensor, special: SpecialTokens, config: ObjectiveConfig) -> Tensor:
    """The released labels: the ids themselves, -100 at padding and at the tokens of images.

    `[IMG]` stays a target where `train_image_start` asks for it.
    """
    hidden = [special.pad, special.image, special.image_end]
    hidden += [] if config.train_image_start else [special.image_start]
    ignored = torch.isin(input_ids_BL, input_ids_BL.new_tensor(hidden))
    return input_ids_BL.masked_fill(ignored, IGNORED)


def regression_positions(
    input_ids_BL: Tensor, special: SpecialTokens, config: ObjectiveConfig
) -> tuple[Tensor, Tensor]:
    """Masks `BL` of the positions that predict a visual embedding and of those predicted.

    `[IMG]` predicts the first embedding of its image, each embedding the next, the last one the
    input embedding of `[/IMG]` (unless `regress_closing` is off). A pair counts only where the two
    stand side by side: the literal `[IMG]ImageContent[/IMG]` of the system message, which holds no
    image, is no pair, although the released masks would count it.
    """
    here, following = input_ids_BL[:, :-1], input_ids_BL[:, 1:]
    predicts = (here == special.image_start) | (here == special.image)
    predicted = following == special.image
    if config.regress_closing:
        predicted = predicted | ((following == special.image_end) & (here == special.image))
    pairs = predicts & predicted
    edge = torch.zeros_like(pairs[:, :1])
    return torch.cat([pairs, edge], dim=1), torch.cat([edge, pairs], dim=1)


def variance(targets_ND: Tensor) -> Tensor:
    """Variance over positions, mean over dimensions; zero for fewer than two positions."""
    if len(targets_ND) < 2:
        return targets_ND.new_zeros(())
    return targets_ND.var(dim=0, correction=0).mean()
