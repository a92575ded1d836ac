"""How likely each of several answers is after one prompt, which is run once.

Shapes: B candidates, L positions after the shared prefix, W rows of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

import torch
from torch import Tensor
from torch.nn import functional

from emu.generate.continuation import Continuation
from emu.generate.prompts import EncodedPrompt
from emu.models.emu import Emu

IGNORED = -100


@torch.inference_mode()
def mean_losses(
    model: Emu, prompt: EncodedPrompt, answered: Sequence[EncodedPrompt]
) -> list[float]:
    """The loss of each answer: summed over its tokens, divided by the length of prompt and answer.

    That is the released formula for VisDial; it is close to a log-likelihood without a mean.
    `answered` are the prompt and its answers, encoded as one text each. The ids that all share with
    the prompt are run once (a token at the border may differ from the prompt's own).
    """
    shared = min(_num_shared(prompt.ids, full.ids) for full in answered)
    assert shared > 0, "every prompt starts with the start id"
    rows = Continuation(model, [EncodedPrompt(prompt.ids[:shared], prompt.pixels)])
    rows.select([0] * len(answered))
    first_BD = rows.hidden_BD
    labels_BL = _right_padded([full.ids[shared:] for full in answered]).to(rows.device)
    inputs_BL = labels_BL.clamp(min=0)[:, :-1]
    hidden_BLD = first_BD[:, None]
    if inputs_BL.shape[1]:
        later_BLD = rows.feed(model.language.embed(inputs_BL))
        hidden_BLD = torch.cat([hidden_BLD, later_BLD], dim=1)
    losses_BL = _token_losses(model.language.head(hidden_BLD), labels_BL)
    lengths = [len(full.ids) for full in answered]
    return (losses_BL.sum(dim=1).cpu() / torch.tensor(lengths)).tolist()


def _token_losses(logits_BLW: Tensor, labels_BL: Tensor) -> Tensor:
    losses = functional.cross_entropy(
        logits_BLW.float().flatten(0, 1),
        labels_BL.flatten(),
        ignore_index=IGNORED,
        reduction="none",
    )
    return losses.view_as(labels_BL)


def _num_shared(ours: Sequence[int], theirs: Sequence[int]) -> int:
    pairs = zip(ours, theirs, strict=False)  # the shorter one ends the comparison
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _right_padded(rows: Sequence[Sequence[int]]) -> Tensor:
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[IGNORED] * (longest - len(row))] for row in rows])
