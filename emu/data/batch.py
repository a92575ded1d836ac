"""Sequences to one padded `Batch`, with the pixels or the precomputed tokens of their images.

Shapes: B batch, L sequence, N images, C channels, H W pixels, P patches, V vision width.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from emu.data.features import FeatureReader
from emu.data.images import pixels_of
from emu.data.sequence import Sequence
from emu.models.batch import Batch
from emu.models.objective import IGNORED


def collate(sequences: Rows[Sequence], images: Rows[Tensor], pad: int, are_patches: bool) -> Batch:
    """A right-padded batch; `images` holds the `NCHW` or `NPV` images of each sequence."""
    ids_BL = pad_sequence([s.ids_L for s in sequences], batch_first=True, padding_value=pad)
    labels_BL = pad_sequence(
        [s.labels_L for s in sequences], batch_first=True, padding_value=IGNORED
    )
    lengths_B = torch.tensor([len(s.ids_L) for s in sequences])
    mask_BL = torch.arange(ids_BL.shape[1])[None, :] < lengths_B[:, None]
    joined = torch.cat(list(images)) if any(len(i) for i in images) else None
    if are_patches:
        return Batch(ids_BL, mask_BL, labels_BL, patches_NPV=joined)
    return Batch(ids_BL, mask_BL, labels_BL, pixels_NCHW=joined)


def images_of(sequence: Sequence, side: int, features: FeatureReader | None) -> Tensor:
    """The images of a sequence: tokens from `features` if given, else pixels of `side` x `side`."""
    if features is None:
        return pixels_of([slot.image for slot in sequence.slots], side)
    segments = [slot.segment for slot in sequence.slots]
    return features.patches(sequence.shard, sequence.key, segments)
