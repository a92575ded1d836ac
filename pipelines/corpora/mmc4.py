"""MMC4: interleaved documents, from their lines to samples.

Stages, each a shard to a shard:

| stage | steps                                                                                         |
|-------|-----------------------------------------------------------------------------------------------|
| parse | the line becomes a document; images too unlike every sentence are dropped; documents without any left too |
| fetch | the images are fetched and normalised; documents of which none arrived are dropped            |
| match | images and sentences are assigned again one-to-one, and the document becomes a sample         |

The sample: every sentence as a text segment, in order and unchanged (so that sentence i is the i-th text
segment); each image right before its sentence. Training draws "before or after" itself. Its `meta`:

| field              | meaning                                                                        |
|--------------------|--------------------------------------------------------------------------------|
| url                | the page                                                                       |
| source, record     | name of the input file, without its folder, and line number in it              |
| image_slot         | for each image segment in order: its number in `image_info`                    |
| image_url          | the same: where it was fetched from                                            |
| matched_text_index | the same: number of its sentence                                               |
| similarity         | the same: its CLIP similarity to that sentence, as released                    |
| scores             | min_similarity, mean_similarity over those                                     |
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any

from pipelines.core.ledger import RECORD_DROPPED
from pipelines.core.line_reader import LINE_REASONS
from pipelines.core.stage import Construct, Pipeline, Resources, Source, Stage
from pipelines.corpora.mmc4_document import DOCUMENT_REASONS
from pipelines.corpora.mmc4_match import MATCH_REASONS, MatchRules
from pipelines.corpora.mmc4_steps import (
    CORPUS,
    RECORD_REASONS,
    MatchDocuments,
    ParseDocuments,
    arrived_images,
    living_links,
)
from pipelines.download.fetch import FetchConfig
from pipelines.download.images import ImageConfig
from pipelines.download.reasons import REASONS as FETCH_REASONS
from pipelines.filters.min_images import min_images
from pipelines.publish.report import Report
from pipelines.publish.shards import ShardSink
from pipelines.transforms.images import FetchImages
from pipelines.transforms.prior import Prior

REASONS: Mapping[str, str] = MappingProxyType(
    {
        **LINE_REASONS,
        **DOCUMENT_REASONS,
        **MATCH_REASONS,
        **RECORD_REASONS,
        **{word: reason.meaning for word, reason in FETCH_REASONS.items()},
        RECORD_DROPPED: "The link was alive when its document was dropped.",
    }
)
"""Every reason that can stand in the ledger of this corpus -> one sentence for a person."""

REPORT = Report(
    title="MMC4: what was built",
    reasons=REASONS,
    score_titles={
        "mean_similarity": "Mean similarity of image and sentence",
        "min_similarity": "Lowest similarity in a document",
    },
)


@dataclass(frozen=True)
class Mmc4Config:
    """What an MMC4 dataset is made by, apart from its inputs: part of its fingerprint."""

    rules: MatchRules = field(default_factory=MatchRules)
    image: ImageConfig = field(default_factory=ImageConfig)


def mmc4_pipeline(
    source: Source,
    config: Mmc4Config,
    fetch: FetchConfig,
    *,
    extra: Mapping[str, Any] | None = None,
    prior: Prior | None = None,
    fetch_resources: Resources | None = None,
) -> Pipeline:
    """The pipeline from lines of documents to published shards and their report.

    Args:
        source: gives tables with the column `line`.
        config: the rules.
        fetch: how to fetch. Only what decides which images may be used is in the fingerprint (robots tags, size
            cap); manners are not, so that a later retry may be more patient.
        extra: further configuration for the fingerprint (how the source cuts shards, for example).
        prior: the published dataset to take images from, where only failures are fetched again.
        fetch_resources: what a worker that fetches needs.
    """
    fetching = Construct(FetchImages, (fetch, config.image, prior))
    limits = {"respect_robots_tag": fetch.respect_robots_tag, "max_bytes": fetch.max_bytes}
    return Pipeline(
        corpus=CORPUS,
        source=source,
        stages=(
            Stage("parse", (ParseDocuments(config.rules), living_links())),
            Stage("fetch", (fetching, arrived_images()), fetch_resources or Resources()),
            Stage("match", (MatchDocuments(config.rules), min_images(1, "no_image_left"))),
        ),
        sink=ShardSink(),
        config={**asdict(config), **limits, **(extra or {})},
        finish=(REPORT,),
    )
