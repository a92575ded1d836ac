"""Accuracy of answers to visual questions by the agreement of annotators: VQAv2, OKVQA, VizWiz, TextVQA."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from emu.eval.metrics.metric import (
    Bootstrap,
    Key,
    Score,
    aligned_keys,
    grouped_means,
    mean_score,
    require,
    shown,
)
from emu.eval.metrics.porter import stem
from emu.eval.metrics.vqa_answers import (
    normalized,
    plain_words,
    single_line,
    textvqa_normalized,
    without_punctuation,
)

Mode = Literal["official", "always_normalised", "released", "textvqa"]
_AGREEING = 3
Normalized = tuple[str, list[str]]


@dataclass(frozen=True)
class VqaReference:
    """The answers of a question's annotators.

    `annotators` tells answers apart that have the same text (the official scorer compares whole records: in
    VQAv2 these have a number, in VizWiz only a confidence, so that two equal answers given with the same
    confidence count as one annotator's). None: every answer is an annotator's own, as in mode "textvqa" always.
    """

    answers: Sequence[str]
    annotators: Sequence[Hashable] | None = None
    question_type: str | None = None
    answer_type: str | None = None


@dataclass(frozen=True)
class VqaAccuracy:
    """The mean over annotators of min(1, agreeing others / 3), in percent.

    Modes: "official" (VQAv2, VizWiz: the text is normalised only where the annotators' answers differ),
    "always_normalised" (the same normalisation everywhere), "released" (the evaluation released with Emu, for
    VQAv2 and OKVQA: the prediction is always normalised, the references lose only punctuation and only where
    they differ; `stemmed` adds the stemmer of OKVQA) and "textvqa" (the evaluator of M4C).
    """

    mode: Mode = "official"
    stemmed: bool = False
    bootstrap: Bootstrap = field(default_factory=Bootstrap)

    def __post_init__(self) -> None:
        if self.mode not in _NORMALIZERS:
            raise ValueError(f"mode is {self.mode!r}; there are {', '.join(_NORMALIZERS)}")
        if self.stemmed and self.mode != "released":
            raise ValueError(
                f"mode {self.mode!r} does not stem; OKVQA's stemming belongs to mode 'released'"
            )

    def __call__(
        self, predictions: Mapping[Key, str], references: Mapping[Key, VqaReference]
    ) -> Score:
        """The score; raises ValueError for ids or values that cannot be scored."""
        keys = aligned_keys(predictions, references)
        require(predictions, str, "predictions")
        _check(references)
        samples = {key: self.accuracy(predictions[key], references[key]) for key in keys}
        groups: dict[str, float] = {}
        for kind in ("question_type", "answer_type"):
            typed = [(samples[key], getattr(references[key], kind)) for key in keys]
            known = [(value, f"{kind}/{group}") for value, group in typed if group is not None]
            groups |= grouped_means(
                [value for value, _ in known], [group for _, group in known], 100
            )
        name = (
            "VQA accuracy"
            if self.mode == "official"
            else f"VQA accuracy ({self.mode}{', stemmed' * self.stemmed})"
        )
        return mean_score(name, samples, self.bootstrap, groups, scale=100)

    def accuracy(self, prediction: str, reference: VqaReference) -> float:
        """The accuracy of one answer, 0 to 1."""
        answer, answers = _NORMALIZERS[self.mode](prediction, reference.answers, self.stemmed)
        matches = answers.count(answer)
        if matches == 0:
            return 0.0
        annotators: Sequence[Hashable] = range(len(answers))
        # M4C's evaluator numbers the answers, whatever else is known of them
        if reference.annotators is not None and self.mode != "textvqa":
            annotators = reference.annotators
        same = Counter(
            annotator for text, annotator in zip(answers, annotators, strict=True) if text == answer
        )
        total = 0.0
        for text, annotator in zip(answers, annotators, strict=True):
            others = matches - (same[annotator] if text == answer else 0)
            total += min(1.0, others / _AGREEING)
        return total / len(answers)


def _check(references: Mapping[Key, VqaReference]) -> None:
    require({key: one.answers for key, one in references.items()}, (list, tuple), "references")
    empty = [key for key, reference in references.items() if not reference.answers]
    if empty:
        raise ValueError(f"references: {len(empty)} questions have no answers: {shown(empty)}")
    answers = {
        (key, i): text
        for key, reference in references.items()
        for i, text in enumerate(reference.answers)
    }
    require(answers, str, "references")
    uneven = [
        key
        for key, ref in references.items()
        if ref.annotators is not None and len(ref.annotators) != len(ref.answers)
    ]
    if uneven:
        raise ValueError(
            f"references: {len(uneven)} questions have more or fewer annotators than answers: {shown(uneven)}"
        )


def _official(prediction: str, answers: Sequence[str], stemmed: bool) -> Normalized:
    del stemmed
    texts = [single_line(answer) for answer in answers]
    if len(set(texts)) > 1:
        return normalized(prediction), [normalized(text) for text in texts]
    return single_line(prediction), texts


def _always(prediction: str, answers: Sequence[str], stemmed: bool) -> Normalized:
    del stemmed
    return normalized(prediction), [normalized(answer) for answer in answers]


def _released(prediction: str, answers: Sequence[str], stemmed: bool) -> Normalized:
    def stripped(text: str) -> str:
        bare = without_punctuation(text)
        return stem(bare) if stemmed else bare

    answer = plain_words(stripped(single_line(prediction)))
    differ = len(set(answers)) > 1
    return answer, [stripped(text) for text in answers] if differ else list(answers)


def _textvqa(prediction: str, answers: Sequence[str], stemmed: bool) -> Normalized:
    del stemmed
    return textvqa_normalized(prediction), [textvqa_normalized(answer) for answer in answers]


_NORMALIZERS: dict[Mode, Callable[[str, Sequence[str], bool], Normalized]] = {
    "official": _official,
    "always_normalised": _always,
    "released": _released,
    "textvqa": _textvqa,
}
