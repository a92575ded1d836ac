"""Filter: captions that say more of the file than of the image: resolution, camera, stock phrases, file names."""

import re
from collections.abc import Sequence

import pyarrow as pa

from pipelines.columns import normalised_text, texts_of, verdicts
from pipelines.core.pipeline import Filter, Reason
from pipelines.filters.files import InputFile, lines_of, resolved

REASONS = {
    "metadata_words": Reason(
        "Too much of the text is metadata: resolution, camera, stock phrases, file names."
    )
}
PATTERNS = (
    r"\b(?:4|8)k\b|\b(?:full |ultra )?u?hd\b|\b\d{3,4}[pi]\b|\b\d{3,5} ?[x×] ?\d{3,5}\b"
    r"|\b\d+ ?(?:mp|megapixels?|dpi|fps)\b",
    r"\b(?:canon|nikon|sony|fujifilm|olympus|leica)\b|\biso ?\d{2,5}\b|\bf/\d+(?:\.\d+)?"
    r"|\b\d+(?:\.\d+)? ?mm\b|\b1/\d+ ?s(?:ec)?\b",
    r"\b(?:royalty[- ]free|stock (?:footage|video|photos?|images?|illustrations?|vectors?|clips?)"
    r"|shutterstock|istock(?:photo)?"
    r"|getty ?images?|alamy|adobe stock|dreamstime|depositphotos|123rf|clip ?art|free download|all rights reserved)\b",
    r"\b(?:img|dsc[nf]?|pict|p\d{3}|mvi|gopr|screen ?shot)[ _-]?\d{3,}\b"
    r"|\b[\w-]+\.(?:jpe?g|png|gif|webp|tiff?|bmp|mp4)\b",
)
"""Resolution; camera and exposure; stock phrases; names of files."""
_WORD = re.compile(r"[^\W_]+(?:[./×_-][^\W_]+)*")


def metadata_words(
    max_share: float = 0.3, words: tuple[str, ...] = (), file: InputFile = "", max_drop: float = 0.9
) -> Filter:
    """Samples in which at most the fraction `max_share` (0 to 1) of the words is metadata.

    `words` and the lines of `file` are additional words or phrases that count as metadata. With `max_share=0`,
    every text that contains one is dropped.
    """
    if not 0 <= max_share <= 1:
        raise ValueError(f"metadata_words: max_share is {max_share}, give a share from 0 to 1")
    listed = [line for _, line in lines_of(resolved("metadata_words", file))] if file else []
    pattern = _pattern([*words, *listed])

    def test(table: pa.Table) -> pa.Array:
        return verdicts(
            [_verdict(" ".join(texts), pattern, max_share) for texts in texts_of(table)]
        )

    return Filter("metadata_words", test, REASONS, max_drop)


def _pattern(phrases: Sequence[str]) -> re.Pattern[str]:
    own = [rf"(?<!\w){re.escape(normalised_text(phrase))}(?!\w)" for phrase in phrases]
    return re.compile("|".join([*own, *PATTERNS]))


def _verdict(
    text: str, pattern: re.Pattern[str], max_share: float
) -> tuple[str, str | None] | None:
    normalised = normalised_text(text)
    found = pattern.findall(normalised)
    if not found:
        return None
    total, num_left = (len(_WORD.findall(t)) for t in (normalised, pattern.sub(" ", normalised)))
    num_found = max(1, total - num_left)
    if num_found <= max_share * total:
        return None
    return (
        "metadata_words",
        f"{num_found} of {total} words: {', '.join(dict.fromkeys(found))[:200]}",
    )
