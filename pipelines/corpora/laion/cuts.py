"""Cuts on the metadata of LAION: options of the job, and what they ask of a row."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from pipelines.core.pipeline import Reason
from schemas.validation import Checked

_Probability = Annotated[float, Field(ge=0, le=1, description="a probability; None makes no cut")]
_Score = Annotated[float, Field(ge=0, le=10, description="a score; None makes no cut")]
_Cosine = Annotated[float, Field(ge=-1, le=1, description="a cosine; None makes no cut")]
_Pixels = Annotated[int, Field(ge=1, le=1 << 20, description="pixels; None makes no cut")]


@dataclass(frozen=True)
class Cuts(Checked):
    """Cuts on the metadata, applied before anything is fetched. None: no cut. Unless --cuts.keep-unscored is given,
    a row without the value of a cut (null, NaN) is dropped with its own reason, and a file without its column is
    refused."""

    max_punsafe: _Probability | None = None
    """Keep rows whose probability of unsafe content, 0 to 1, is below this. Typical: 0.5."""
    max_pwatermark: _Probability | None = None
    """Keep rows whose probability of a watermark, 0 to 1, is below this. Typical: 0.8."""
    min_aesthetic: _Score | None = None
    """Keep rows whose aesthetic score, 0 to 10, is at least this. Typical: 4.5 to 7."""
    min_similarity: _Cosine | None = None
    """Keep rows whose CLIP similarity, -1 to 1, is at least this. LAION-2B-en starts at 0.28."""
    min_width: _Pixels | None = None
    """Keep rows whose width in the metadata is at least this, in pixels."""
    min_height: _Pixels | None = None
    """Keep rows whose height in the metadata is at least this, in pixels."""
    drop_nsfw: tuple[str, ...] = ()
    """Drop rows with these NSFW tags, for example: NSFW UNSURE."""
    keep_unscored: bool = False
    """Keep rows that lack the value of a cut, and accept files without its column."""

    def bounds(self) -> Iterator["Bound"]:
        """The cuts by numbers that are made, in the order in which they are tried."""
        below = "is below the minimum; not fetched."
        found = (
            ("punsafe", self.max_punsafe, True, Reason("Probably unsafe content; not fetched.")),
            ("pwatermark", self.max_pwatermark, True, Reason("Probably a watermark; not fetched.")),
            ("aesthetic", self.min_aesthetic, False, Reason(f"The aesthetic score {below}")),
            ("similarity", self.min_similarity, False, Reason(f"The CLIP similarity {below}")),
            ("width", self.min_width, False, Reason(f"The width in the metadata {below}")),
            ("height", self.min_height, False, Reason(f"The height in the metadata {below}")),
        )
        return (Bound(c, v, is_max, reason) for c, v, is_max, reason in found if v is not None)


@dataclass(frozen=True)
class Bound:
    """A bound on a column of numbers: a maximum is excluded, a minimum included."""

    column: str
    value: float
    is_maximum: bool
    reason: Reason
    """Why a row outside is dropped."""
