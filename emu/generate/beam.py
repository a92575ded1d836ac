"""Beam search by the rules of transformers 4.31, which the released results were made with.

Lengths include the start id and exclude the end token of a finished beam. The search of a prompt is over when enough
beams are finished and no open one can score higher at the current length.

Shapes: B prompts, K beams, W entries of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from emu.generate.kv_cache import DecodeState
from emu.generate.prompts import TextOptions

CLOSED = -1e9  # score of beams that must not be continued: at the start, all but one


@dataclass
class Search:
    """The open and the finished beams of one prompt; ids without the start id."""

    num_beams: int
    length_penalty: float
    limit: int
    finished: list[tuple[float, list[int]]] = field(default_factory=list)
    is_over: bool = False
    beams: list[list[int]] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.beams = [[] for _ in range(self.num_beams)]
        self.scores = [0.0] + [CLOSED] * (self.num_beams - 1)

    def advance(self, ranked: Sequence[tuple[float, int, int]], eos: int) -> list[int]:
        """Takes `(score, beam, token)`, best first; returns the beam that each open beam came from."""
        length = len(self.beams[0]) + 1
        origins, beams, scores = [], [], []
        for rank, (score, beam, token) in enumerate(ranked):
            if token == eos:
                if rank < self.num_beams:
                    self._finish(score, self.beams[beam], length, eos=[eos])
                continue
            origins.append(beam)
            beams.append([*self.beams[beam], token])
            scores.append(score)
            if len(beams) == self.num_beams:
                break
        self.beams, self.scores = beams, scores
        if len(self.finished) >= self.num_beams:
            self.is_over = min(self.finished)[0] >= ranked[0][0] / length**self.length_penalty
        if not self.is_over and len(beams[0]) >= self.limit:
            self._close()
        return origins

    def best(self) -> list[int]:
        """The ids of the best beam, with its end token where it has one."""
        return max(self.finished, key=lambda entry: entry[0])[1]

    def _close(self) -> None:
        for score, ids in zip(self.scores, self.beams, strict=True):
            self._finish(score, ids, len(ids) + 1, eos=[])
        self.is_over = True

    def _finish(self, score: float, ids: list[int], length: int, eos: list[int]) -> None:
        self.finished.append((score / length**self.length_penalty, ids + eos))
        self.finished.sort(key=lambda entry: -entry[0])
        del self.finished[self.num_beams :]


@torch.inference_mode()
def beam_search(state: DecodeState, limits: Sequence[int], options: TextOptions) -> list[list[int]]:
    """The ids of the best text for each prompt, at most `limits` of them."""
    beams, special = options.num_beams, state.model.config.special
    searches = [Search(beams, options.length_penalty, limit) for limit in limits]
    state.select([row for row in range(state.num_rows) for _ in range(beams)])
    num_ids = 1  # the start id counts
    while True:
        logits_BW = state.model.language.head(state.hidden_BD).float()
        log_probs_BKW = torch.log_softmax(logits_BW, dim=-1).unflatten(0, (-1, beams))
        if num_ids < options.min_length:
            log_probs_BKW[..., special.eos] = -torch.inf
        origins, tokens = advance(searches, log_probs_BKW, special.eos, special.pad)
        if all(search.is_over for search in searches):
            return [search.best() for search in searches]
        state.reorder(origins)
        state.feed_ids(tokens)
        num_ids += 1


def advance(
    searches: Sequence[Search], log_probs_BKW: Tensor, eos: int, pad: int
) -> tuple[list[int], list[int]]:
    """One step of all searches: the rows to continue, and the token for each."""
    num_beams, vocabulary = log_probs_BKW.shape[1:]
    origins: list[int] = []
    tokens: list[int] = []
    for number, search in enumerate(searches):
        first = number * num_beams
        if search.is_over:
            origins += range(first, first + num_beams)
            tokens += [pad] * num_beams
            continue
        totals_KW = log_probs_BKW[number] + log_probs_BKW.new_tensor(search.scores)[:, None]
        scores, indices = totals_KW.flatten().topk(2 * num_beams)
        ranked = [
            (score, index // vocabulary, index % vocabulary)
            for score, index in zip(scores.tolist(), indices.tolist(), strict=True)
        ]
        origins += [first + beam for beam in search.advance(ranked, eos)]
        tokens += [beam[-1] for beam in search.beams]
    return origins, tokens
