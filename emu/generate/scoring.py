"""How likely each of several answers is after one prompt: a request of the scheduler, whose prompt runs once.

The answers form a tree of tokens: a prefix that several share runs once, and all branches go through the layers side
by side, each position seeing the prompt and its own ancestors.

Shapes: T positions of the tree, R rows that are read, W entries of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

import torch
from torch import Tensor

from emu.config import IMAGE, EmuConfig
from emu.generate.page_pool import PageTable
from emu.generate.prompts import EncodedPrompt, PromptEncoder
from emu.generate.request_state import (
    MAX_TREE_POSITIONS,
    Branches,
    Embed,
    Finished,
    Losses,
    Output,
    Request,
    RequestState,
)
from emu.tokenizer import EmuTokenizer

MAX_POSITIONS = MAX_TREE_POSITIONS
ROOT = -1  # the end of the prompt, as a parent

Ids = tuple[int, ...]


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


def grow_trees(answers: Sequence[Ids], limit: int) -> list[tuple[Tree, dict[Ids, list[int]]]]:
    """Trees of at most `limit` positions (more if one answer has more), and the paths of their answers."""
    grown: list[tuple[Tree, dict[Ids, list[int]]]] = []
    tree, paths = Tree(), {}
    for answer in sorted(set(answers)):  # neighbours share their prefixes
        if len(tree) + len(answer) > limit and paths:
            grown.append((tree, paths))
            tree, paths = Tree(), {}
        paths[answer] = tree.add(answer)
    return [*grown, (tree, paths)]


def answered_prompts(
    encode: PromptEncoder, prompt: EncodedPrompt, candidates: Sequence[str]
) -> list[EncodedPrompt]:
    """The prompt followed by each candidate, after a space, as in the released code.

    Raises ValueError for no candidates, and for one that is no visible text.
    """
    if isinstance(candidates, str) or not candidates:
        raise ValueError(f"candidates is {candidates!r}, give a list of at least one text")
    answered: list[EncodedPrompt] = []
    for number, candidate in enumerate(candidates):
        if not isinstance(candidate, str) or not candidate.strip() or IMAGE in candidate:
            raise ValueError(
                f"candidates[{number}] is {candidate!r}, give a text of at least one visible "
                f"character and without {IMAGE}"
            )
        joined = f"{prompt.text} {candidate}"
        answered.append(encode.encode_joined(joined, prompt.pixels, num_reserved=0))
    return answered


def rank_request(
    prompt: EncodedPrompt, answered: Sequence[EncodedPrompt], adapter: str = ""
) -> Request:
    """The request for the losses of answers; `answered` holds the prompt and each answer, encoded as one text.

    The ids that all of them share with the prompt run once (a token at the border may differ from the prompt's own).
    """
    shared = min(_num_shared(prompt.ids, full.ids) for full in answered)
    assert shared > 0, "every prompt starts with the start id"
    answers = tuple(full.ids[shared:] for full in answered)
    assert all(answers), "an answer without a token"
    return Request(
        EncodedPrompt(prompt.ids[:shared], prompt.pixels), None, adapter=adapter, answers=answers
    )


class RankState(RequestState):
    """Feeds one tree after the other in the place of the one before.

    Answers of the same ids get the same loss to the last bit.
    """

    def __init__(
        self, request: Request, config: EmuConfig, tokenizer: EmuTokenizer, embed: Embed
    ) -> None:
        super().__init__(request, config, tokenizer, embed)
        self._trees = grow_trees(request.answers, MAX_POSITIONS)
        self._losses: dict[Ids, float] = {}

    def begin(self, table: PageTable, length: int, inputs_TD: Tensor) -> None:
        """As for a reply; the first logits are those after the prompt."""
        self.table, self.length, self.inputs_TD, self.phase = table, length, inputs_TD, "text"

    def take_logits(self, logits_RW: Tensor, likeliest: Sequence[int]) -> list[Output]:
        """Takes the logits after the prompt, then those of every tree; at last gives the losses."""
        log_probs_RW = logits_RW.log_softmax(dim=-1)
        if self.branches is None:
            self._root_1W = log_probs_RW
        else:
            self._score_tree(log_probs_RW)
        while self._trees and not len(self._trees[0][0]):  # answers of one token
            self._score_tree(log_probs_RW[:0])
        if self._trees:
            self._feed(self._trees[0][0])
            return []
        self.phase = "done"
        losses = Losses(tuple(self._losses[answer] for answer in self.request.answers))
        return [losses, Finished("stop")]

    def _feed(self, tree: Tree) -> None:
        root = len(self.request.prompt.ids)
        self.length, self.num_read = root, len(tree)
        self.inputs_TD = self._embed(tree.tokens)
        self.branches = Branches(root, root + torch.tensor(tree.depths), tree.sees())

    def _score_tree(self, log_probs_TW: Tensor) -> None:
        _, paths = self._trees.pop(0)
        log_probs_TW = torch.cat([self._root_1W, log_probs_TW])  # the root is index 0 here
        device = log_probs_TW.device
        indices = torch.tensor([position + 1 for path in paths.values() for position in path])
        tokens = torch.tensor([token for answer in paths for token in answer])
        picked = log_probs_TW[indices.to(device), tokens.to(device)].double().cpu()
        parts = picked.split([len(answer) for answer in paths])
        for answer, part in zip(paths, parts, strict=True):
            self._losses[answer] = -float(part.sum())


def _num_shared(ours: Sequence[int], theirs: Sequence[int]) -> int:
    pairs = zip(ours, theirs, strict=False)  # the shorter one ends the comparison
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
