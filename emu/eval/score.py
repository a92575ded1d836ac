"""Scores any model's outputs: `python -m emu.eval.score METRIC --predictions FILE --references FILE`.

Prints a table and writes JSON with the score of every sample. Files are COCO results, VQA results, CSV, JSON or
JSON lines (`.npy` features for frechet and kid); docs/metrics.md shows each form.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from emu.eval import files
from emu.eval.metrics.captions import (
    Bleu,
    Cider,
    RougeL,
    already_tokens,
    score_captions,
    tokenize_captions,
)
from emu.eval.metrics.frechet import FeatureStatistics, frechet_distance, kernel_distance
from emu.eval.metrics.metric import Bootstrap, Metric, Score
from emu.eval.metrics.ptb import PtbTokenizer
from emu.eval.metrics.stanford import StanfordTokenizer
from emu.eval.metrics.video_qa import NextQaChoice, WordAccuracy
from emu.eval.metrics.visdial import visdial_scores
from emu.eval.metrics.vqa import VqaAccuracy
from emu.eval.metrics.wordnet import RootRule, find_wordnet, load_wordnet
from emu.eval.metrics.wups import Wups, nltk_folders, nltk_lemmas, rule_lemmas

MetricName = Literal[
    "captions", "bleu", "rouge_l", "cider", "cider_d", "cider_unclipped", "vqa", "vqa_always_normalised",
    "vqa_released", "okvqa", "textvqa", "visdial", "nextqa", "nextoe", "msvdqa", "msrvttqa", "frechet", "kid",
]  # fmt: skip


@dataclass(frozen=True)
class ScoreFiles:
    """Scores any model's outputs against references, with the numbers of the official scorers.

    A first try:
        python -m emu.eval.score captions --predictions results.json --references captions_val2014.json

    Prints a table and writes JSON with the score of every sample. docs/metrics.md shows the form of the files of
    each metric.

    Attributes:
        metric: What to compute.
        predictions: One caption, answer or list of scores an id, as COCO or VQA results, CSV, JSON or JSON lines; for
            frechet and kid features as .npy.
        references: What is right, in a file of the same forms.
        output: Where the scores of samples go, as JSON. None: beside the predictions, as NAME.scores.json.
        num_resamples: Resamples of the 95% interval, by bootstrap; 0 leaves it out.
        seed: Of the resamples.
        pre_tokenised: Captions of both files are tokens joined by single spaces (metrics of captions).
        tokeniser: "python" makes the tokens of Stanford's tokeniser without Java, "java" runs that program, which needs
            Java and the extra `captions` (metrics of captions).
        wordnet: Folder or .zip file of WordNet 3.0's database files. None: where Debian's package or NLTK's downloader
            put them (nextoe).
        stop_words: File with the words that are left out, one a line: stopwords.txt of the benchmark's authors (nextoe,
            which needs it).
        tagger: "nltk" gives the official lemmas and needs NLTK with its tagger's data; "rules" needs neither and gives
            about the same (nextoe).
        root_rule: Whose Wu-Palmer similarity (nextoe).
        subset_size: Samples of a subset (kid).
    """

    metric: Annotated[MetricName, tyro.conf.Positional]
    predictions: Path
    references: Path
    output: Path | None = None
    num_resamples: int = 1000
    seed: int = 0
    pre_tokenised: bool = False
    tokeniser: Literal["python", "java"] = "python"
    wordnet: Path | None = None
    stop_words: Path | None = None
    tagger: Literal["nltk", "rules"] = "nltk"
    root_rule: RootRule = "nltk-3.3"
    subset_size: int = 1000

    @property
    def bootstrap(self) -> Bootstrap:
        """How intervals are found."""
        return Bootstrap(self.num_resamples, seed=self.seed)


def compute(options: ScoreFiles) -> list[Score]:
    """The scores; raises ValueError, FileNotFoundError or ModuleNotFoundError with what is wrong with the inputs."""
    return _SCORERS[options.metric](options)


def report(scores: Sequence[Score]) -> str:
    """The scores as a table."""
    rows = [("metric", "score", "95% interval", "samples")]
    for score in scores:
        ends = score.interval
        interval = "" if ends is None else f"{ends.low:.6g} .. {ends.high:.6g}"
        rows.append((score.name, f"{score.value:.6f}", interval, str(len(score.samples) or "")))
        rows.extend((f"  {group}", f"{value:.6f}", "", "") for group, value in score.groups.items())
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def as_json(options: ScoreFiles, scores: Sequence[Score]) -> str:
    """The scores with those of samples, as JSON."""
    found: dict[str, Any] = {
        "metric": options.metric,
        "predictions": str(options.predictions),
        "references": str(options.references),
        "scores": [
            {
                "name": score.name,
                "value": score.value,
                "interval": None if score.interval is None else vars(score.interval),
                "groups": dict(score.groups),
                "samples": {str(key): value for key, value in score.samples.items()},
            }
            for score in scores
        ],
    }
    return json.dumps(found, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; exits with a message where the inputs cannot be scored."""
    options = tyro.cli(ScoreFiles, args=arguments, prog="python -m emu.eval.score")
    try:
        output = _output(options)
        scores = compute(options)
        output.write_text(as_json(options, scores), encoding="utf-8")
    except (ValueError, OSError, ModuleNotFoundError) as error:
        raise SystemExit(f"error: {error}") from error
    sys.stdout.write(report(scores) + f"scores of samples: {output}\n")


