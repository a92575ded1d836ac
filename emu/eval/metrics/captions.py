"""Bleu, ROUGE-L and CIDEr of captions, equal to the official scorers (pycocoevalcap) on the same tokens.

Predictions are one caption an image, references one or more. What the tokens are decides the scores: those of
Stanford's tokeniser, found by `PtbTokenizer` unless a metric is told `StanfordTokenizer.find()`, which runs the program
itself, or `already_tokens` for tokens joined by spaces.

The arithmetic is that of the official scorers,
their odd corners included: an empty caption scores 0 in Bleu and CIDEr, ROUGE-L splits at single spaces while the
others split at any white space, CIDEr's length is a count of pairs of words.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray

from emu.eval.metrics.metric import (
    Bootstrap,
    Combine,
    Key,
    Score,
    aligned_keys,
    mean_score,
    require,
    shown,
)
from emu.eval.metrics.ngrams import Integers, JoinedCounts, NgramCounts, count_ngrams, join_counts
from emu.eval.metrics.ptb import PtbTokenizer

Floats = NDArray[np.float64]
# Captions to their tokens joined by spaces.
Tokenize = Callable[[Sequence[str]], Sequence[str]]
_MAX_ORDER = 4
_LINE_END = re.compile(r"[\n\r\v\f\u2028\u2029]")
# The official Bleu scorer's guards against division by zero.
_SMALL, _TINY = 1e-9, 1e-15
_ROUGE_BETA = 1.2
_CIDER_SIGMA = 6.0


@dataclass(frozen=True)
class TokenizedCaptions:
    """Candidates and references as token strings, with what the metrics share.

    `candidates[i]` is scored against `references[starts[i]:starts[i + 1]]`.
    """

    keys: Sequence[Key]
    candidates: Sequence[str]
    references: Sequence[str]
    num_references: Integers

    @cached_property
    def starts(self) -> Integers:
        """Where each image's references begin; one entry more than there are images."""
        return np.concatenate([[0], np.cumsum(self.num_references)])

    @cached_property
    def owners(self) -> Integers:
        """The image of each reference."""
        return np.repeat(np.arange(len(self.keys)), self.num_references)

    @cached_property
    def _counts(self) -> tuple[Integers, list[NgramCounts]]:
        return count_ngrams([*self.candidates, *self.references], _MAX_ORDER)

    @property
    def lengths(self) -> Integers:
        """The numbers of words of the candidates, then of the references."""
        return self._counts[0]

    @cached_property
    def joined(self) -> list[JoinedCounts]:
        """The n-grams of candidates joined with those of their references, for each order."""
        images = np.concatenate([np.arange(len(self.keys)), self.owners])
        return [join_counts(counts, images, len(self.keys)) for counts in self._counts[1]]

    @cached_property
    def bleu_statistics(self) -> Floats:
        """What Bleu is made of: lengths, correct and guessed n-grams of each image."""
        return _bleu_statistics(self)


def already_tokens(captions: Sequence[str]) -> Sequence[str]:
    """The captions as they are; raises ValueError for one that is not tokens joined by single spaces."""
    wrong = [
        text for text in captions if text and ("" in text.split(" ") or _LINE_END.search(text))
    ]
    if wrong:
        raise ValueError(
            f"{len(wrong)} captions are not tokens joined by single spaces on one line: {shown(wrong)}"
        )
    return captions


def tokenize_captions(
    predictions: Mapping[Key, str], references: Mapping[Key, Sequence[str]], tokenize: Tokenize
) -> TokenizedCaptions:
    """Both sides as tokens, each side tokenised in one call, in the order of the references.

    Raises ValueError for ids that do not agree, captions that are not strings, and images without references.
    """
    keys = aligned_keys(predictions, references)
    require(predictions, str, "predictions")
    require(references, (list, tuple), "references")
    empty = [key for key in keys if not references[key]]
    if empty:
        raise ValueError(f"references: {len(empty)} images have none: {shown(empty)}")
    flat = [(key, caption) for key in keys for caption in references[key]]
    require({(key, index): caption for index, (key, caption) in enumerate(flat)}, str, "references")
    counts = np.asarray([len(references[key]) for key in keys], np.int64)
    return TokenizedCaptions(
        keys,
        _one_each(tokenize, [predictions[key] for key in keys]),
        _one_each(tokenize, [caption for _, caption in flat]),
        counts,
    )


def _one_each(tokenize: Tokenize, captions: Sequence[str]) -> Sequence[str]:
    found = tokenize(captions)
    if len(found) != len(captions):
        raise ValueError(f"{len(captions)} captions were tokenised into {len(found)}")
    return found


