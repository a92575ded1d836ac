"""Beam search by the rules of transformers 4.31, which the released results were made with.

Lengths include the start id and exclude the end token of a finished beam. The search of a prompt is over when enough
beams are finished and no open one can score higher at the current length.

Shapes: K beams, B positions after the prompt, R rows that are read, W entries of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from emu.generate.request_state import Branches, Output, RequestState
from emu.generate.sampling import Detokenizer

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

    def take(self, log_probs_KW: Tensor, eos: int) -> list[int]:
        """Takes the log-probabilities of the next tokens; returns the beam that each open beam came from."""
        totals_KW = log_probs_KW + log_probs_KW.new_tensor(self.scores)[:, None]
        scores, indices = totals_KW.flatten().topk(2 * self.num_beams)
        vocabulary = log_probs_KW.shape[1]
        ranked = [
            (score, index // vocabulary, index % vocabulary)
            for score, index in zip(scores.tolist(), indices.tolist(), strict=True)
        ]
        return self.advance(ranked, eos)

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


class BeamState(RequestState):
    """A request whose text is searched: all beams are branches over the pages of one sequence.

    A step feeds a token of every beam. Beams that were given up stay in the cache and are no longer seen, so that
    nothing is copied when beams are exchanged.
    """

    def take_logits(self, logits_RW: Tensor, likeliest: Sequence[int]) -> list[Output]:
        """Continues every beam; gives the best text once the search is over."""
        special, search = self._config.special, self._search
        log_probs_KW = torch.log_softmax(logits_RW, dim=-1).expand(search.num_beams, -1)
        if self._num_ids < self._options.min_length:
            log_probs_KW = log_probs_KW.clone()
            log_probs_KW[:, special.eos] = -torch.inf
        origins = search.take(log_probs_KW, special.eos)
        if search.is_over:
            return self._end(search.best())
        self._feed(origins)
        return []

    def _begin_text(self) -> None:
        limit = self._max_tokens()
        self.texts.append(Detokenizer(self._tokenizer, limit, self._options.stop))
        self._search = Search(self._options.num_beams, self._options.length_penalty, limit)
        self._num_ids = 1  # the start id counts
        self._sees_KB = torch.zeros(self._options.num_beams, 0, dtype=torch.bool)

    def _feed(self, origins: Sequence[int]) -> None:
        if self.branches is None:
            self._root = self.length
        beams = self._search.beams
        own_KK = torch.eye(len(beams), dtype=torch.bool)
        self._sees_KB = torch.cat([self._sees_KB[list(origins)], own_KK], dim=1)
        position = self._root + len(beams[0]) - 1
        self.branches = Branches(self._root, torch.full((len(beams),), position), self._sees_KB)
        self.inputs_TD = self._embed([beam[-1] for beam in beams])
        self.num_read = len(beams)
        self._num_ids += 1

    def _end(self, ids: Sequence[int]) -> list[Output]:
        (text,) = self.texts
        piece = text.push_all(ids)
        self._count(text)
        assert text.reason is not None
        return [piece, self._finish(text.reason)]
