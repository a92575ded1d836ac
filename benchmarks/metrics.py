"""Speed of our metrics against the official scorers and plain loops, as JSON lines; rounds are interleaved.

Subjects:
    captions: Bleu, ROUGE-L and CIDEr of 4,000 tokenized captions with 5 references, against pycocoevalcap
    captions_as_text: the same from text, with our tokenizer and with Stanford's
    visdial: all measures of 2,064 dialogs of 10 rounds with 100 candidates, against a loop over questions
    visdial_ranks: only the ranks
    wups: NExT-OE validation, against a transcription of its definition

Each round runs in a fresh process, so that nothing is cached between rounds. Imports and reading files are not counted.
"""

import csv
import importlib
import json
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from benchmarks.clients import cpu_s
from benchmarks.plain_metrics import plain_ranks, plain_visdial, plain_wups
from emu.eval.metrics.answers import stem
from emu.eval.metrics.captions import already_tokens, score_captions, tokenize_captions
from emu.eval.metrics.lemmas import rule_lemmas
from emu.eval.metrics.metric import Bootstrap
from emu.eval.metrics.ptb import PtbTokenizer, StanfordTokenizer
from emu.eval.metrics.visdial import ndcg, target_ranks
from emu.eval.metrics.wordnet import WordNet
from emu.eval.metrics.wups import OpenReference, Wups

Subject = Literal["captions", "captions_as_text", "visdial", "visdial_ranks", "wups"]
Captions = tuple[dict[int, str], dict[int, list[str]]]
_NUM_REFERENCES = 5


@dataclass(frozen=True)
class Comparison:
    """Compares the speed of the metrics with the official scorers; benchmarks/metrics.py describes the subjects."""

    subjects: tuple[Subject, ...] = (
        "captions",
        "captions_as_text",
        "visdial",
        "visdial_ranks",
        "wups",
    )
    """Subjects to measure."""
    data: Path = Path("../shared/golden/metrics")
    """Folder of the captions (abstract48S.json, abstract_candsB.json) and of the answers of NExT-OE."""
    wordnet: Path = Path("/usr/share/wordnet")
    """Folder of WordNet 3.0's database files, for wups."""
    num_rounds: int = 5
    """Rounds per subject; each runs all sides in turn, each in a process of its own, and medians are printed."""


@dataclass(frozen=True)
class Cost:
    """Time of one round, including CPU time of child processes, and a result on which all sides must agree."""

    wall_s: float
    cpu_s: float
    result: float


def caption_data(folder: Path) -> Captions:
    """4,000 captions with 5 references: every sixth of the 48 sentences of an image against the next five."""
    sentences: dict[str, list[str]] = {}
    for record in json.loads((folder / "abstract48S.json").read_text()):
        sentences.setdefault(record["image_id"], []).append(record["caption"])
    size = _NUM_REFERENCES + 1
    groups = [
        found[i : i + size] for found in sentences.values() for i in range(0, len(found), size)
    ]
    return {i: group[0] for i, group in enumerate(groups)}, {
        i: group[1:] for i, group in enumerate(groups)
    }


def token_data(folder: Path) -> Captions:
    """`caption_data` as Stanford's tokens."""
    found = tokenize_captions(*caption_data(folder), StanfordTokenizer.find())
    starts = found.starts.tolist()
    references = [found.references[starts[i] : starts[i + 1]] for i in range(len(found.keys))]
    return dict(enumerate(found.candidates)), {i: list(one) for i, one in enumerate(references)}


def our_captions(data: Captions, num_resamples: int = 0) -> float:
    """The sum of the six scores of tokens."""
    scores = score_captions(*data, already_tokens, Bootstrap(num_resamples))
    return sum(score.value for score in scores)


def our_captions_with_intervals(data: Captions) -> float:
    """The same with six intervals of 1,000 resamples."""
    return our_captions(data, 1000)


def our_captions_as_text(data: Captions) -> float:
    """The sum of the six scores of text, tokenized in Python."""
    scores = score_captions(*data, PtbTokenizer(), Bootstrap(0))
    return sum(score.value for score in scores)


def our_captions_with_java(data: Captions) -> float:
    """The sum of the six scores of text, tokenized by Stanford's program."""
    scores = score_captions(*data, StanfordTokenizer.find(), Bootstrap(0))
    return sum(score.value for score in scores)


def official_captions(data: Captions) -> float:
    """The sum of the six scores of tokens by pycocoevalcap."""
    bleu, rouge, cider = (
        importlib.import_module(f"pycocoevalcap.{name}.{name}")
        for name in ("bleu", "rouge", "cider")
    )
    right, given = data[1], {key: [text] for key, text in data[0].items()}
    return (
        sum(bleu.Bleu(4).compute_score(right, given, verbose=0)[0])
        + float(rouge.Rouge().compute_score(right, given)[0])
        + float(cider.Cider().compute_score(right, given)[0])
    )


def official_captions_as_text(data: Captions) -> float:
    """The sum of the six scores of text by pycocoevalcap."""
    wrapper = importlib.import_module("pycocoevalcap.tokenizer.ptbtokenizer")
    tokenizer = wrapper.PTBTokenizer()
    right = tokenizer.tokenize(
        {key: [{"caption": text} for text in texts] for key, texts in data[1].items()}
    )
    given = tokenizer.tokenize({key: [{"caption": text}] for key, text in data[0].items()})
    return official_captions(({key: texts[0] for key, texts in given.items()}, right))


