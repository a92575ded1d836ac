"""Which samples of a dataset are kept, whatever its corpus: options of every job that writes one."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from jobs.paths import job_path
from schemas.validation import Checked

if TYPE_CHECKING:
    from pipelines.core.pipeline import Pipeline

Kind = Literal["url", "sample", "image", "text", "near_image", "near_text"]


@dataclass(frozen=True)
class Choices(Checked):
    """Filters and duplicates."""

    filters: tuple[str, ...] = ()
    """Filters to apply to finished samples, in this order, each NAME or NAME:key=value,key=value.
    For example: image_size:min_side=128 score:name=nsfw,max=0.5. `emu filters` lists all filters."""
    dedup: tuple[Kind, ...] = ()
    """Kinds of duplicates to drop; the first sample of a group is kept. Nothing is dropped without this option.
    url, sample, image and text drop equal ones; near_image compares perceptual hashes, near_text MinHash signatures.
    Publishing starts only after all samples have been compared."""
    dedup_radius: Annotated[int, Field(ge=0, le=8, description="bits of 64")] = 4
    """For near_image: maximum number of differing bits, 0 to 8 of 64, between two perceptual hashes."""
    dedup_similarity: Annotated[float, Field(ge=0.5, le=1, description="a share")] = 0.8
    """For near_text: minimum Jaccard similarity, 0.5 to 1, of the sets of five-character runs of two texts."""
    dedup_against: tuple[str, ...] = ()
    """Finished datasets to compare with: samples that duplicate one of theirs are dropped.
    Every worker must be able to read them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.filters:
            from pipelines.filters.options import parse_filters

            parse_filters(self.filters)
        if self.dedup_against and not self.dedup:
            raise ValueError("dedup_against needs dedup: name the kinds of duplicates to drop")

    def applied(self, pipeline: "Pipeline") -> "Pipeline":
        """The pipeline with the filters, then the removal of duplicates, behind its stages."""
        if self.filters:
            from pipelines.filters.options import parse_filters, with_filters

            pipeline = with_filters(pipeline, parse_filters(self.filters))
        if self.dedup:
            from pipelines.dedup.stage import Dedup, with_dedup

            against = tuple(map(job_path, self.dedup_against))
            dedup = Dedup(self.dedup, self.dedup_radius, self.dedup_similarity, against)
            pipeline = with_dedup(pipeline, dedup)
        return pipeline
