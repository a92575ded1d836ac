"""N-gram counts of many sentences as arrays, and the arithmetic of Bleu, ROUGE-L and CIDEr on them.

Bleu and CIDEr work without a Python loop over n-grams. A "row" is one pair of a sentence and an n-gram it contains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from emu.eval.metrics.metric import Key

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
MAX_ORDER = 4
# The official Bleu scorer's guards against division by zero.
_SMALL, _TINY = 1e-9, 1e-15
_ROUGE_BETA = 1.2
_CIDER_SIGMA = 6.0


@dataclass(frozen=True)
class TokenizedCaptions:
    """Candidates and references as token strings, with the n-gram counts that the metrics share.

    `candidates[i]` is scored against `references[starts[i]:starts[i + 1]]`.
    """

    keys: Sequence[Key]
    candidates: Sequence[str]
    references: Sequence[str]
    num_references: Integers

    @cached_property
    def starts(self) -> Integers:
        """Index of the first reference of each image, and the number of references at the end, [images + 1]."""
        return np.concatenate([[0], np.cumsum(self.num_references)])

    @cached_property
    def owners(self) -> Integers:
        """Index of the image of each reference, [references]."""
        return np.repeat(np.arange(len(self.keys)), self.num_references)

    @cached_property
    def _counts(self) -> tuple[Integers, list[NgramCounts]]:
        return count_ngrams([*self.candidates, *self.references], MAX_ORDER)

    @property
    def lengths(self) -> Integers:
        """Number of words of each candidate, then of each reference."""
        return self._counts[0]

    @cached_property
    def joined(self) -> list[JoinedCounts]:
        """For each order, the n-grams of the candidates joined with those of their references."""
        images = np.concatenate([np.arange(len(self.keys)), self.owners])
        return [join_counts(counts, images, len(self.keys)) for counts in self._counts[1]]

    @cached_property
    def bleu_statistics(self) -> Floats:
        """See `bleu_statistics`."""
        return bleu_statistics(self)


def bleu_statistics(captions: TokenizedCaptions) -> Floats:
    """What Bleu is computed from, [images, 10].

    The columns are the length of the candidate, the closest length of a reference, then for each order the number of
    correct n-grams, then for each order the number of all n-grams of the candidate.
    """
    num = len(captions.keys)
    lengths = captions.lengths
    columns = [lengths[:num], _closest_lengths(lengths[:num], lengths[num:], captions)]
    correct = [_clipped_matches(joined, num) for joined in captions.joined]
    guessed = [np.maximum(0, lengths[:num] - order) for order in range(MAX_ORDER)]
    return np.stack([*columns, *correct, *guessed], axis=1).astype(np.float64)


def _closest_lengths(
    candidates: Integers, references: Integers, captions: TokenizedCaptions
) -> Integers:
    """For each image the length of a reference closest to the candidate's, the shorter one of a tie."""
    distances = np.abs(references - candidates[captions.owners])
    base = int(references.max(initial=0)) + 1
    return np.minimum.reduceat(distances * base + references, captions.starts[:-1]) % base


def _clipped_matches(joined: JoinedCounts, num_images: int) -> Floats:
    """Number of candidate n-grams found in a reference, each counted at most as often as in any one reference."""
    most = np.zeros(joined.num_candidate_rows, np.int64)
    np.maximum.at(most, joined.candidate_rows, joined.counts.counts[joined.reference_rows])
    clipped = np.minimum(joined.counts.counts[: joined.num_candidate_rows], most)
    return _sums(joined.counts.sentences[: joined.num_candidate_rows], clipped, num_images)


def bleu(statistics: Floats) -> Floats:
    """Bleu of orders 1 to 4, [rows, 4], from (sums of) rows of `bleu_statistics`."""
    length, closest = statistics[:, :1], statistics[:, 1:2]
    correct, guessed = statistics[:, 2 : 2 + MAX_ORDER], statistics[:, 2 + MAX_ORDER :]
    precisions = np.cumprod((correct + _TINY) / (guessed + _SMALL), axis=1)
    scores = precisions ** (1.0 / np.arange(1, MAX_ORDER + 1))
    ratio = (length + _TINY) / (closest + _SMALL)
    with np.errstate(over="ignore"):
        return np.where(ratio < 1, scores * np.exp(1 - 1 / ratio), scores)


def rouge_l(captions: TokenizedCaptions) -> list[float]:
    """ROUGE-L of each image."""
    starts = captions.starts.tolist()
    return [
        _rouge(candidate, captions.references[starts[index] : starts[index + 1]])
        for index, candidate in enumerate(captions.candidates)
    ]


def _rouge(candidate: str, references: Sequence[str]) -> float:
    words = candidate.split(" ")
    # bit i of a word's mask: the word is at position i
    positions: dict[str, int] = {}
    for index, word in enumerate(words):
        positions[word] = positions.get(word, 0) | 1 << index
    precision = recall = 0.0
    for reference in references:
        others = reference.split(" ")
        common = _common_subsequence(positions, len(words), others)
        precision = max(precision, common / len(words))
        recall = max(recall, common / len(others))
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + _ROUGE_BETA**2) * precision * recall / (recall + _ROUGE_BETA**2 * precision)


def _common_subsequence(positions: Mapping[str, int], length: int, words: Sequence[str]) -> int:
    """Length of the longest common subsequence, with a column of the table as the bits of one int (Hyyrö, 2004)."""
    full = column = (1 << length) - 1
    for word in words:
        matches = column & positions.get(word, 0)
        if matches:
            column = ((column + matches) | (column - matches)) & full
    return length - column.bit_count()