def visdial_data() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores [20640, 100], the correct candidates, and the relevance [2064, 100] of each dialog's first round."""
    generator = np.random.default_rng(0)
    relevance = np.where(
        generator.random((2064, 100)) < 0.1, generator.integers(1, 6, (2064, 100)) / 5, 0
    )
    relevance[:, 0] = 1
    return generator.normal(size=(20640, 100)), generator.integers(0, 100, 20640), relevance


def our_visdial(data: tuple[np.ndarray, np.ndarray, np.ndarray]) -> float:
    """The sum of the six measures."""
    scores, targets, relevance = data
    found = target_ranks(scores, targets)
    recalls = sum(float((found <= k).mean()) for k in (1, 5, 10))
    return (
        recalls
        + float(found.mean())
        + float((1 / found).mean())
        + float(ndcg(scores[::10], relevance).mean())
    )


def our_ranks(data: tuple[np.ndarray, np.ndarray, np.ndarray]) -> float:
    """The mean rank."""
    return float(target_ranks(data[0], data[1]).mean())


def wups_data(
    options: Comparison,
) -> tuple[WordNet, dict[str, str], dict[str, OpenReference], frozenset[str]]:
    """WordNet, predictions, references and stop words of NExT-OE."""
    rows = list(csv.DictReader((options.data / "nextoe_val.csv").open()))
    answers = json.loads((options.data / "nextoe_val_predictions.json").read_text())
    references = {
        f"{row['video']}_{row['qid']}": OpenReference([row["answer"]], row["type"]) for row in rows
    }
    predictions = {
        f"{video}_{key}": text for video, found in answers.items() for key, text in found.items()
    }
    stop_words = frozenset((options.data / "nextoe_stopwords.txt").read_text().splitlines())
    return WordNet.load(options.wordnet), predictions, references, stop_words


def our_wups(
    data: tuple[WordNet, dict[str, str], dict[str, OpenReference], frozenset[str]],
) -> float:
    """WUPS in percent."""
    wordnet, predictions, references, stop_words = data
    return Wups(wordnet, rule_lemmas(wordnet), stop_words, bootstrap=Bootstrap(0))(
        predictions, references
    ).value


def sides(subject: Subject) -> dict[str, Callable[[Any], float]]:
    """The functions that a subject compares; the reference is last."""
    return {
        "captions": {
            "ours": our_captions,
            "ours with intervals": our_captions_with_intervals,
            "pycocoevalcap": official_captions,
        },
        "captions_as_text": {
            "ours": our_captions_as_text,
            "ours with Stanford's program": our_captions_with_java,
            "pycocoevalcap": official_captions_as_text,
        },
        "visdial": {"ours": our_visdial, "loop": plain_visdial},
        "visdial_ranks": {"ours": our_ranks, "loop": plain_ranks},
        "wups": {"ours": our_wups, "transcription": plain_wups},
    }[subject]


def measure(subject: Subject, side: str, options: Comparison) -> Cost:
    """One round in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure, (subject, side, options))


def _measure(subject: Subject, side: str, options: Comparison) -> Cost:
    data = {
        "captions": lambda: token_data(options.data),
        "captions_as_text": lambda: caption_data(options.data),
        "visdial": visdial_data,
        "visdial_ranks": visdial_data,
        "wups": lambda: wups_data(options),
    }[subject]()
    work = sides(subject)[side]
    if side == "pycocoevalcap":
        sides(subject)[side](({0: "a"}, {0: ["a"]}))  # imports its modules
    if subject == "wups":
        stem("word")  # imports NLTK
    start, start_cpu = time.perf_counter(), cpu_s()
    result = work(data)
    return Cost(time.perf_counter() - start, cpu_s() - start_cpu, result)


def compare(subject: Subject, options: Comparison) -> None:
    """Prints a JSON line per side: medians, their ratio to the reference, and the range of ratios over rounds."""
    costs: dict[str, list[Cost]] = {side: [] for side in sides(subject)}
    for _ in range(options.num_rounds):
        for side, found in costs.items():
            found.append(measure(subject, side, options))
    reference = next(reversed(costs))
    agreed = costs[reference][0].result
    for side, found in costs.items():
        assert all(abs(cost.result - agreed) < 1e-6 for cost in found), (side, found, agreed)
        ratios = [
            theirs.wall_s / ours.wall_s
            for ours, theirs in zip(found, costs[reference], strict=True)
        ]
        line = {
            "subject": subject,
            "side": side,
            "wall_s": round(statistics.median(cost.wall_s for cost in found), 4),
            "cpu_s": round(statistics.median(cost.cpu_s for cost in found), 4),
            "times_faster": round(statistics.median(ratios), 2),
            "times_faster_range": [round(min(ratios), 2), round(max(ratios), 2)],
            "times_less_cpu": round(
                statistics.median(cost.cpu_s for cost in costs[reference])
                / statistics.median(cost.cpu_s for cost in found),
                2,
            ),
            "result": agreed,
        }
        print(json.dumps(line), flush=True)


def main() -> None:
    """Prints the versions and options, then a line per subject and side."""
    options = tyro.cli(Comparison)
    machine = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "numpy": version("numpy"),
    }
    try:
        machine["pycocoevalcap"] = version("pycocoevalcap")
    except PackageNotFoundError:
        machine["pycocoevalcap"] = "not installed"
    print(
        json.dumps({**machine, **{key: str(value) for key, value in asdict(options).items()}}),
        flush=True,
    )
    for subject in options.subjects:
        compare(subject, options)


if __name__ == "__main__":
    main()
