"""How likely each of several answers is after one prompt, which runs once.

The answers form a tree of tokens: a prefix that several share runs once, and all branches go through the layers side
by side, each position seeing the prompt and its own ancestors.

Shapes: T positions of the tree, D language width, W entries of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

import torch
from torch import Tensor

from emu.generate.kv_cache import DecodeState
from emu.generate.prompts import EncodedPrompt
from emu.models.emu import Emu

MAX_POSITIONS = 512  # of a tree: bounds the memory for any number of answers
ROOT = -1  # the end of the prompt, as a parent


class Tree:
    """Tokens that are fed after the prompt, each with its parent; equal prefixes share positions."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.depths: list[int] = []
        self._positions: dict[tuple[int, int], int] = {}  # of (parent, token)

    def __len__(self) -> int:
        return len(self.tokens)

    def add(self, answer: Sequence[int]) -> list[int]:
        """The positions that predict the tokens of `answer`, the root first; the last token is not fed."""
        path = [ROOT]
        for token in answer[:-1]:
            key = (path[-1], token)
            if key not in self._positions:
                self._positions[key] = len(self)
                self.tokens.append(token)
                self.parents.append(path[-1])
                self.depths.append(len(path) - 1)
            path.append(self._positions[key])
        return path

    def sees(self) -> Tensor:
        """The positions that each position sees, `TT`: its ancestors and itself."""
        sees_TT = torch.eye(len(self), dtype=torch.bool)
        for position, parent in enumerate(self.parents):
            if parent != ROOT:
                sees_TT[position] |= sees_TT[parent]
        return sees_TT


@torch.inference_mode()
def summed_losses(
    model: Emu, prompt: EncodedPrompt, answered: Sequence[EncodedPrompt]
) -> list[float]:
    """The loss of each answer after the prompt, summed over its tokens.

    `answered` holds the prompt and each answer, encoded as one text. The ids that all of them share with
    the prompt run once (a token at the border may differ from the prompt's own). Answers of the same
    ids get the same loss to the last bit.
    """
    shared = min(_num_shared(prompt.ids, full.ids) for full in answered)
    assert shared > 0, "every prompt starts with the start id"
    answers = [full.ids[shared:] for full in answered]
    assert all(answers), "an answer without a token"
    state = DecodeState(model, [EncodedPrompt(prompt.ids[:shared], prompt.pixels)])
    losses: dict[tuple[int, ...], float] = {}
    tree, paths = Tree(), {}
    for answer in sorted(set(answers)):  # neighbours share their prefixes
        if len(tree) + len(answer) > MAX_POSITIONS and paths:
            losses |= _losses(model, state, tree, paths)
            tree, paths = Tree(), {}
        paths[answer] = tree.add(answer)
    losses |= _losses(model, state, tree, paths)
    return [losses[answer] for answer in answers]


def _losses(
    model: Emu, state: DecodeState, tree: Tree, paths: dict[tuple[int, ...], list[int]]
) -> dict[tuple[int, ...], float]:
    hidden_TD = state.hidden_BD
    if len(tree):
        tokens, depths = (torch.tensor(x, device=state.device) for x in (tree.tokens, tree.depths))
        sees_TT = tree.sees().to(state.device)
        later_TD = state.branch(model.language.embed(tokens), depths, sees_TT)
        hidden_TD = torch.cat([hidden_TD, later_TD])  # the root is index 0 here
    log_probs_TW = model.language.head(hidden_TD).float().log_softmax(dim=-1)
    indices = torch.tensor([position + 1 for path in paths.values() for position in path])
    tokens = torch.tensor([token for answer in paths for token in answer])
    picked = log_probs_TW[indices.to(state.device), tokens.to(state.device)].double().cpu()
    parts = picked.split([len(answer) for answer in paths])
    return {answer: -float(part.sum()) for answer, part in zip(paths, parts, strict=True)}


def _num_shared(ours: Sequence[int], theirs: Sequence[int]) -> int:
    pairs = zip(ours, theirs, strict=False)  # the shorter one ends the comparison
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
