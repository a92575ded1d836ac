"""Samples: frames and subtitles of a video in the order of time, cut into parts that fit a sequence."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import sentencepiece

from pipelines.core.pipeline import Reason, Reasons, Rejected
from pipelines.corpora.yt_storyboard.options import Rules
from pipelines.corpora.yt_storyboard.sheets import SHEET_REASONS, Frame, cut_sheet
from pipelines.corpora.yt_storyboard.videos import Plan, plan_from_json
from pipelines.storyboards.timeline import Block, Part, estimated_positions, merged, parts
from pipelines.subtitles import read_subtitles
from pipelines.subtitles.cues import SUBTITLE_REASONS, Cue
from pipelines.transforms.samples import sample_table
from schemas.sample import Link, canonical_json, link_from_row


@dataclass(frozen=True)
class AssembleSamples:
    """Transform that divides: `video` and `bodies` become the `segments` and `meta` of one sample or several.

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
        plan = plan_from_json(row.pop("video"))
        bodies = {body["slot"]: body for body in row.pop("bodies")}
        links = [link_from_row(link) for link in row["links"]]
        frames: dict[int, Frame] = {}
        for slot, link in enumerate(links):
            if slot in bodies and slot != plan.subtitles_slot:
                links[slot] = self._cut(link, bodies[slot], plan, frames)
        plan, links = _with_cues(plan, links, bodies)
        row["links"] = [link.as_row() for link in links]
        if not frames:
            yield row | {"drop_reason": "no_frame_arrived"}
        elif self.rules.require_subtitles and not plan.cues:
            yield row | {"drop_reason": "no_subtitles"}
        else:
            yield from _samples(row, plan, links, frames, self._parts(plan, frames, count))

    def _cut(
        self, link: Link, body: Mapping[str, Any], plan: Plan, frames: dict[int, Frame]
    ) -> Link:
        """The link of a sheet, whose frames are added to `frames`; dropped where it has none."""
        try:
            found = body["frames"]
            if found is None:
                found = cut_sheet(body["data"], plan.level, link.slot, self.rules.image)
        except Rejected as error:
            return link.dropped(error.reason, error.detail)
        frames.update((frame["frame"], frame) for frame in found)
        return link

    def _parts(
        self, plan: Plan, frames: Mapping[int, Frame], count: Callable[[str], int]
    ) -> list[Part]:
        times = [(number * plan.timing.interval_s, number) for number in sorted(frames)]
        cues = [(cue.start_s, cue.text) for cue in plan.cues]
        return list(parts(merged(times, cues), self.rules.max_positions, count))


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
        return replace(plan, cues=tuple(Cue(**cue) for cue in body["cues"])), links
    try:
        found = read_subtitles(body["data"])
    except Rejected as error:
        dropped = [
            link.dropped(error.reason, error.detail) if link.slot == slot else link
            for link in links
        ]
        return replace(plan, subtitles_slot=None), dropped
    return replace(plan, cues=found.cues, num_unreadable=found.num_unreadable), links


def _samples(
    row: dict[str, Any],
    plan: Plan,
    links: list[Link],
    frames: Mapping[int, Frame],
    found: list[Part],
) -> Iterator[dict[str, Any]]:
    part_of = _first_parts(plan, links, found)
    for number, part in enumerate(found):
        blocks = part.blocks
        held = [link.as_row() for link in links if part_of.get(link.slot, 0) == number]
        yield row | {
            "key": f"{row['key']}-{number:03d}",
            "links": held,
            "segments": [_segment(block, frames) for block in blocks],
            "meta": canonical_json(_meta(row, plan, part, number, len(found))),
        }


def _first_parts(plan: Plan, links: list[Link], found: list[Part]) -> dict[int, int]:
    """By slot of a sheet the part with its first frame."""
    per_sheet = plan.level.columns * plan.level.rows
    part_of: dict[int, int] = {}
    for number, part in enumerate(found):
        for block in part.blocks:
            if block.frame is not None:
                part_of.setdefault(block.frame // per_sheet, number)
    return part_of


def _segment(block: Block, frames: Mapping[int, Frame]) -> dict[str, Any]:
    """A row of `SEGMENT_TYPE`; fields that it leaves out are null."""
    if block.frame is None:
        return {"kind": "text", "text": block.text, "time_s": block.time_s}
    frame = frames[block.frame]
    image = {name: frame[name] for name in ("format", "width", "height")}
    return {"kind": "image", "image": frame["data"], **image, "time_s": block.time_s}


def _meta(
    row: dict[str, Any], plan: Plan, part: Part, number: int, num_parts: int
) -> dict[str, Any]:
    texts = [block for block in part.blocks if block.frame is None]
    return {
        "video_id": plan.id,
        "source": row["source"].replace("\\", "/").rpartition("/")[2],
        "record": row["record"],
        "part": number,
        "num_parts": num_parts,
        "positions": part.num_positions,
        "duration_s": plan.duration_s,
        "level": plan.level.number,
        "columns": plan.level.columns,
        "rows": plan.level.rows,
        "count": plan.level.count,
        "interval_s": plan.timing.interval_s,
        "interval_source": plan.timing.source,
        "frame": [block.frame for block in part.blocks if block.frame is not None],
        "language": plan.language if plan.cues else None,
        "automatic_subtitles": plan.is_automatic if plan.cues else None,
        "subtitles_slot": plan.subtitles_slot,
        "unreadable_cues": plan.num_unreadable,
        "unreadable_levels": list(plan.problems),
        "text_cues": [[[start_s, len(text)] for start_s, text in block.cues] for block in texts],
    }
