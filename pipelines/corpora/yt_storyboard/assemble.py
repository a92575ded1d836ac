"""Samples: frames and subtitles of a video in the order of time, cut into parts that fit a sequence."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import sentencepiece

from pipelines.core.pipeline import Reason, Reasons, Rejected
from pipelines.corpora.yt_storyboard.options import Rules
from pipelines.corpora.yt_storyboard.sheets import (
    SHEET_REASONS,
    Frames,
    cut_sheet,
    published_frames,
)
from pipelines.corpora.yt_storyboard.videos import Plan, plan_from_row
from pipelines.storyboards.timeline import Part, estimated_positions, merged, parts
from pipelines.subtitles import read_subtitles
from pipelines.subtitles.cues import SUBTITLE_REASONS, Subtitles
from pipelines.transforms.samples import sample_table
from schemas.sample import Link, Segments, canonical_json, link_from_row


@dataclass(frozen=True)
class AssembleSamples:
    """Transform that divides: a `Plan` and `bodies` become the `segments` and `meta` of one sample or several.

    A video has a hundred frames of 2 kB and more: from here to the tar they are columns, not an object each.
    A link belongs to the part with its first frame; subtitles, and links of which nothing is left, to the first part.
    """

    rules: Rules
    reasons: ClassVar[Reasons] = {
        **SHEET_REASONS,
        **SUBTITLE_REASONS,
        "no_frame_arrived": Reason("No sheet could be fetched and cut into frames."),
        "no_subtitles": Reason("There are no readable subtitles in the requested language."),
    }

    def __call__(self, table: pa.Table) -> pa.Table:
        """The samples, those of a video one behind the other."""
        count = text_counter(self.rules.tokenizer)
        rows = [part for row in table.to_pylist() for part in self._rows(row, count)]
        return sample_table(rows, table)

    def _rows(self, row: dict[str, Any], count: Callable[[str], int]) -> Iterator[dict[str, Any]]:
        plan = plan_from_row(row)
        bodies = {body["slot"]: body for body in row.pop("bodies")}
        links = [link_from_row(link) for link in row["links"]]
        frames = _FramesOfVideo()
        for slot, link in enumerate(links):
            if slot in bodies and slot != plan.subtitles_slot:
                links[slot] = self._cut(link, bodies[slot], plan, frames)
        plan, links = _with_cues(plan, links, bodies)
        row["links"] = [link.as_row() for link in links]
        if not frames.numbers:
            yield row | {"drop_reason": "no_frame_arrived"}
        elif self.rules.require_subtitles and not plan.cues.texts:
            yield row | {"drop_reason": "no_subtitles"}
        else:
            yield from _samples(row, plan, links, frames, self._parts(plan, frames.numbers, count))

    def _cut(
        self, link: Link, body: Mapping[str, Any], plan: Plan, frames: "_FramesOfVideo"
    ) -> Link:
        """The link of a sheet, whose frames are added to `frames`; dropped where it has none."""
        try:
            if body["frames"] is None:
                found = cut_sheet(body["data"], plan.level, link.slot, self.rules.image)
            else:
                found = published_frames(body["frames"])
        except Rejected as error:
            return link.dropped(error.reason, error.detail)
        frames.add(found)
        return link

    def _parts(self, plan: Plan, numbers: list[int], count: Callable[[str], int]) -> list[Part]:
        times = [(number * plan.timing.interval_s, number) for number in numbers]
        blocks = merged(times, plan.cues.starts_s, plan.cues.texts)
        return list(parts(blocks, self.rules.max_positions, count))


@dataclass
class _FramesOfVideo:
    """The frames of the sheets that arrived, as columns, in the order of their numbers."""

    numbers: list[int] = field(default_factory=list)
    images: list[bytes] = field(default_factory=list)
    formats: list[str] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)
    heights: list[int] = field(default_factory=list)

    def add(self, found: Frames) -> None:
        """The frames of a further sheet: sheets come in order, and so do the frames of each."""
        assert not self.numbers or not found.numbers or self.numbers[-1] < found.numbers[0]
        for name, values in found._asdict().items():
            getattr(self, name).extend(values)


def text_counter(tokenizer: str | None) -> Callable[[str], int]:
    """What counts the positions of a text: a sentencepiece model, or an estimate."""
    if tokenizer is None:
        return estimated_positions
    pieces = sentencepiece.SentencePieceProcessor(model_proto=tokenizer_bytes(tokenizer))
    return lambda text: len(pieces.EncodeAsIds(text))


def tokenizer_bytes(tokenizer: str) -> bytes:
    """The sentencepiece model in a file, or in `tokenizer.model` of a folder."""
    path = Path(tokenizer)
    return (path / "tokenizer.model" if path.is_dir() else path).read_bytes()


def _with_cues(
    plan: Plan, links: list[Link], bodies: Mapping[int, Mapping[str, Any]]
) -> tuple[Plan, list[Link]]:
    """The plan with the subtitles that a link led to; the link is dropped where they cannot be read."""
    slot = plan.subtitles_slot
    if slot is None or slot not in bodies:
        return replace(plan, subtitles_slot=None), links
    body = bodies[slot]
    if body["cues"] is not None:
        starts_s, texts = ([cue[name] for cue in body["cues"]] for name in ("start_s", "text"))
        return replace(plan, cues=Subtitles(starts_s, texts, plan.cues.num_unreadable)), links
    try:
        return replace(plan, cues=read_subtitles(body["data"])), links
    except Rejected as error:
        dropped = [
            link.dropped(error.reason, error.detail) if link.slot == slot else link
            for link in links
        ]
        return replace(plan, subtitles_slot=None), dropped


def _samples(
    row: dict[str, Any], plan: Plan, links: list[Link], frames: _FramesOfVideo, found: list[Part]
) -> Iterator[dict[str, Any]]:
    """The samples of a video, a part each; what all of them say of it is made once."""
    part_of = _first_parts(plan, found)
    about = _about(row, plan, len(found))
    position = 0
    for number, part in enumerate(found):
        held = [link.as_row() for link in links if part_of.get(link.slot, 0) == number]
        segments = _segments(part, frames, position)
        position += len(segments.images)
        yield row | {
            "key": f"{row['key']}-{number:03d}",
            "links": held,
            "segments": segments,
            "meta": canonical_json(about | _about_part(part, number)),
        }


def _first_parts(plan: Plan, found: list[Part]) -> dict[int, int]:
    """By slot of a sheet the part with its first frame."""
    per_sheet = plan.level.columns * plan.level.rows
    part_of: dict[int, int] = {}
    for number, part in enumerate(found):
        for sheet in {frame // per_sheet for frame in part.frames}:
            part_of.setdefault(sheet, number)
    return part_of


def _segments(part: Part, frames: _FramesOfVideo, first: int) -> Segments:
    """The segments of a part whose frames begin at the index `first`: parts leave no frame out."""
    is_image = [block.frame is not None for block in part.blocks]
    chosen = slice(first, first + sum(is_image))
    return Segments(
        is_image=is_image,
        times=[block.time_s for block in part.blocks],
        roles=[None] * len(is_image),
        texts=[block.text for block in part.blocks if block.frame is None],
        images=frames.images[chosen],
        formats=frames.formats[chosen],
        widths=frames.widths[chosen],
        heights=frames.heights[chosen],
    )


def _about(row: dict[str, Any], plan: Plan, num_parts: int) -> dict[str, Any]:
    """What the meta of every sample says of its video."""
    has_cues = bool(plan.cues.texts)
    return {
        "video_id": plan.id,
        "source": row["source"].replace("\\", "/").rpartition("/")[2],
        "record": row["record"],
        "num_parts": num_parts,
        "duration_s": plan.duration_s,
        "level": plan.level.number,
        "columns": plan.level.columns,
        "rows": plan.level.rows,
        "count": plan.level.count,
        "interval_s": plan.timing.interval_s,
        "interval_source": plan.timing.source,
        "language": plan.language if has_cues else None,
        "automatic_subtitles": plan.is_automatic if has_cues else None,
        "subtitles_slot": plan.subtitles_slot,
        "unreadable_cues": plan.cues.num_unreadable,
        "unreadable_levels": list(plan.problems),
    }


def _about_part(part: Part, number: int) -> dict[str, Any]:
    texts = [block for block in part.blocks if block.frame is None]
    return {
        "part": number,
        "positions": part.num_positions,
        "frame": part.frames,
        "text_cues": [list(zip(b.starts_s, b.lengths, strict=True)) for b in texts],
    }
