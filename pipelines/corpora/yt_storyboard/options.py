"""What a storyboard dataset is made by, apart from its inputs."""

import re
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

from pipelines.images.normalise import ImageConfig
from pipelines.storyboards.timeline import MIN_POSITIONS
from schemas.validation import Checked, ConfigError


@dataclass(frozen=True)
class Rules(Checked):
    """What a storyboard dataset is made by, apart from its inputs: part of its fingerprint."""

    level: Annotated[int, Field(ge=0, le=99, description="None takes the largest")] | None = None
    """Number of the level; None takes the one with the largest frames."""
    language: Annotated[str, Field(min_length=1)] = "en"
    """Of the subtitles; manual ones before automatic ones, `en` before `en-GB`."""
    require_subtitles: bool = False
    """Drop videos without subtitles that can be read; else they are frames alone."""
    max_positions: Annotated[
        int, Field(ge=MIN_POSITIONS, le=1_000_000, description="an image alone takes 36")
    ] = 2048
    """Positions of a sample at most: 34 for a frame, the tokens of the texts, 2 for begin and end."""
    tokenizer: str | None = None
    """Sentencepiece file that counts the tokens of texts; None estimates them."""
    released_rounding: bool = False
    """Times as the released tools of Emu compute them: whole seconds, round(duration / frames)."""
    sheet_path: str = "{id}/{level}_{sheet}.jpg"
    """Path of a sheet in the media folder."""
    subtitle_path: str | None = "{id}.{language}.vtt"
    """Path of subtitles in the media folder, of any format; None where there are none."""
    image: ImageConfig = field(default_factory=ImageConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_places("sheet_path", self.sheet_path, {"id", "level", "sheet"}, {"id", "sheet"})
        if self.subtitle_path is not None:
            _check_places("subtitle_path", self.subtitle_path, {"id", "language"}, {"id"})


def _check_places(name: str, path: str, known: set[str], needed: set[str]) -> None:
    found = set(re.findall(r"\{([^{}]*)\}", path))
    if not needed <= found <= known:
        raise ConfigError(
            f"{name} is {path!r}, give a path with {', '.join(f'{{{n}}}' for n in sorted(needed))} "
            f"and nothing else in braces but {', '.join(f'{{{n}}}' for n in sorted(known))}"
        )
