"""MMC4: interleaved documents, from their lines to samples.

Stages, each from shard to shard:

| stage | steps                                                                                       |
|-------|---------------------------------------------------------------------------------------------|
| parse | a line becomes a document; images that resemble no sentence are dropped, and documents  |
|       | without an image left to fetch                                                              |
| fetch | images are fetched and normalised; documents of which no image arrived are dropped          |
| clip  | only with a CLIP model: similarities of documents that bring none                           |
| match | images are assigned to sentences again, and the document becomes a sample                   |

An image resembles a sentence if their similarity is not below the threshold (0.32 in the paper's pretraining data).
The released `matched_text_index` comes from an assignment over all images of a document. Some of them do not arrive,
so the assignment is solved again over those that did: one image per sentence, largest sum of similarities. A blank
sentence keeps its position in the document, but no image is assigned to it.

The sample: every sentence as a text segment, in order and unchanged, so that sentence i is the i-th text segment; each
image directly before its sentence. Training samples "before or after" itself. Its `meta`:

| field              | meaning                                                                        |
|--------------------|--------------------------------------------------------------------------------|
| url                | the web page                                                                   |
| source, record     | name of the input file, without its folder, and line number in it              |
| image_slot         | for each image segment in order: its index in `image_info`                     |
| image_url          | for each image segment: where it was fetched from, or its path in the media folder |
| matched_text_index | for each image segment: the index of its sentence                              |
| similarity         | for each image segment: its CLIP similarity to that sentence, as released      |
| scores             | min_similarity and mean_similarity over those                                  |
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field
from scipy.optimize import linear_sum_assignment

from pipelines.core.pipeline import (
    RECORD_FIELDS,
    Construct,
    Filter,
    Pipeline,
    Reason,
    Reasons,
    Resources,
    Source,
    Stage,
)
from pipelines.corpora.build import Build
from pipelines.corpora.mmc4.document import (
    DOCUMENT_REASONS,
    Document,
    parse_document,
)
from pipelines.filters.min_images import min_images
from pipelines.images.clip import ClipWeights
from pipelines.images.normalise import ImageConfig, ImageContent
from pipelines.publish.card import Card
from pipelines.publish.report import Report
from pipelines.readers.jsonl import LineSource
from pipelines.transforms.samples import (
    arrived_images,
    assembled_table,
    image_segment,
    origin,
    parsed_table,
)
from schemas.sample import Link, Segment, canonical_json, link_from_row
from schemas.validation import Checked

CORPUS = "mmc4"
READER = LineSource
"""Reads the input files: one document per line."""
REPORT = Report(
    title="MMC4 dataset",
    score_titles={
        "mean_similarity": "Mean similarity of image and sentence",
        "min_similarity": "Lowest similarity in a document",
    },
)

CARD = Card(
    title=REPORT.title,
    about="Interleaved documents: the sentences of a web page in order, each image before the sentence it resembles.",
    sources=("https://github.com/allenai/mmc4", "https://arxiv.org/abs/2304.06939"),
    licence="The images belong to their owners; the documents of MMC4 are under ODC-BY.",
)


@dataclass(frozen=True)
class Rules(Checked):
    """What an MMC4 dataset is made by, apart from its inputs: part of its fingerprint."""

    min_similarity: Annotated[
        float,
        Field(
            ge=-1,
            le=1,
            description="similarities are cosines: the paper's threshold is 0.32, a value in percent drops everything",
        ),
    ] = 0.32
    max_images: Annotated[int, Field(ge=1, description="None for no limit")] | None = 256
    """Bounds the memory and time that one document can take."""
    image: ImageConfig = field(default_factory=ImageConfig)
    clip: ClipWeights | None = None
    """Computes the similarities of documents without a `similarity_matrix`, which are dropped otherwise."""

    @property
    def config(self) -> dict[str, Any]:
        """For the fingerprint."""
        found = asdict(self)
        return found if self.clip else {n: v for n, v in found.items() if n != "clip"}


def pipeline(build: Build[Source], rules: Rules) -> Pipeline:
    """The pipeline from lines of documents to published shards.

    Media lie under their `image_name`; images without one are fetched.
    """
    stages = (
        Stage("parse", (ParseDocuments(rules, build.media is not None), links_to_fetch())),
        build.fetch_stage(ImageContent(rules.image), arrived_images()),
        *clip_stages(rules),
        Stage(
            "match", (MatchDocuments(rules), min_images(1, "no_image_left", NO_IMAGE_LEFT.meaning))
        ),
    )
    return build.pipeline(CORPUS, stages, rules.config, REPORT, CARD)


def clip_stages(rules: Rules) -> tuple[Stage, ...]:
    """The stage that computes similarities, where the rules name a CLIP."""
    if rules.clip is None:
        return ()
    from pipelines.corpora.mmc4.similarity import FillSimilarity  # brings open_clip

    step = Construct(FillSimilarity, (rules.clip.checked("clip"),))
    return (Stage("clip", (step,), Resources(num_gpus=rules.clip.gpus)),)


NO_IMAGE_LEFT = Reason("Images were fetched, but none fits a sentence.")


@dataclass(frozen=True)
class Outcome:
    """The result for one image: its sentence and the similarity to it, or why it is left out."""

    reason: str | None = None
    detail: str | None = None
    text_index: int = -1
    similarity: float = float("nan")


def choose_images(
    similarity: Sequence[Sequence[float]], texts: Sequence[str], rules: Rules
) -> list[Outcome]:
    """For each image whether to fetch it, from its best similarity to a sentence that is not blank.

    Above `max_images` the most similar stay; of equals the earlier ones.
    """
    readable = _readable(texts)
    best = [max(row[j] for j in readable) for row in similarity]
    outcomes = [_enough(value, rules, "low_similarity") for value in best]
    wanted = [i for i, outcome in enumerate(outcomes) if outcome.reason is None]
    if rules.max_images is not None:
        ranked = sorted(wanted, key=lambda i: (-best[i], i))
        for rank, i in enumerate(ranked[rules.max_images :], rules.max_images + 1):
            outcomes[i] = Outcome("over_max_images", f"number {rank} by similarity")
    return outcomes


def match_images(
    similarity: Sequence[Sequence[float]],
    texts: Sequence[str],
    arrived: Sequence[int],
    rules: Rules,
) -> dict[int, Outcome]:
    """For each image that arrived its sentence: one-to-one, with the largest sum of similarities.

    Args:
        similarity: N images x M sentences.
        texts: the M sentences.
        arrived: numbers of the images that arrived.
        rules: an image whose similarity to its sentence is below the threshold is left out.
    """
    readable = _readable(texts)
    outcomes = {i: Outcome("unassigned", f"{len(readable)} sentences") for i in arrived}
    if not arrived:
        return outcomes
    scores = np.array([similarity[i] for i in arrived], dtype=np.float64)[:, readable]
    for row, column in zip(*linear_sum_assignment(scores, maximize=True), strict=True):
        value = float(scores[row, column])
        found = _enough(value, rules, "low_similarity_assigned")
        is_kept = found.reason is None
        outcomes[arrived[row]] = (
            Outcome(text_index=readable[column], similarity=value) if is_kept else found
        )
    return outcomes


def _readable(texts: Sequence[str]) -> list[int]:
    return [j for j, text in enumerate(texts) if text.strip()]


def _enough(value: float, rules: Rules, reason: str) -> Outcome:
    if value >= rules.min_similarity:
        return Outcome()
    return Outcome(reason, f"{value:.4f} is below {rules.min_similarity:g}")


DOCUMENT_FIELDS = (
    pa.field("url", pa.string()),
    pa.field("texts", pa.list_(pa.large_string())),
    pa.field("similarity", pa.list_(pa.list_(pa.float64()))),
)
PARSED = pa.schema([*RECORD_FIELDS, *DOCUMENT_FIELDS])


@dataclass(frozen=True)
class ParseDocuments:
    """Transform: the column `line` becomes `url`, `texts`, `similarity` and `links`, one link per image."""

    rules: Rules
    has_media: bool = False
    """Whether images lie in a media folder under their `image_name`."""
    reasons: ClassVar[Reasons] = DOCUMENT_REASONS | {
        "low_similarity": Reason(
            "The similarity to every sentence is below the threshold; not fetched."
        ),
        "over_max_images": Reason(
            "The document has more images than allowed; the most similar were kept."
        ),
    }

    def __call__(self, table: pa.Table) -> pa.Table:
        """The documents; a line that holds no document carries the reason."""
        return parsed_table(table, PARSED, self._parse)

    def _parse(self, row: dict[str, Any]) -> dict[str, Any]:
        document = parse_document(row["line"], needs_similarity=self.rules.clip is None)
        return {
            "url": document.url,
            "texts": document.texts,
            "similarity": document.similarity,
            "links": [link.as_row() for link in self._links(document)],
        }

    def _links(self, document: Document) -> list[Link]:
        # Before they arrive, images without similarities are all as similar as can be.
        known = document.similarity or [[1.0] * len(document.texts)] * len(document.image_urls)
        outcomes = choose_images(known, document.texts, self.rules)
        links = [Link(slot, url) for slot, url in enumerate(self._addresses(document))]
        return [
            link.dropped(outcome.reason, outcome.detail) if outcome.reason else link
            for link, outcome in zip(links, outcomes, strict=True)
        ]

    def _addresses(self, document: Document) -> Sequence[str]:
        if not self.has_media:
            return document.image_urls
        pairs = zip(document.image_names, document.image_urls, strict=True)
        return [name or url for name, url in pairs]


@dataclass(frozen=True)
class MatchDocuments:
    """Transform: `texts`, `similarity` and `images` become the `segments` and `meta` of a sample."""

    rules: Rules
    reasons: ClassVar[Reasons] = {
        "unassigned": Reason(
            "More images were fetched than there are sentences; each sentence takes one."
        ),
        "low_similarity_assigned": Reason(
            "The similarity to its assigned sentence is below the threshold."
        ),
    }

    def __call__(self, table: pa.Table) -> pa.Table:
        """The samples; images left out carry their reason in `links`."""
        return assembled_table(table, "images", self._row)

    def _row(self, row: dict[str, Any]) -> dict[str, Any]:
        images = {image["slot"]: image for image in row["images"]}
        outcomes = match_images(row["similarity"], row["texts"], sorted(images), self.rules)
        links = [link_from_row(link) for link in row["links"]]
        row["links"] = [
            link.dropped(outcomes[link.slot].reason or "", outcomes[link.slot].detail).as_row()
            if link.slot in outcomes and outcomes[link.slot].reason
            else link.as_row()
            for link in links
        ]
        placed = {o.text_index: slot for slot, o in outcomes.items() if o.reason is None}
        slots = [placed[index] for index in sorted(placed)]
        segments = list(_segments(row["texts"], placed, images))
        similarity = [outcomes[slot].similarity for slot in slots]
        meta = {
            "url": row["url"],
            **origin(row),
            "image_slot": slots,
            "image_url": [links[slot].url for slot in slots],
            "matched_text_index": sorted(placed),
            "similarity": similarity,
            "scores": _scores(similarity),
        }
        return row | {"segments": segments, "meta": canonical_json(meta)}


def _segments(
    texts: list[str], placed: dict[int, int], images: dict[int, dict[str, Any]]
) -> list[dict[str, Any]]:
    segments: list[Segment] = []
    for index, text in enumerate(texts):
        if index in placed:
            segments.append(image_segment(images[placed[index]]))
        segments.append(Segment.of_text(text))
    return [s.as_row() for s in segments]


def _scores(similarity: list[float]) -> dict[str, float]:
    if not similarity:
        return {}
    mean = sum(similarity) / len(similarity)
    return {"min_similarity": min(similarity), "mean_similarity": mean}


def links_to_fetch() -> Filter:
    """A filter that keeps documents with a link to fetch."""

    def test(table: pa.Table) -> pa.Array:
        wanted = (any(k["reason"] is None for k in links) for links in table["links"].to_pylist())
        return pa.array([None if w else "no_image_wanted" for w in wanted], pa.string())

    reason = Reason("No image is similar enough to any sentence; nothing was fetched.")
    return Filter("living_links", test, {"no_image_wanted": reason})
