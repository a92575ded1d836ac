"""The metrics of `python -m emu.eval.score` by name.

A metric is a subclass of `emu.eval.metrics.files.ScoreFiles` in a module of this package and a line in `METRICS`. The
contract test (`tests/metrics/test_registry.py`) runs over the registry. Modules are imported on use.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from emu.eval.metrics.files import ScoreFiles


@dataclass(frozen=True)
class MetricEntry:
    """Where the options and the code of a metric are, `module:class`, and a line for the command's help."""

    target: str
    summary: str


METRICS: Mapping[str, MetricEntry] = MappingProxyType(
    {
        "captions": MetricEntry("captions:CaptionFiles", "Bleu 1 to 4, ROUGE-L and CIDEr"),
        "bleu": MetricEntry("captions:CaptionFiles", "Corpus Bleu 4"),
        "rouge_l": MetricEntry("captions:CaptionFiles", "ROUGE-L"),
        "cider": MetricEntry("captions:CaptionFiles", "CIDEr as COCO's scorer prints it"),
        "cider_d": MetricEntry("captions:CaptionFiles", "CIDEr-D, the same number"),
        "cider_unclipped": MetricEntry("captions:CaptionFiles", "Plain CIDEr of the paper"),
        "vqa": MetricEntry("vqa:VqaFiles", "Accuracy of VQAv2 and VizWiz"),
        "vqa_always_normalized": MetricEntry(
            "vqa:VqaFiles", "The same, answers normalized even where annotators agree"
        ),
        "vqa_released": MetricEntry("vqa:VqaFiles", "VQAv2 by the evaluation released with Emu"),
        "okvqa": MetricEntry("vqa:VqaFiles", "OKVQA by the evaluation released with Emu"),
        "textvqa": MetricEntry("vqa:VqaFiles", "Accuracy of M4C's evaluator"),
        "visdial": MetricEntry("visdial:VisdialFiles", "NDCG, MRR, recall and mean rank"),
        "nextqa": MetricEntry("video_qa:ChoiceFiles", "Multiple-choice accuracy of NExT-QA"),
        "nextoe": MetricEntry("wups:WupsFiles", "WUPS of open-ended answers (NExT-OE)"),
        "msvdqa": MetricEntry("video_qa:WordFiles", "Accuracy of one-word answers"),
        "msrvttqa": MetricEntry("video_qa:WordFiles", "Accuracy of one-word answers"),
        "frechet": MetricEntry("frechet:FrechetFiles", "Fréchet distance of features (FID)"),
        "kid": MetricEntry("frechet:KidFiles", "Kernel distance of features (KID)"),
    }
)


def load_metric(name: str) -> type[ScoreFiles]:
    """The class of a metric's options, imported now; raises ValueError for an unknown name."""
    if name not in METRICS:
        raise ValueError(f"there is no metric {name!r}; choose from {', '.join(METRICS)}")
    module, _, kind = METRICS[name].target.partition(":")
    return getattr(importlib.import_module(f"{__name__}.{module}"), kind)