def cider(captions: TokenizedCaptions, clipped: bool) -> Floats:
    """Ten times the mean similarity over orders and references, [images]."""
    num = len(captions.keys)
    pairs = np.maximum(captions.lengths - 1, 0)
    similarity = sum(_similarity(joined, captions, clipped) for joined in captions.joined)
    if clipped:
        delta = (pairs[:num][captions.owners] - pairs[num:]).astype(np.float64)
        similarity = similarity * np.exp(-(delta**2) / (2 * _CIDER_SIGMA**2))
    sums = np.bincount(captions.owners, similarity, num)
    return 10.0 * sums / MAX_ORDER / captions.num_references


def _similarity(joined: JoinedCounts, captions: TokenizedCaptions, clipped: bool) -> Floats:
    """Cosine of each reference with its candidate by n-grams of one order, [references]."""
    num, num_references = len(captions.keys), len(captions.references)
    counts = joined.counts
    # log(number of images / number of images whose references have the n-gram)
    idf = np.log(float(num)) - np.log(np.maximum(1.0, joined.num_images_with))[counts.ngrams]
    weights = counts.counts * idf
    norms = np.sqrt(_sums(counts.sentences, weights**2, num + num_references))
    ours, theirs = weights[joined.candidate_rows], weights[joined.reference_rows]
    products = (np.minimum(ours, theirs) if clipped else ours) * theirs
    sums = _sums(counts.sentences[joined.reference_rows] - num, products, num_references)
    scale = norms[:num][captions.owners] * norms[num:]
    return np.divide(sums, scale, out=sums, where=scale != 0)


def _sums(indices: Integers, values: Floats | Integers, length: int) -> Floats:
    """The sum of the values at each index, [length]."""
    # bincount returns integers if there are no values
    return np.bincount(indices, values, length).astype(np.float64)


@dataclass(frozen=True)
class NgramCounts:
    """How often each n-gram of one order occurs in each sentence: one row per pair that occurs.

    Rows are sorted by sentence, then by n-gram.
    """

    sentences: Integers
    ngrams: Integers
    counts: Integers
    num_ngrams: int


@dataclass(frozen=True)
class JoinedCounts:
    """Counts of one order; the first sentences are candidates, one per image, the others are references.

    `candidate_rows[i]` and `reference_rows[i]` are rows of the same image and n-gram. `num_images_with` is the number
    of images whose references have the n-gram, [n-grams].
    """

    counts: NgramCounts
    num_candidate_rows: int
    candidate_rows: Integers
    reference_rows: Integers
    num_images_with: Integers


def join_counts(counts: NgramCounts, images: Integers, num_candidates: int) -> JoinedCounts:
    """Joins the rows of the candidates with those of the references of the same image.

    Args:
        counts: of candidates, then references.
        images: index of the image of each sentence.
        num_candidates: number of candidates.
    """
    base = max(counts.num_ngrams, 1)
    keys = images[counts.sentences] * base + counts.ngrams
    split = int(np.searchsorted(counts.sentences, num_candidates))
    ours, theirs = keys[:split], keys[split:]
    positions = np.searchsorted(ours, theirs)
    positions[positions == split] = 0
    matched = np.flatnonzero(ours[positions] == theirs) if split else np.zeros(0, np.int64)
    ordered = np.sort(theirs)
    first = np.ones(len(ordered), bool)
    first[1:] = ordered[1:] != ordered[:-1]
    num_images_with = np.bincount(ordered[first] % base, minlength=counts.num_ngrams)
    return JoinedCounts(counts, split, positions[matched], matched + split, num_images_with)


def count_ngrams(sentences: Sequence[str], max_order: int) -> tuple[Integers, list[NgramCounts]]:
    """The number of words of each sentence, and the counts of n-grams of each order from 1 to `max_order`."""
    sentences_words = [sentence.split() for sentence in sentences]
    lengths = np.fromiter(map(len, sentences_words), np.int64, len(sentences))
    flat = list(chain.from_iterable(sentences_words))
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(flat))}
    words = np.fromiter(map(vocabulary.__getitem__, flat), np.int64, len(flat))
    owners = np.repeat(np.arange(len(sentences)), lengths)
    ends = np.repeat(np.cumsum(lengths), lengths)
    ngrams, num_ngrams = words, len(vocabulary)
    orders: list[NgramCounts] = []
    for order in range(1, max_order + 1):
        if order > 1:
            ngrams, num_ngrams = _extend(ngrams, words, len(vocabulary), order)
        inside = np.arange(len(ngrams)) + order <= ends[: len(ngrams)]
        orders.append(_counted(owners[: len(ngrams)][inside], ngrams[inside], num_ngrams))
    return lengths, orders


def _extend(ngrams: Integers, words: Integers, num_words: int, order: int) -> tuple[Integers, int]:
    """Dense ids of the n-grams that are one word longer; the caller drops those that cross the end of a sentence."""
    longer = ngrams[: len(words) - order + 1]
    if not len(longer):
        return longer, 0
    pairs = longer * num_words + words[order - 1 :]
    found, dense = np.unique(pairs, return_inverse=True)
    return dense.astype(np.int64), len(found)


def _counted(owners: Integers, ngrams: Integers, num_ngrams: int) -> NgramCounts:
    base = max(num_ngrams, 1)
    keys = np.sort(owners * base + ngrams)
    firsts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])) if len(keys) else keys
    counts = np.diff(firsts, append=len(keys))
    found, grams = np.divmod(keys[firsts], base)
    return NgramCounts(found, grams, counts, num_ngrams)
