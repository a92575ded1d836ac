"""Filter: captions that many samples share, word for word or but for their numbers: "Photo 12 of 80"."""

import re
from collections import Counter

import pyarrow as pa

from pipelines.columns import normalised_text, texts_of, verdicts
from pipelines.core.pipeline import Filter, Reason

REASONS = {
    "caption_repeated": Reason("Too many samples of the shard have the same text."),
    "caption_templated": Reason(
        "Too many samples of the shard have the same text except for numbers."
    ),
}
_NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")


def repeated_captions(max_repeats: int = 10, max_drop: float = 0.9) -> Filter:
    """Samples whose text occurs at most `max_repeats` times in their shard; the first `max_repeats` are kept.

    Texts are counted within one shard, so memory does not grow with the dataset. For exact repeats over the whole
    dataset use `--dedup text`. Samples without text are kept.
    """
    if max_repeats < 1:
        raise ValueError(f"repeated_captions: max_repeats is {max_repeats}, give at least 1")

    def test(table: pa.Table) -> pa.Array:
        captions: Counter[str] = Counter()
        templates: Counter[str] = Counter()
        found: list[tuple[str, str | None] | None] = []
        for texts in texts_of(table):
            caption = normalised_text(" ".join(texts))
            template = _NUMBER.sub("0", caption)
            captions[caption] += 1
            templates[template] += 1
            reason = None
            if caption and captions[caption] > max_repeats:
                reason = ("caption_repeated", f"number {captions[caption]} of {caption[:120]!r}")
            elif template and templates[template] > max_repeats:
                reason = (
                    "caption_templated",
                    f"number {templates[template]} of {template[:120]!r}",
                )
            found.append(reason)
        return verdicts(found)

    return Filter("repeated_captions", test, REASONS, max_drop)
