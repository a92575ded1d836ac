"""N-grams of many sentences as arrays: what Bleu and CIDEr count, without a Python loop over n-grams."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class NgramCounts:
    """How often each n-gram of one order stands in each sentence: a row for each pair that occurs.

    Rows are sorted by sentence, then n-gram.
    """

    sentences: Integers
    ngrams: Integers
    counts: Integers
    num_ngrams: int


def count_ngrams(sentences: Sequence[str], max_order: int) -> tuple[Integers, list[NgramCounts]]:
    """The number of words of each sentence, and the counts of its n-grams of order 1 to `max_order`."""
    vocabulary: dict[str, int] = {}
    lengths = np.zeros(len(sentences), np.int64)
    flat: list[int] = []
    for index, sentence in enumerate(sentences):
        words = sentence.split()
        lengths[index] = len(words)
        flat.extend([vocabulary.setdefault(word, len(vocabulary)) for word in words])
    words = np.asarray(flat, np.int64)
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
    """Dense ids of the n-grams that are one word longer; those over the end of a sentence are ignored later."""
    longer = ngrams[: len(words) - order + 1]
    if not len(longer):
        return longer, 0
    pairs = longer * num_words + words[order - 1 :]
    found, dense = np.unique(pairs, return_inverse=True)
    return dense.astype(np.int64), len(found)


def _counted(owners: Integers, ngrams: Integers, num_ngrams: int) -> NgramCounts:
    keys, counts = np.unique(owners * max(num_ngrams, 1) + ngrams, return_counts=True)
    sentences, grams = np.divmod(keys, max(num_ngrams, 1))
    return NgramCounts(sentences, grams, counts.astype(np.int64), num_ngrams)
