"""Which images of a document are worth fetching, and beside which sentence each that arrived belongs.

Two rules, before and after the download:

- **choose**: an image whose best similarity to the sentences is below the threshold is dropped before its
  download (paper, section on pretraining data: dropped when below 0.32 to every text of the document).
- **match**: the released `matched_text_index` comes from an assignment over all images. Where some did
  not arrive, it is solved again over those that did: one image a sentence, largest sum of similarities.

A blank sentence keeps its place in the document, but no image is matched to it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from scipy.optimize import linear_sum_assignment

MATCH_REASONS: Mapping[str, str] = MappingProxyType(
    {
        "low_similarity": "Its similarity to every sentence is below the threshold; not fetched.",
        "over_max_images": "The document has more images than wanted; the most similar were kept.",
        "unassigned": "More images arrived than there are sentences; each takes one.",
        "low_similarity_assigned": "Its similarity to the sentence left for it is below the threshold.",
    }
)
"""Why an image is left out: reason -> one sentence for a person."""


@dataclass(frozen=True)
class MatchRules:
    """The rules for the images of a document."""

    min_similarity: float = 0.32
    max_images: int | None = 256
    """Bounds the memory and time that one document can take."""

    def __post_init__(self) -> None:
        if not -1 <= self.min_similarity <= 1:
            raise ValueError(
                f"min_similarity={self.min_similarity} is not in -1..1: similarities are cosines "
                "(the paper's threshold is 0.32; OpenFlamingo's default of 30 drops everything)"
            )
        if self.max_images is not None and self.max_images < 1:
            raise ValueError(f"max_images={self.max_images}: at least 1; leave it out for no limit")


@dataclass(frozen=True)
class Outcome:
    """What becomes of one image: its sentence and the similarity to it, or the reason it is left out."""

    reason: str | None = None
    detail: str | None = None
    text_index: int = -1
    similarity: float = float("nan")


def choose_images(
    similarity: Sequence[Sequence[float]], texts: Sequence[str], rules: MatchRules
) -> list[Outcome]:
    """For each image whether to fetch it, from its best similarity to a sentence that is not blank.

    Above `max_images` the most similar stay; of equals the earlier ones.
    """
    readable = _readable(texts)
    best = [max(row[j] for j in readable) for row in similarity]
    outcomes = [_enough(value, rules, "low_similarity") for value in best]
    alive = [i for i, outcome in enumerate(outcomes) if outcome.reason is None]
    if rules.max_images is not None:
        ranked = sorted(alive, key=lambda i: (-best[i], i))
        for place, i in enumerate(ranked[rules.max_images :], rules.max_images + 1):
            outcomes[i] = Outcome("over_max_images", f"number {place} by similarity")
    return outcomes


def match_images(
    similarity: Sequence[Sequence[float]],
    texts: Sequence[str],
    arrived: Sequence[int],
    rules: MatchRules,
) -> dict[int, Outcome]:
    """For each image that arrived its sentence: one-to-one, with the largest sum of similarities.

    Args:
        similarity: N images x M sentences.
        texts: the M sentences.
        arrived: numbers of the images that arrived.
        rules: an image whose similarity to its sentence is below the threshold is left out.
    """
    readable = _readable(texts)
    outcomes = {i: Outcome("unassigned", f"{len(readable)} sentences") for i in arrived}
    if not arrived:
        return outcomes
    scores = np.array([similarity[i] for i in arrived], dtype=np.float64)[:, readable]
    for row, column in zip(*linear_sum_assignment(scores, maximize=True), strict=True):
        value = float(scores[row, column])
        found = _enough(value, rules, "low_similarity_assigned")
        is_kept = found.reason is None
        outcomes[arrived[row]] = (
            Outcome(text_index=readable[column], similarity=value) if is_kept else found
        )
    return outcomes


def _readable(texts: Sequence[str]) -> list[int]:
    return [j for j, text in enumerate(texts) if text.strip()]


def _enough(value: float, rules: MatchRules, reason: str) -> Outcome:
    if value >= rules.min_similarity:
        return Outcome()
    return Outcome(reason, f"{value:.4f} is below {rules.min_similarity:g}")
