"""Bleu, ROUGE-L and CIDEr of captions, equal to the official scorers (pycocoevalcap) on the same tokens.

There is one prediction per image and one or more references. The tokens decide the scores. They are those of
Stanford's tokenizer: from `PtbTokenizer` by default, from Stanford's program with `StanfordTokenizer.find()`, or given,
joined by spaces, with `already_tokens`.

The arithmetic (in `ngrams`) follows the official scorers in every corner case: an empty caption scores 0 in Bleu and
CIDEr, ROUGE-L splits at single spaces while the others split at any white space, and CIDEr compares numbers of word
pairs as lengths.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from emu.eval.metrics.files import (
    ScoreFiles,
    predicted_values,
    read_records,
    record_id,
    value_of,
)
from emu.eval.metrics.metric import (
    Bootstrap,
    Combine,
    Key,
    Metric,
    Score,
    aligned_keys,
    mean_score,
    require,
    shown,
)
from emu.eval.metrics.ngrams import (
    MAX_ORDER,
    Floats,
    TokenizedCaptions,
    bleu,
    cider,
    rouge_l,
)
from emu.eval.metrics.ptb import PtbTokenizer, StanfordTokenizer
from schemas.validation import Checked

_log = logging.getLogger(__name__)

# From captions to their tokens, joined by spaces.
Tokenize = Callable[[Sequence[str]], Sequence[str]]
_LINE_END = re.compile(r"[\n\r\v\f\u2028\u2029]")


@dataclass(frozen=True)
class CaptionFiles(ScoreFiles):
    """Captions: COCO results and annotations, or the same fields as JSON lines or CSV."""

    pre_tokenized: bool = False
    """The captions of both files are tokens joined by single spaces."""
    tokenizer: Literal["python", "java"] = "python"
    """python: compute the tokens of Stanford's tokenizer without Java.
    java: run Stanford's program; needs Java and emu-platform[captions]."""

    predictions_example: ClassVar[str] = (
        '[{"image_id": 1, "caption": "A dog runs."}, {"image_id": 2, "caption": "a cat"}]'
    )
    references_example: ClassVar[str] = (
        '{"annotations": [{"image_id": 1, "caption": "a dog is running"}, {"image_id": 1, "caption": "the dog runs"}, '
        '{"image_id": 2, "caption": "A cat."}]}'
    )

    def scores(self, metric: str) -> list[Score]:
        """Six scores for "captions", one for the other names."""
        predictions = predicted_values(self.predictions, "caption")
        references = caption_references(self.references)
        # check ids and types first, so that a fault of the files shows without Java
        tokenize_captions(predictions, references, list)
        tokenize = already_tokens if self.pre_tokenized else self._tokenizer()
        if metric == "captions":
            return score_captions(predictions, references, tokenize, self.bootstrap)
        metrics: Mapping[str, Metric[str, Sequence[str]]] = {
            "bleu": Bleu(tokenize, 4, self.bootstrap),
            "rouge_l": RougeL(tokenize, self.bootstrap),
            "cider": Cider(tokenize, "CIDEr", self.bootstrap),
            "cider_d": Cider(tokenize, "CIDEr-D", self.bootstrap),
            "cider_unclipped": Cider(tokenize, "CIDEr-unclipped", self.bootstrap),
        }
        return [metrics[metric](predictions, references)]

    def _tokenizer(self) -> Tokenize:
        return PtbTokenizer() if self.tokenizer == "python" else StanfordTokenizer.find()


def caption_references(path: Path) -> dict[str, list[str]]:
    """The captions of each image, in the order of the file."""
    captions: dict[str, list[str]] = {}
    for record in read_records(path):
        captions.setdefault(record_id(record, path), []).append(value_of(record, path, "caption"))
    return captions


def already_tokens(captions: Sequence[str]) -> Sequence[str]:
    """The captions unchanged; raises ValueError for one that is not tokens joined by single spaces."""
    wrong = [
        text for text in captions if text and ("" in text.split(" ") or _LINE_END.search(text))
    ]
    if wrong:
        raise ValueError(
            f"{len(wrong)} captions are not tokens joined by single spaces on one line: {shown(wrong)}"
        )
    return captions


def tokenize_captions(
    predictions: Mapping[Key, str], references: Mapping[Key, Sequence[str]], tokenize: Tokenize
) -> TokenizedCaptions:
    """Predictions and references as tokens, in the order of the references; `tokenize` is called once for each side.

    Raises ValueError for ids that differ, captions that are not strings, and images without references.
    """
    keys = aligned_keys(predictions, references)
    require(predictions, str, "predictions")
    require(references, (list, tuple), "references")
    empty = [key for key in keys if not references[key]]
    if empty:
        raise ValueError(f"references: {len(empty)} images have none: {shown(empty)}")
    flat = [(key, caption) for key in keys for caption in references[key]]
    require({(key, index): caption for index, (key, caption) in enumerate(flat)}, str, "references")
    counts = np.asarray([len(references[key]) for key in keys], np.int64)
    return TokenizedCaptions(
        keys,
        _tokens_of_each(tokenize, [predictions[key] for key in keys]),
        _tokens_of_each(tokenize, [caption for _, caption in flat]),
        counts,
    )


def _tokens_of_each(tokenize: Tokenize, captions: Sequence[str]) -> Sequence[str]:
    found = tokenize(captions)
    if len(found) != len(captions):
        raise ValueError(f"{len(captions)} captions were tokenized into {len(found)}")
    return found