@dataclass(frozen=True)
class Bleu:
    """Corpus Bleu of one order with the closest reference's length (Papineni et al., 2002)."""

    tokenize: Tokenize = field(default_factory=PtbTokenizer)
    order: int = 4
    bootstrap: Bootstrap = field(default_factory=Bootstrap)

    def __post_init__(self) -> None:
        if not 1 <= self.order <= _MAX_ORDER:
            raise ValueError(f"order is {self.order}; there are 1 to {_MAX_ORDER}")

    def __call__(
        self, predictions: Mapping[Key, str], references: Mapping[Key, Sequence[str]]
    ) -> Score:
        """The score; raises ValueError for ids or values that cannot be scored."""
        return self.score(tokenize_captions(predictions, references, self.tokenize))

    def score(self, captions: TokenizedCaptions) -> Score:
        """The score of captions that are tokens already."""
        statistics = captions.bleu_statistics
        samples = _bleu(statistics)[:, self.order - 1]
        value = _bleu(statistics.sum(0, keepdims=True))[0, self.order - 1]
        interval = self.bootstrap.interval(statistics, partial(_bleu_of, self.order))
        return Score(
            f"Bleu_{self.order}",
            float(value),
            dict(zip(captions.keys, samples.tolist(), strict=True)),
            interval,
        )


@dataclass(frozen=True)
class RougeL:
    """ROUGE-L as the captions' scorer has it: best precision and best recall over the references, beta 1.2."""

    tokenize: Tokenize = field(default_factory=PtbTokenizer)
    bootstrap: Bootstrap = field(default_factory=Bootstrap)

    def __call__(
        self, predictions: Mapping[Key, str], references: Mapping[Key, Sequence[str]]
    ) -> Score:
        """The score; raises ValueError for ids or values that cannot be scored."""
        return self.score(tokenize_captions(predictions, references, self.tokenize))

    def score(self, captions: TokenizedCaptions) -> Score:
        """The score of captions that are tokens already."""
        starts = captions.starts.tolist()
        samples = [
            _rouge(candidate, captions.references[starts[index] : starts[index + 1]])
            for index, candidate in enumerate(captions.candidates)
        ]
        return mean_score("ROUGE_L", dict(zip(captions.keys, samples, strict=True)), self.bootstrap)


@dataclass(frozen=True)
class Cider:
    """Consensus of captions by tf-idf n-grams (Vedantam et al., 2015).

    Three variants: "CIDEr" is what the official scorer of COCO prints under that name; its arithmetic, counts
    clipped and lengths compared, is the paper's "CIDEr-D", which gives the same numbers here; "CIDEr-unclipped" is
    the plain cosine that the paper calls CIDEr. Document frequencies come from the references, so scores of
    different sets of images do not compare, and a single image scores 0.
    """

    tokenize: Tokenize = field(default_factory=PtbTokenizer)
    variant: str = "CIDEr"
    bootstrap: Bootstrap = field(default_factory=Bootstrap)

    def __post_init__(self) -> None:
        if self.variant not in ("CIDEr", "CIDEr-D", "CIDEr-unclipped"):
            raise ValueError(
                f"variant is {self.variant!r}; there are CIDEr, CIDEr-D and CIDEr-unclipped"
            )

    def __call__(
        self, predictions: Mapping[Key, str], references: Mapping[Key, Sequence[str]]
    ) -> Score:
        """The score; raises ValueError for ids or values that cannot be scored."""
        return self.score(tokenize_captions(predictions, references, self.tokenize))

    def score(self, captions: TokenizedCaptions) -> Score:
        """The score of captions that are tokens already."""
        samples = _cider(captions, clipped=self.variant != "CIDEr-unclipped")
        return mean_score(
            self.variant, dict(zip(captions.keys, samples.tolist(), strict=True)), self.bootstrap
        )


def score_captions(
    predictions: Mapping[Key, str],
    references: Mapping[Key, Sequence[str]],
    tokenize: Tokenize | None = None,
    bootstrap: Bootstrap = Bootstrap(),  # noqa: B008  (frozen)
) -> list[Score]:
    """Bleu_1 to Bleu_4, ROUGE_L and CIDEr, with the tokens made once, by `PtbTokenizer` where not given."""
    tokenize = tokenize or PtbTokenizer()
    captions = tokenize_captions(predictions, references, tokenize)
    alone = Bootstrap(0)
    scores = [Bleu(tokenize, order, alone).score(captions) for order in range(1, _MAX_ORDER + 1)]
    scores += [
        RougeL(tokenize, alone).score(captions),
        Cider(tokenize, bootstrap=alone).score(captions),
    ]
    # one set of resamples for all: columns of Bleu's statistics, then ROUGE-L, then CIDEr
    means = [np.fromiter(score.samples.values(), np.float64) for score in scores[_MAX_ORDER:]]
    statistics = np.column_stack([captions.bleu_statistics, *means])
    combines: list[Combine] = [partial(_bleu_of, order) for order in range(1, _MAX_ORDER + 1)]
    combines += [partial(_mean_of, column, len(captions.keys)) for column in (-2, -1)]
    intervals = bootstrap.intervals(statistics, combines)
    return [
        replace(score, interval=interval) for score, interval in zip(scores, intervals, strict=True)
    ]


def _bleu_of(order: int, sums: Floats) -> Floats:
    return _bleu(sums[:, : 2 + 2 * _MAX_ORDER])[:, order - 1]


