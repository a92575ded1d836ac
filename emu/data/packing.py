"""Sequences side by side in one row per micro-batch, with rows of nearly equal length.

A step holds a fixed number of sequences, so that their positions fill no given number of rows of a given length: with
rows of 2,048 positions a batch of 32 mixed sequences filled 86 %. A row has no need of a given length. The sequences of
a rank are spread over as few rows as the limit allows, the longest first, each onto the emptiest row; a row is as long
as its sequences together, rounded up to a multiple on a GPU.

A sequence is never cut, positions count from 0 in each, and none sees another (`emu/models/attention.py`), so losses
are those of padded batches to rounding.

Shapes: B rows, L positions of a row, N images, P patches, V vision width, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows

import torch
from torch import Tensor

from emu.data.sequence import Sequence
from emu.models.attention import documents_of
from emu.models.objective import IGNORED, Batch


def pack(lengths: Rows[int], limit: int) -> list[list[int]]:
    """The rows, each a list of indices into `lengths` with a sum of at most `limit`.

    The same lengths give the same rows. Raises ValueError for a length beyond the limit.
    """
    longest = max(lengths, default=0)
    if longest > limit:
        raise ValueError(f"a sequence has {longest} positions, a row {limit}; give longer rows")
    num_rows = -(-sum(lengths) // limit)
    while True:
        rows = _spread(lengths, num_rows)
        if all(sum(lengths[index] for index in row) <= limit for row in rows):
            return rows
        num_rows += 1


def _spread(lengths: Rows[int], num_rows: int) -> list[list[int]]:
    """Longest first, each onto the row with the fewest positions."""
    rows: list[list[int]] = [[] for _ in range(num_rows)]
    filled = [0] * num_rows
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        row = filled.index(min(filled))
        rows[row].append(index)
        filled[row] += lengths[index]
    return [sorted(row) for row in rows]


def rounded(length: int, multiple: int) -> int:
    """The positions of a row whose sequences have `length` together."""
    return -(-length // multiple) * multiple


def efficiency(lengths: Rows[int], rows: Rows[Rows[int]], multiple: int = 1) -> float:
    """The share of the positions of packed rows that are real."""
    return sum(lengths) / sum(rounded(sum(lengths[i] for i in row), multiple) for row in rows)


def collate_packed(
    row: Rows[tuple[Sequence, Tensor]], pad: int, are_patches: bool, multiple: int = 1
) -> Batch:
    """A packed batch of one row: sequences with their `NCHW` or `NPV` images.

    The row is padded to a multiple of `multiple` positions.
    """
    lengths = [len(sequence.ids_L) for sequence, _ in row]
    number = sum(lengths)
    length = rounded(number, multiple)
    ids_BL = torch.full((1, length), pad)
    ids_BL[0, :number] = torch.cat([sequence.ids_L for sequence, _ in row])
    labels_BL = torch.full((1, length), IGNORED)
    labels_BL[0, :number] = torch.cat([_later_labels(sequence) for sequence, _ in row])
    mask_BL = torch.arange(length)[None, :] < number
    images = [pictures for _, pictures in row]
    joined = torch.cat(images) if any(len(pictures) for pictures in images) else None
    pixels, patches = (None, joined) if are_patches else (joined, None)
    return Batch(ids_BL, mask_BL, labels_BL, pixels, patches, documents_of([lengths], length))


def _later_labels(sequence: Sequence) -> Tensor:
    """The labels without the first one, which nothing in its own sequence predicts."""
    labels_L = sequence.labels_L.clone()
    labels_L[0] = IGNORED
    return labels_L
