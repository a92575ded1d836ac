"""References of `benchmarks.metrics`: loops over questions, and WUPS transcribed from its definition."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import numpy as np

from emu.eval.metrics.lemmas import rule_lemmas
from emu.eval.metrics.wordnet import Sense, WordNet
from emu.eval.metrics.wups import OpenReference

_ROOT = ("", 0)


def plain_visdial(data: tuple[np.ndarray, np.ndarray, np.ndarray]) -> float:
    """The sum of the six measures, a question at a time."""
    scores, targets, relevance = data
    found = [_rank(row.tolist(), int(target)) for row, target in zip(scores, targets, strict=True)]
    gains = [
        _ndcg(row.tolist(), wanted.tolist())
        for row, wanted in zip(scores[::10], relevance, strict=True)
    ]
    num = len(found)
    recalls = sum(sum(rank <= k for rank in found) / num for k in (1, 5, 10))
    return (
        recalls + sum(found) / num + sum(1 / rank for rank in found) / num + sum(gains) / len(gains)
    )


def plain_ranks(data: tuple[np.ndarray, np.ndarray, np.ndarray]) -> float:
    """The mean rank, a question at a time."""
    found = [_rank(row.tolist(), int(target)) for row, target in zip(data[0], data[1], strict=True)]
    return sum(found) / len(found)


def _rank(row: list[float], target: int) -> int:
    order = sorted(range(len(row)), key=lambda index: -row[index])
    return order.index(target) + 1


def _ndcg(row: list[float], relevance: list[float]) -> float:
    k = sum(value != 0 for value in relevance)
    order = sorted(range(len(row)), key=lambda index: -row[index])[:k]
    gained = sum(relevance[index] / math.log2(rank + 2) for rank, index in enumerate(order))
    best = sorted(relevance, reverse=True)[:k]
    return gained / sum(value / math.log2(rank + 2) for rank, value in enumerate(best))


def plain_wups(
    data: tuple[WordNet, dict[str, str], dict[str, OpenReference], frozenset[str]],
) -> float:
    """WUPS in percent; every answer, pair of words and path is computed again, as in the official scorer."""
    wordnet, predictions, references, stop_words = data
    lemmatize = rule_lemmas(wordnet)
    total = 0.0
    for key, reference in references.items():
        given = [word for word in lemmatize(predictions[key]) if word not in stop_words]
        right = [word for word in lemmatize(reference.answers[0]) if word not in stop_words]
        if reference.question_type in ("DB", "DC"):
            total += float(given == right)
        else:
            total += min(_product(wordnet, given, right), _product(wordnet, right, given))
    return 100 * total / len(references)


def _product(wordnet: WordNet, first: list[str], second: list[str]) -> float:
    product, found = 1.0, False
    for word in first:
        best = 0.0
        for other in second:
            best = max(best, _similarity(wordnet, word, other))
        if best:
            product, found = product * best, True
    return product if found else 0.0


def _similarity(wordnet: WordNet, first: str, second: str) -> float:
    if first == second:
        return 1.0
    ours, theirs = wordnet.first_sense(first), wordnet.first_sense(second)
    if ours is None or theirs is None:
        return 0.0
    with_root = ours.pos == "v"
    common = _above(wordnet, ours) & _above(wordnet, theirs)
    if not common and not with_root:
        return 0.0
    depths: list[tuple[int, bool, str, Any]] = [
        (-_depth(wordnet, sense, min), sense != ours, sense.name, sense) for sense in common
    ]
    if with_root:
        depths.append((0, True, "*ROOT*", None))
    subsumer = min(depths, key=lambda entry: entry[:3])[3]
    depth = (0 if subsumer is None else _depth(wordnet, subsumer, max)) + 1
    lengths = [_distance(wordnet, sense, subsumer, with_root) + depth for sense in (ours, theirs)]
    return 2.0 * depth / sum(lengths)


def _above(wordnet: WordNet, sense: Sense) -> set[Sense]:
    return {sense}.union(*(_above(wordnet, parent) for parent in wordnet.hypernyms(sense)))


def _depth(wordnet: WordNet, sense: Sense, choose: Any) -> int:
    parents = wordnet.hypernyms(sense)
    return 1 + choose(_depth(wordnet, parent, choose) for parent in parents) if parents else 0


def _paths(wordnet: WordNet, sense: Sense, with_root: bool) -> dict[Any, int]:
    found: dict[Any, int] = {}
    pending = deque([(sense, 0)])
    while pending:
        one, distance = pending.popleft()
        if one not in found:
            found[one] = distance
            pending.extend((parent, distance + 1) for parent in wordnet.hypernyms(one))
    if with_root:
        found[_ROOT] = max(found.values()) + 1
    return found


def _distance(wordnet: WordNet, sense: Sense, other: Sense | None, with_root: bool) -> int:
    if sense == other:
        return 0
    ours = _paths(wordnet, sense, with_root)
    theirs = {_ROOT: 0} if other is None else _paths(wordnet, other, with_root)
    return min(ours[one] + theirs[one] for one in ours.keys() & theirs.keys())
