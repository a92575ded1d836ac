"""Filter: texts that repeat themselves: the same words or phrases again and again."""

from collections import Counter

import pyarrow as pa

from pipelines.columns import texts_of, verdicts, words_of
from pipelines.core.pipeline import Filter, Reason

REASONS = {"text_repeats_itself": Reason("Too many phrases of the text are repetitions.")}


def repetition(
    max_share: float = 0.3, num_words: int = 2, min_words: int = 6, max_drop: float = 0.9
) -> Filter:
    """Samples in which at most the fraction `max_share` of phrases of `num_words` words are repetitions.

    Texts of fewer than `min_words` words are kept. (Gopher's rules for repetition, Rae et al. 2021, in one.)
    """
    if not 0 <= max_share <= 1 or num_words < 1:
        raise ValueError(
            f"repetition: max_share is {max_share} and num_words {num_words}, give a share from 0 to 1 and at least 1"
        )

    def verdict(texts: list[str]) -> tuple[str, str | None] | None:
        words = words_of(" ".join(texts))
        phrases = list(zip(*(words[n:] for n in range(num_words)), strict=False))
        if len(words) < min_words or not phrases:
            return None
        counts = Counter(phrases)
        num_again = len(phrases) - len(counts)
        if num_again <= max_share * len(phrases):
            return None
        phrase, times = counts.most_common(1)[0]
        return (
            "text_repeats_itself",
            f"{num_again} of {len(phrases)}; {' '.join(phrase)[:80]!r} {times} times",
        )

    def test(table: pa.Table) -> pa.Array:
        return verdicts([verdict(texts) for texts in texts_of(table)])

    return Filter("repetition", test, REASONS, max_drop)
