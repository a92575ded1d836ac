"""Sequences side by side in rows of a fixed length, and a packed batch of such rows.

First-fit decreasing: the longest sequence first, each into the first row with room. With sequences of mixed length all
rows but the last are nearly full. A sequence is never cut, positions count from 0 in each, and none sees another
(`emu/models/attention.py`), so losses are those of padded batches to rounding.

Shapes: B rows, L positions of a row, N images, P patches, V vision width, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from emu.data.sequence import Sequence
from emu.models.attention import documents_of
from emu.models.objective import IGNORED, Batch


def pack(lengths: Rows[int], row_length: int) -> list[list[int]]:
    """The rows, each a list of indices into `lengths` with a sum of at most `row_length`.

    The same lengths give the same rows. Raises ValueError for a length beyond the row.
    """
    longest = max(lengths, default=0)
    if longest > row_length:
        raise ValueError(
            f"a sequence has {longest} positions, a row {row_length}; give longer rows"
        )
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        fitting = (row for row, left in enumerate(room) if left >= lengths[index])
        row = next(fitting, len(rows))
        if row == len(rows):
            rows.append([])
            room.append(row_length)
        rows[row].append(index)
        room[row] -= lengths[index]
    return [sorted(row) for row in rows]


def efficiency(lengths: Rows[int], rows: Rows[Rows[int]], row_length: int) -> float:
    """The share of the positions of packed rows that are real."""
    return sum(lengths) / (len(rows) * row_length)


def collate_packed(
    rows: Rows[Rows[tuple[Sequence, Tensor]]],
    pad: int,
    are_patches: bool,
    length: int | None = None,
) -> Batch:
    """A packed batch; each row holds sequences with their `NCHW` or `NPV` images.

    Rows have `length` positions, or as many as the fullest one.
    """
    ids = [torch.cat([sequence.ids_L for sequence, _ in row]) for row in rows]
    labels = [torch.cat([_later_labels(sequence) for sequence, _ in row]) for row in rows]
    length = length or max(len(row) for row in ids)
    ids_BL, labels_BL = _padded(ids, length, pad), _padded(labels, length, IGNORED)
    lengths_B = torch.tensor([len(row) for row in ids])
    mask_BL = torch.arange(length)[None, :] < lengths_B[:, None]
    documents = documents_of([[len(s.ids_L) for s, _ in row] for row in rows], length)
    images = [pictures for row in rows for _, pictures in row]
    joined = torch.cat(images) if any(len(pictures) for pictures in images) else None
    pixels, patches = (None, joined) if are_patches else (joined, None)
    return Batch(ids_BL, mask_BL, labels_BL, pixels, patches, documents)


def _later_labels(sequence: Sequence) -> Tensor:
    """The labels without the first one, which nothing in its own sequence predicts."""
    labels_L = sequence.labels_L.clone()
    labels_L[0] = IGNORED
    return labels_L


def _padded(rows: list[Tensor], length: int, value: int) -> Tensor:
    padded = pad_sequence(rows, batch_first=True, padding_value=value)
    return torch.nn.functional.pad(padded, (0, length - padded.shape[1]), value=value)