def _mean_of(column: int, num_samples: int, sums: Floats) -> Floats:
    return sums[:, column] / num_samples


def _bleu_statistics(captions: TokenizedCaptions) -> Floats:
    """Columns: candidate length, closest reference length, then correct and guessed n-grams of each order."""
    num = len(captions.keys)
    lengths = captions.lengths
    columns = [lengths[:num], _closest_lengths(lengths[:num], lengths[num:], captions)]
    correct = [_clipped_matches(joined, num) for joined in captions.joined]
    guessed = [np.maximum(0, lengths[:num] - order) for order in range(_MAX_ORDER)]
    return np.stack([*columns, *correct, *guessed], axis=1).astype(np.float64)


def _closest_lengths(
    candidates: Integers, references: Integers, captions: TokenizedCaptions
) -> Integers:
    """Of each image's reference lengths the one closest to the candidate's, the shorter one of two."""
    distances = np.abs(references - candidates[captions.owners])
    base = int(references.max(initial=0)) + 1
    return np.minimum.reduceat(distances * base + references, captions.starts[:-1]) % base


def _clipped_matches(joined: JoinedCounts, num_images: int) -> Floats:
    """The candidate's n-grams that a reference has, each counted at most as often as in one reference."""
    most = np.zeros(joined.num_candidate_rows, np.int64)
    np.maximum.at(most, joined.candidate_rows, joined.counts.counts[joined.reference_rows])
    clipped = np.minimum(joined.counts.counts[: joined.num_candidate_rows], most)
    return _sums(joined.counts.sentences[: joined.num_candidate_rows], clipped, num_images)


def _bleu(statistics: Floats) -> Floats:
    """Bleu of orders 1 to 4, [rows, 4], from rows of (sums of) statistics."""
    length, closest = statistics[:, :1], statistics[:, 1:2]
    correct, guessed = statistics[:, 2 : 2 + _MAX_ORDER], statistics[:, 2 + _MAX_ORDER :]
    precisions = np.cumprod((correct + _TINY) / (guessed + _SMALL), axis=1)
    scores = precisions ** (1.0 / np.arange(1, _MAX_ORDER + 1))
    ratio = (length + _TINY) / (closest + _SMALL)
    with np.errstate(over="ignore"):
        return np.where(ratio < 1, scores * np.exp(1 - 1 / ratio), scores)


def _rouge(candidate: str, references: Sequence[str]) -> float:
    words = candidate.split(" ")
    places: dict[str, int] = {}
    for index, word in enumerate(words):
        places[word] = places.get(word, 0) | 1 << index
    precision = recall = 0.0
    for reference in references:
        others = reference.split(" ")
        common = _common_subsequence(places, len(words), others)
        precision = max(precision, common / len(words))
        recall = max(recall, common / len(others))
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + _ROUGE_BETA**2) * precision * recall / (recall + _ROUGE_BETA**2 * precision)


def _common_subsequence(places: Mapping[str, int], length: int, words: Sequence[str]) -> int:
    """The length of the longest common subsequence, a column of the table at a time as bits (Hyyrö, 2004)."""
    full = column = (1 << length) - 1
    for word in words:
        matches = column & places.get(word, 0)
        if matches:
            column = ((column + matches) | (column - matches)) & full
    return length - column.bit_count()


def _cider(captions: TokenizedCaptions, clipped: bool) -> Floats:
    """Ten times the mean similarity over orders and references, of each image."""
    num = len(captions.keys)
    pairs = np.maximum(captions.lengths - 1, 0)
    similarity = sum(_similarity(joined, captions, clipped) for joined in captions.joined)
    if clipped:
        delta = (pairs[:num][captions.owners] - pairs[num:]).astype(np.float64)
        similarity = similarity * np.exp(-(delta**2) / (2 * _CIDER_SIGMA**2))
    sums = np.bincount(captions.owners, similarity, num)
    return 10.0 * sums / _MAX_ORDER / captions.num_references


def _similarity(joined: JoinedCounts, captions: TokenizedCaptions, clipped: bool) -> Floats:
    """The cosine of each reference with its candidate by n-grams of one order."""
    num, num_references = len(captions.keys), len(captions.references)
    counts = joined.counts
    # the log of images over images whose references have the n-gram
    idf = np.log(float(num)) - np.log(np.maximum(1.0, joined.num_images_with))[counts.ngrams]
    weights = counts.counts * idf
    norms = np.sqrt(_sums(counts.sentences, weights**2, num + num_references))
    ours, theirs = weights[joined.candidate_rows], weights[joined.reference_rows]
    products = (np.minimum(ours, theirs) if clipped else ours) * theirs
    sums = _sums(counts.sentences[joined.reference_rows] - num, products, num_references)
    scale = norms[:num][captions.owners] * norms[num:]
    return np.divide(sums, scale, out=sums, where=scale != 0)


def _sums(places: Integers, values: Floats | Integers, length: int) -> Floats:
    """The sum of the values at each place."""
    # of no values NumPy counts in integers
    return np.bincount(places, values, length).astype(np.float64)