def _output(options: ScoreFiles) -> Path:
    """Where the scores of samples go; raises an error, before anything is computed, where they cannot go there."""
    inputs = [options.predictions, options.references]
    inputs += [options.stop_words] if options.stop_words else []
    for path in inputs:
        if not path.exists():
            raise FileNotFoundError(f"no file {path}; is the path right?")
    output = options.output or options.predictions.with_suffix(".scores.json")
    if output.exists() and any(output.samefile(path) for path in inputs):
        raise ValueError(
            f"the scores would replace the input {output}; --output names another file"
        )
    if output.is_dir() or not output.parent.is_dir():
        raise ValueError(
            f"cannot write {output}: its folder must exist, and it must not be a folder"
        )
    return output


def _captions(options: ScoreFiles) -> list[Score]:
    predictions = files.predicted_values(options.predictions, "caption")
    references = files.caption_references(options.references)
    # ids and kinds of values first: a fault in the files shows without Java
    tokenize_captions(predictions, references, list)
    tokenize = already_tokens if options.pre_tokenised else _tokeniser(options)
    if options.metric == "captions":
        return score_captions(predictions, references, tokenize, options.bootstrap)
    metrics: Mapping[str, Metric[str, Sequence[str]]] = {
        "bleu": Bleu(tokenize, 4, options.bootstrap),
        "rouge_l": RougeL(tokenize, options.bootstrap),
        "cider": Cider(tokenize, "CIDEr", options.bootstrap),
        "cider_d": Cider(tokenize, "CIDEr-D", options.bootstrap),
        "cider_unclipped": Cider(tokenize, "CIDEr-unclipped", options.bootstrap),
    }
    return [metrics[options.metric](predictions, references)]


def _tokeniser(options: ScoreFiles) -> PtbTokenizer | StanfordTokenizer:
    return PtbTokenizer() if options.tokeniser == "python" else StanfordTokenizer.find()


def _vqa(options: ScoreFiles) -> list[Score]:
    metrics = {
        "vqa": VqaAccuracy("official", bootstrap=options.bootstrap),
        "vqa_always_normalised": VqaAccuracy("always_normalised", bootstrap=options.bootstrap),
        "vqa_released": VqaAccuracy("released", bootstrap=options.bootstrap),
        "okvqa": VqaAccuracy("released", stemmed=True, bootstrap=options.bootstrap),
        "textvqa": VqaAccuracy("textvqa", bootstrap=options.bootstrap),
    }
    predictions = files.predicted_values(options.predictions, "answer")
    return [metrics[options.metric](predictions, files.vqa_references(options.references))]


def _visdial(options: ScoreFiles) -> list[Score]:
    predictions = files.visdial_predictions(options.predictions)
    return visdial_scores(
        predictions, files.visdial_references(options.references), bootstrap=options.bootstrap
    )


def _nextqa(options: ScoreFiles) -> list[Score]:
    predictions = files.choice_predictions(options.predictions)
    return [
        NextQaChoice(options.bootstrap)(predictions, files.choice_references(options.references))
    ]


def _nextoe(options: ScoreFiles) -> list[Score]:
    if options.stop_words is None:
        raise ValueError(
            "nextoe needs --stop-words FILE: published scores leave out the words of its authors' stopwords.txt; an "
            "empty file keeps every word"
        )
    wordnet = load_wordnet(options.wordnet or find_wordnet(nltk_folders()))
    lemmatize = nltk_lemmas(wordnet) if options.tagger == "nltk" else rule_lemmas(wordnet)
    words = options.stop_words.read_text(encoding="utf-8").split()
    metric = Wups(
        wordnet, lemmatize, frozenset(words), rule=options.root_rule, bootstrap=options.bootstrap
    )
    predictions = files.predicted_values(options.predictions, "prediction", "answer")
    return [metric(predictions, files.open_references(options.references))]


def _words(options: ScoreFiles) -> list[Score]:
    # in this order: a file of predictions may repeat the right answer beside each
    predictions = files.predicted_values(options.predictions, "prediction", "answer")
    return [
        WordAccuracy(bootstrap=options.bootstrap)(
            predictions, files.word_references(options.references)
        )
    ]


def _frechet(options: ScoreFiles) -> list[Score]:
    sides = [
        FeatureStatistics.of(_features(path)) for path in (options.predictions, options.references)
    ]
    return [Score("Frechet distance", frechet_distance(*sides))]


def _kid(options: ScoreFiles) -> list[Score]:
    sides = [_features(path) for path in (options.predictions, options.references)]
    found = kernel_distance(sides[0], sides[1], subset_size=options.subset_size, seed=options.seed)
    return [Score("KID", found.mean, groups={"deviation of subsets": found.deviation})]


def _features(path: Path) -> np.ndarray[Any, Any]:
    if path.suffix != ".npy":
        raise ValueError(
            f"{path} ends in {path.suffix!r}; features are a .npy file [samples, width]"
        )
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} holds no array of numbers: {error}") from error


_SCORERS: dict[str, Callable[[ScoreFiles], list[Score]]] = {
    **dict.fromkeys(
        ("captions", "bleu", "rouge_l", "cider", "cider_d", "cider_unclipped"), _captions
    ),
    **dict.fromkeys(("vqa", "vqa_always_normalised", "vqa_released", "okvqa", "textvqa"), _vqa),
    "visdial": _visdial,
    "nextqa": _nextqa,
    "nextoe": _nextoe,
    "msvdqa": _words,
    "msrvttqa": _words,
    "frechet": _frechet,
    "kid": _kid,
}


if __name__ == "__main__":
    main()
