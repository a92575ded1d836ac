"""N-grams of many sentences as arrays: what Bleu and CIDEr count, without a Python loop over n-grams."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

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


@dataclass(frozen=True)
class JoinedCounts:
    """Counts of one order whose first sentences are candidates, an image each, and the others references.

    `candidate_rows[i]` and `reference_rows[i]` are rows of the same image and n-gram; `num_images_with` is, for each
    n-gram, the number of images whose references have it.
    """

    counts: NgramCounts
    num_candidate_rows: int
    candidate_rows: Integers
    reference_rows: Integers
    num_images_with: Integers


def join_counts(counts: NgramCounts, images: Integers, num_candidates: int) -> JoinedCounts:
    """Joins the rows of candidates, the first sentences, with those of the references of the same image."""
    base = max(counts.num_ngrams, 1)
    keys = images[counts.sentences] * base + counts.ngrams
    split = int(np.searchsorted(counts.sentences, num_candidates))
    ours, theirs = keys[:split], keys[split:]
    places = np.searchsorted(ours, theirs)
    places[places == split] = 0
    matched = np.flatnonzero(ours[places] == theirs) if split else np.zeros(0, np.int64)
    ordered = np.sort(theirs)
    first = np.ones(len(ordered), bool)
    first[1:] = ordered[1:] != ordered[:-1]
    num_images_with = np.bincount(ordered[first] % base, minlength=counts.num_ngrams)
    return JoinedCounts(counts, split, places[matched], matched + split, num_images_with)


def count_ngrams(sentences: Sequence[str], max_order: int) -> tuple[Integers, list[NgramCounts]]:
    """The number of words of each sentence, and the counts of its n-grams of order 1 to `max_order`."""
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
    """Dense ids of the n-grams that are one word longer; those over the end of a sentence are ignored later."""
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
