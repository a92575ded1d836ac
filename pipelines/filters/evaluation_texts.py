"""Filter: samples whose text overlaps with the questions or captions of an evaluation set."""

import json
from collections.abc import Iterator

import pyarrow as pa

from pipelines.columns import texts_of, verdicts, words_of
from pipelines.core.pipeline import Construct, Filter, Reason
from pipelines.filters.files import InputFile, lines_of, resolved

REASONS = {"evaluation_text": Reason("The text contains a run of words from an evaluation text.")}
FIELDS = ("question", "text", "caption")


def evaluation_texts(
    file: InputFile = "", num_words: int = 8, min_words: int = 4, max_drop: float = 0.9
) -> Filter:
    """Samples without a run of `num_words` words of an evaluation text; shorter texts are compared as a whole.

    Texts of fewer than `min_words` words ("what is this?") would drop what only resembles them and are left out. Words
    are compared in NFKC, case folded, without punctuation. `file` has one text on a line, or, in JSON lines (`.jsonl`),
    objects with a field `question`, `text` or `caption`.
    """
    if not 1 <= min_words <= num_words:
        raise ValueError(
            f"evaluation_texts: min_words is {min_words} and num_words {num_words}, give 1 <= min_words <= num_words"
        )
    path = resolved("evaluation_texts", file)
    EvaluationTexts(path, num_words, min_words)  # a wrong line is found before the build
    return Filter(
        "evaluation_texts",
        Construct(EvaluationTexts, (path, num_words, min_words)),
        REASONS,
        max_drop,
    )


class EvaluationTexts:
    """The test, with the runs of words in memory."""

    def __init__(self, file: str, num_words: int, min_words: int) -> None:
        self.runs: dict[int, set[str]] = {}
        for text in _texts(file):
            words = words_of(text)
            length = min(num_words, len(words))
            if length >= min_words:
                self.runs.setdefault(length, set()).update(_runs(words, length))
        if not self.runs:
            raise ValueError(f"{file}: no text of at least {min_words} words in it")

    def __call__(self, table: pa.Table) -> pa.Array:
        """The reason of each record, with the first run of words that it shares."""
        return verdicts([self._verdict(words_of(" ".join(texts))) for texts in texts_of(table)])

    def _verdict(self, words: list[str]) -> tuple[str, str | None] | None:
        for length, known in self.runs.items():
            for run in _runs(words, length):
                if run in known:
                    return "evaluation_text", run[:200]
        return None


def _runs(words: list[str], length: int) -> Iterator[str]:
    return (" ".join(words[n : n + length]) for n in range(len(words) - length + 1))


def _texts(file: str) -> Iterator[str]:
    for number, line in lines_of(file):
        if not file.endswith(".jsonl"):
            yield line
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file}, line {number}: not JSON: {error}") from None
        found = [row[f] for f in FIELDS if isinstance(row, dict) and isinstance(row.get(f), str)]
        if not found:
            raise ValueError(
                f"{file}, line {number}: no object with one of the fields {', '.join(FIELDS)}"
            )
        yield from found
