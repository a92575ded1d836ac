"""What a build hands to the `pipeline` of a corpus, beside the rules of the corpus."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from pipelines.core.pipeline import (
    Barrier,
    Construct,
    Filter,
    Pipeline,
    Resources,
    Source,
    Stage,
    Transform,
)
from pipelines.download.fetcher import FetchConfig
from pipelines.publish.card import Card
from pipelines.publish.report import Report
from pipelines.publish.shards import ShardSink
from pipelines.transforms.fetch_links import (
    Content,
    Prior,
    fetch_limits,
    fetch_links,
    media_config,
)

S_co = TypeVar("S_co", bound=Source, covariant=True)


@dataclass(frozen=True)
class Build(Generic[S_co]):
    """The inputs of a dataset, and how what they link to is fetched."""

    source: S_co
    """Reads the input files; made by the `READER` of the corpus."""
    fetch: FetchConfig = field(default_factory=FetchConfig)
    """How to fetch; `fetch_limits` of it is part of the fingerprint."""
    media: str | None = None
    """Folder or address of media that are on disk; links that are no web addresses are paths in it."""
    prior: Prior | None = None
    """The published dataset to take media from where only failures are fetched again."""
    fetch_resources: Resources = field(default_factory=Resources)
    """What a worker that fetches needs."""
    name: str | None = None
    """Of the dataset, `[a-z0-9_]+`: its shards and samples carry it. Null takes the name of the corpus."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further configuration for the fingerprint (how the source cuts shards, for example)."""

    def fetch_stage(self, content: Content, *steps: Transform | Construct | Filter) -> Stage:
        """The stage that fetches what the links lead to; `steps` follow the fetch."""
        fetched = fetch_links(self.fetch, content, self.prior, self.media)
        return Stage("fetch", (fetched, *steps), self.fetch_resources)

    def pipeline(
        self,
        corpus: str,
        stages: tuple[Stage | Barrier, ...],
        config: Mapping[str, Any],
        report: Report,
        card: Card,
        source: Source | None = None,
    ) -> Pipeline:
        """The pipeline of a corpus to published shards, report and card.

        Args:
            corpus: a name of `CORPORA`.
            stages: from the records of the source to samples.
            config: the rules of the corpus, for the fingerprint.
            report: writes `report.html`.
            card: writes `README.md`.
            source: in place of that of the build, where the corpus asks for columns of it.
        """
        named: Mapping[str, Any] = {}
        if self.name not in (None, corpus):
            named = {"corpus": corpus, "name": self.name}
            report = replace(report, title=f"{report.title} ({self.name})")
            card = replace(card, title=f"{card.title} ({self.name})")
        limits = {**fetch_limits(self.fetch), **media_config(self.media)}
        return Pipeline(
            corpus=corpus,
            name=self.name,
            source=source or self.source,
            stages=stages,
            sink=ShardSink(),
            config={**config, **limits, **named, **self.extra},
            finish=(report, card),
        )
