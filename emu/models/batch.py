"""What one forward takes and gives.

Shapes: B batch, L sequence, N images of the batch, C channels, H W pixels, P patches, V vision width
(of logits: rows of the vocabulary), D language width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Right-padded sequences, and their images in reading order, row by row of the batch.

    Images come as pixels or as precomputed outputs of the tower, never as both.
    """

    input_ids_BL: Tensor  # int64
    attention_mask_BL: Tensor  # bool, False at the padding
    labels_BL: Tensor  # int64, aligned with input_ids; -100 = no cross-entropy
    pixels_NCHW: Tensor | None = None  # float32, normalised with CLIP's mean and deviation
    patches_NPV: Tensor | None = None  # float16 or float32

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
        )


@dataclass(frozen=True)
class EmuOutput:
    """What one forward gives; regressions in reading order."""

    logits_BLV: Tensor
    hidden_BLD: Tensor  # after the final norm
    inputs_BLD: Tensor  # what the language model was fed
    regressed_ND: Tensor  # predicted next visual embeddings; N counts regression positions here
    targets_ND: Tensor  # the inputs that they predict, not detached


@dataclass(frozen=True)
class Scores:
    """What a model gives for whole sequences, and its losses on them; see `Emu.score`."""

    logits_BLV: Tensor
    last_hidden_BLD: Tensor  # after the final norm
    text_loss: Tensor  # mean over all text targets of the batch, a scalar (released reduction)
    visual_loss: Tensor  # mean squared error over regression positions and dimensions, a scalar
    regressed_ND: Tensor  # predicted next visual embeddings; N counts regression positions here
    targets_ND: Tensor  # the inputs that they predict
