"""How likely each of several answers is after one prompt, which is run once.

The answers are laid out as a tree of tokens: beginnings that several share are run once, and all
branches go through the layers side by side, each position seeing the prompt and its own ancestors.

Shapes: T positions of the tree, D language width, W rows of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

import torch
from torch import Tensor

from emu.generate.kv_cache import Continuation
from emu.generate.prompts import EncodedPrompt
from emu.models.emu import Emu

MAX_POSITIONS = 512  # of a tree: memory stays bounded, however many answers there are
ROOT = -1  # the end of the prompt, as a parent


class Tree:
    """Tokens that are fed after the prompt, each with its parent; equal beginnings share places."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.depths: list[int] = []
        self._places: dict[tuple[int, int], int] = {}  # (parent, token) to its place

    def __len__(self) -> int:
        return len(self.tokens)

    def add(self, answer: Sequence[int]) -> list[int]:
        """The places that predict the tokens of `answer`, the root first; the last is not fed."""
        path = [ROOT]
        for token in answer[:-1]:
            key = (path[-1], token)
            if key not in self._places:
                self._places[key] = len(self)
                self.tokens.append(token)
                self.parents.append(path[-1])
                self.depths.append(len(path) - 1)
            path.append(self._places[key])
        return path

    def sees(self) -> Tensor:
        """Which positions `TT` each position sees: its ancestors and itself."""
        sees_TT = torch.eye(len(self), dtype=torch.bool)
        for place, parent in enumerate(self.parents):
            if parent != ROOT:
                sees_TT[place] |= sees_TT[parent]
        return sees_TT


@torch.inference_mode()
def summed_losses(
    model: Emu, prompt: EncodedPrompt, answered: Sequence[EncodedPrompt]
) -> list[float]:
    """The loss of each answer after the prompt, summed over its tokens.

    `answered` are the prompt and its answers, encoded as one text each. The ids that all share with
    the prompt are run once (a token at the border may differ from the prompt's own). Answers of the
    same ids get the same loss to the last bit.
    """
    shared = min(_num_shared(prompt.ids, full.ids) for full in answered)
    assert shared > 0, "every prompt starts with the start id"
    answers = [full.ids[shared:] for full in answered]
    assert all(answers), "an answer without a token"
    rows = Continuation(model, [EncodedPrompt(prompt.ids[:shared], prompt.pixels)])
    losses: dict[tuple[int, ...], float] = {}
    tree, paths = Tree(), {}
    for answer in sorted(set(answers)):  # neighbours share their beginnings
        if len(tree) + len(answer) > MAX_POSITIONS and paths:
            losses |= _losses(model, rows, tree, paths)
            tree, paths = Tree(), {}
        paths[answer] = tree.add(answer)
    losses |= _losses(model, rows, tree, paths)
    return [losses[answer] for answer in answers]


def _losses(
    model: Emu, rows: Continuation, tree: Tree, paths: dict[tuple[int, ...], list[int]]
) -> dict[tuple[int, ...], float]:
    hidden_TD = rows.hidden_BD
    if len(tree):
        tokens, depths = (torch.tensor(x, device=rows.device) for x in (tree.tokens, tree.depths))
        sees_TT = tree.sees().to(rows.device)
        later_TD = rows.branch(model.language.embed(tokens), depths, sees_TT)
        hidden_TD = torch.cat([hidden_TD, later_TD])  # the root is place 0 here
    chances_TW = model.language.head(hidden_TD).float().log_softmax(dim=-1)
    places = torch.tensor([place + 1 for path in paths.values() for place in path])
    tokens = torch.tensor([token for answer in paths for token in answer])
    picked = chances_TW[places.to(rows.device), tokens.to(rows.device)].double().cpu()
    parts = picked.split([len(answer) for answer in paths])
    return {answer: -float(part.sum()) for answer, part in zip(paths, parts, strict=True)}


def _num_shared(ours: Sequence[int], theirs: Sequence[int]) -> int:
    pairs = zip(ours, theirs, strict=False)  # the shorter one ends the comparison
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
