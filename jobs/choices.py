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
    """Filters of the finished samples, in this order: NAME or NAME:key=value,key=value, such as
    image_size:min_side=128 score:name=nsfw,max=0.5. emu filters lists them with their parameters and reasons."""
    dedup: tuple[Kind, ...] = ()
    """Duplicates to drop, of which the first stays: same url, sample, image (bytes) or text; near_image (perceptual
    hash), near_text (MinHash). All samples wait for each other before the last stage. None drops nothing."""
    dedup_radius: Annotated[int, Field(ge=0, le=8, description="bits of 64")] = 4
    """Bits, 0 to 8 of 64, in which the perceptual hashes of near images may differ."""
    dedup_similarity: Annotated[float, Field(ge=0.5, le=1, description="a share")] = 0.8
    """Similarity (Jaccard, of runs of five characters; 0.5 to 1) from which texts are near."""
    dedup_against: tuple[str, ...] = ()
    """Finished datasets whose samples count as earlier ones; the workers read all of them."""

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