@dataclass(frozen=True)
class Bleu(Checked):
    """Corpus Bleu of one order with the length of the closest reference (Papineni et al., 2002)."""

    tokenize: Tokenize = field(default_factory=PtbTokenizer)
    order: Annotated[int, Field(ge=1, le=MAX_ORDER)] = 4
    bootstrap: Bootstrap = field(default_factory=Bootstrap)

    def __call__(
        self, predictions: Mapping[Key, str], references: Mapping[Key, Sequence[str]]
    ) -> Score:
        """The score; raises ValueError for ids or values that cannot be scored."""
        return self.score(tokenize_captions(predictions, references, self.tokenize))

    def score(self, captions: TokenizedCaptions) -> Score:
        """The score of tokenized captions."""
        statistics = captions.bleu_statistics
        samples = bleu(statistics)[:, self.order - 1]
        value = bleu(statistics.sum(0, keepdims=True))[0, self.order - 1]
        interval = self.bootstrap.interval(statistics, partial(_bleu_of, self.order))
        return Score(
            f"Bleu_{self.order}",
            float(value),
            dict(zip(captions.keys, samples.tolist(), strict=True)),
            interval,
        )


@dataclass(frozen=True)
class RougeL:
    """ROUGE-L of the official caption scorer: best precision and best recall over the references, beta 1.2."""

    tokenize: Tokenize = field(default_factory=PtbTokenizer)
    bootstrap: Bootstrap = field(default_factory=Bootstrap)

    def __call__(
        self, predictions: Mapping[Key, str], references: Mapping[Key, Sequence[str]]
    ) -> Score:
        """The score; raises ValueError for ids or values that cannot be scored."""
        return self.score(tokenize_captions(predictions, references, self.tokenize))

    def score(self, captions: TokenizedCaptions) -> Score:
        """The score of tokenized captions."""
        samples = dict(zip(captions.keys, rouge_l(captions), strict=True))
        return mean_score("ROUGE_L", samples, self.bootstrap)


@dataclass(frozen=True)
class Cider(Checked):
    """Consensus of captions by tf-idf weighted n-grams (Vedantam et al., 2015).

    Variants: "CIDEr" is what COCO's official scorer prints under that name. Its arithmetic, with clipped counts and
    compared lengths, is the paper's "CIDEr-D", which gives the same numbers here. "CIDEr-unclipped" is the plain
    cosine that the paper calls CIDEr. Document frequencies come from the references, so scores of different sets of
    images are not comparable, and a single image scores 0.
    """

    tokenize: Tokenize = field(default_factory=PtbTokenizer)
    variant: Literal["CIDEr", "CIDEr-D", "CIDEr-unclipped"] = "CIDEr"
    bootstrap: Bootstrap = field(default_factory=Bootstrap)

    def __call__(
        self, predictions: Mapping[Key, str], references: Mapping[Key, Sequence[str]]
    ) -> Score:
        """The score; raises ValueError for ids or values that cannot be scored."""
        return self.score(tokenize_captions(predictions, references, self.tokenize))

    def score(self, captions: TokenizedCaptions) -> Score:
        """The score of tokenized captions; warns where it says nothing."""
        if len(captions.keys) == 1:
            _log.warning(
                "%s over 1 image is 0 by definition: n-grams of every image have no weight; give at least 2 images",
                self.variant,
            )
        samples = cider(captions, clipped=self.variant != "CIDEr-unclipped")
        return mean_score(
            self.variant, dict(zip(captions.keys, samples.tolist(), strict=True)), self.bootstrap
        )


def score_captions(
    predictions: Mapping[Key, str],
    references: Mapping[Key, Sequence[str]],
    tokenize: Tokenize | None = None,
    bootstrap: Bootstrap = Bootstrap(),  # noqa: B008  (frozen)
) -> list[Score]:
    """Bleu_1 to Bleu_4, ROUGE_L and CIDEr of captions that are tokenized once, by default with `PtbTokenizer`."""
    tokenize = tokenize or PtbTokenizer()
    captions = tokenize_captions(predictions, references, tokenize)
    no_interval = Bootstrap(0)
    scores = [
        Bleu(tokenize, order, no_interval).score(captions) for order in range(1, MAX_ORDER + 1)
    ]
    scores += [
        RougeL(tokenize, no_interval).score(captions),
        Cider(tokenize, bootstrap=no_interval).score(captions),
    ]
    # one set of resamples for all: the columns of Bleu's statistics, then ROUGE-L, then CIDEr
    means = [np.fromiter(score.samples.values(), np.float64) for score in scores[MAX_ORDER:]]
    statistics = np.column_stack([captions.bleu_statistics, *means])
    combines: list[Combine] = [partial(_bleu_of, order) for order in range(1, MAX_ORDER + 1)]
    combines += [partial(_mean_of, column, len(captions.keys)) for column in (-2, -1)]
    intervals = bootstrap.intervals(statistics, combines)
    return [
        replace(score, interval=interval) for score, interval in zip(scores, intervals, strict=True)
    ]


def _bleu_of(order: int, sums: Floats) -> Floats:
    return bleu(sums[:, : 2 + 2 * MAX_ORDER])[:, order - 1]


def _mean_of(column: int, num_samples: int, sums: Floats) -> Floats:
    return sums[:, column] / num_samples
