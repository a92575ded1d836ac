"""The synthetic world as image-text pairs: a dataset that needs no download.

Each pair is a scene of one thing on a plain background. Its text is the caption, or the caption and questions with
their answers in random order. A pair follows from the seed and its index alone, so a dataset of any size has the same
first pairs. Held-out scenes come from another stream of random numbers: no seed of training gives them.

The pipeline is the one of every corpus (ledger, index, manifest, resume); its source counts instead of reading.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from pipelines.core.pipeline import RECORD_FIELDS, Pipeline, Reasons, ShardPlan, Stage
from pipelines.miniworld import language
from pipelines.miniworld.config import PairsConfig
from pipelines.miniworld.render import render
from pipelines.miniworld.scene import Scene, sample_scene
from pipelines.publish.card import Card
from pipelines.publish.report import Report
from pipelines.publish.shards import ShardSink
from schemas.sample import SEGMENT_TYPE, Segment, canonical_json
from schemas.shard import shard_name

CORPUS = "miniworld"
REPORT = Report(title="Synthetic image-text pairs", score_titles={})
CARD = Card(
    title=REPORT.title,
    about="Pairs: a rendered scene of one coloured shape on a plain background, and a sentence that says so.",
    licence="Made by a program; no rights are claimed.",
    record_word="pair",
    tasks=("image-to-text", "text-to-image"),
)
QUALITY = 95  # of the JPEG files: at 64 pixels lower ones blur the edges of small shapes
NUM_ASKED = 3  # questions in a text that has the caption too; one more without it


class Split(IntEnum):
    """The stream of random numbers that a scene comes from."""

    TRAIN = 0
    HELD_OUT = 1


@dataclass(frozen=True)
class Pair:
    """A scene, its text, and all questions that have one right answer."""

    scene: Scene
    text: str
    questions: tuple[language.Question, ...]


def sample_pair(config: PairsConfig, index: int, split: Split = Split.TRAIN) -> Pair:
    """The pair at `index`; it does not depend on the number of pairs."""
    rng = np.random.default_rng([int(split), config.seed, index])
    scene = sample_scene(rng, max_things=1, aspects=(1.0,))
    questions = language.questions(scene, rng)
    return Pair(scene, _text(config, scene, questions, rng), questions)


def caption_sentence(scene: Scene) -> str:
    """The caption as a sentence: "A small red circle at the top on a mint background."."""
    text = language.caption(scene)
    return f"{text[0].upper()}{text[1:]}."


def pairs_pipeline(config: PairsConfig, samples_per_shard: int = 1000) -> Pipeline:
    """The pipeline that publishes the pairs of `config`."""
    return Pipeline(
        corpus=CORPUS,
        source=PairSource(config, samples_per_shard),
        stages=(Stage("render", (RenderPairs(config),)),),
        sink=ShardSink(),
        config=dataclasses.asdict(config) | {"samples_per_shard": samples_per_shard},
        finish=(REPORT, CARD),
    )


@dataclass(frozen=True)
class PairSource:
    """A `Source` whose records are the numbers of the pairs."""

    config: PairsConfig
    samples_per_shard: int
    reasons: Reasons = dataclasses.field(default_factory=dict)

    def plan(self, corpus: str) -> Sequence[ShardPlan]:
        """Shards of `samples_per_shard` pairs; the last may have fewer."""
        size, total = self.samples_per_shard, self.config.num_pairs
        return [
            ShardPlan(shard_name(corpus, number), min(size, total - start), ({"start": start},))
            for number, start in enumerate(range(0, total, size))
        ]

    def read(self, shard: ShardPlan) -> pa.Table:
        """One row for each pair: its key, and its 1-based number as the record."""
        start = shard.parts[0]["start"]
        rows = [
            {
                "key": f"{CORPUS}-{self.config.seed}-{index:08d}",
                "source": f"seed {self.config.seed}",
                "record": index + 1,
            }
            for index in range(start, start + shard.num_records)
        ]
        return pa.Table.from_pylist(rows, schema=pa.schema(RECORD_FIELDS))

    def fingerprint(self) -> str:
        """The pairs follow from the configuration, which the fingerprint covers on its own."""
        return f"pairs of seed {self.config.seed}"


RENDERED = pa.schema(
    [
        *RECORD_FIELDS,
        pa.field("corpus", pa.string()),
        pa.field("segments", pa.list_(SEGMENT_TYPE)),
        pa.field("meta", pa.string()),
    ]
)


@dataclass(frozen=True)
class RenderPairs:
    """Transform: each record becomes a sample of an image and its text, with the scene as `meta`."""

    config: PairsConfig

    def __call__(self, table: pa.Table) -> pa.Table:
        """The samples; all are kept."""
        rows = [self._row(row) for row in table.to_pylist()]
        return pa.Table.from_pylist(rows, schema=RENDERED.with_metadata(table.schema.metadata))

    def _row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        pair = sample_pair(self.config, row["record"] - 1)
        side = self.config.side_px
        image = Segment.of_image(jpeg(pair.scene, side), "jpg", side, side)
        segments = [image.as_row(), Segment.of_text(pair.text).as_row()]
        meta = {"scene": dataclasses.asdict(pair.scene)}
        return {
            **row,
            "links": [],
            "corpus": CORPUS,
            "segments": segments,
            "meta": canonical_json(meta),
        }


def jpeg(scene: Scene, side_px: int) -> bytes:
    """The scene as a JPEG file, `side_px` along its shorter side."""
    out = io.BytesIO()
    Image.fromarray(render(scene, side_px)).save(out, "JPEG", quality=QUALITY, subsampling=0)
    return out.getvalue()


def _text(
    config: PairsConfig,
    scene: Scene,
    questions: Sequence[language.Question],
    rng: np.random.Generator,
) -> str:
    """The caption, or questions with their answers, half of them after the caption."""
    if rng.random() >= config.question_share:
        return caption_sentence(scene)
    has_caption = rng.random() < 0.5
    num_asked = NUM_ASKED if has_caption else NUM_ASKED + 1
    asked = rng.permutation(len(questions))[:num_asked]
    answered = [language.answered(questions[int(n)]) for n in asked]
    return " ".join([caption_sentence(scene)] * has_caption + answered)
