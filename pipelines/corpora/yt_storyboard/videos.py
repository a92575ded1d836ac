"""Videos: from the text of a record to what is fetched for it, its sheets and subtitles."""

import json
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pyarrow as pa

from pipelines.core.pipeline import RECORD_FIELDS, Reasons, Rejected
from pipelines.corpora.yt_storyboard.options import Rules
from pipelines.download.media import is_web_address
from pipelines.storyboards.levels import SPEC_REASONS, Level, Timing, choose_level, timing
from pipelines.storyboards.records import RECORD_REASONS, Track, Video, choose_track, parse_video
from pipelines.subtitles import read_subtitles
from pipelines.subtitles.cues import NO_SUBTITLES, SUBTITLE_REASONS, Subtitles
from pipelines.subtitles.transcript import from_entries
from pipelines.transforms.samples import parsed_table
from schemas.sample import Link, canonical_json

PARSED = pa.schema(
    [
        *RECORD_FIELDS,
        pa.field("video", pa.large_string()),
        pa.field("cue_starts_s", pa.list_(pa.float64())),
        pa.field("cue_texts", pa.large_list(pa.large_string())),
    ]
)


@dataclass(frozen=True)
class Plan:
    """What is made of a video: one level of its storyboard, and subtitles."""

    id: str
    duration_s: float | None
    level: Level
    timing: Timing
    language: str | None = None
    """None where there are no subtitles of the wanted language."""
    is_automatic: bool | None = None
    """None where it is not known (a file on disk)."""
    subtitles_slot: int | None = None
    """The link that leads to them; None where the record holds them, or there are none."""
    cues: Subtitles = NO_SUBTITLES
    """Where the record holds them."""
    problems: tuple[str, ...] = ()

    def as_row(self) -> dict[str, Any]:
        """The plan as values of `PARSED`: JSON, and the subtitles as columns."""
        values = vars(self) | {"level": vars(self.level), "timing": vars(self.timing)}
        values["cues"] = self.cues.num_unreadable
        return {
            "video": canonical_json(values),
            "cue_starts_s": self.cues.starts_s,
            "cue_texts": self.cues.texts,
        }


def plan_from_row(row: dict[str, Any]) -> Plan:
    """A plan from values of `PARSED`, which are taken out of the row."""
    values = json.loads(row.pop("video"))
    starts_s, texts = row.pop("cue_starts_s"), row.pop("cue_texts")
    values["cues"] = Subtitles(starts_s, texts, values["cues"])
    level = values.pop("level")
    addresses = tuple(level.pop("addresses"))
    values["problems"] = tuple(values["problems"])
    values["timing"] = Timing(**values["timing"])
    return Plan(level=Level(**level, addresses=addresses), **values)


@dataclass(frozen=True)
class ParseVideos:
    """Transform: the column `line` becomes those of a `Plan`, and `links`: its sheets, then its subtitles.

    Args:
        rules: the level, the language, and how files are named.
        has_media: sheets and subtitles lie in a media folder.
    """

    rules: Rules
    has_media: bool = False
    reasons: ClassVar[Reasons] = {**RECORD_REASONS, **SPEC_REASONS, **SUBTITLE_REASONS}

    def __call__(self, table: pa.Table) -> pa.Table:
        """The videos; a record that is none carries the reason."""
        return parsed_table(table, PARSED, self._parse)

    def _parse(self, row: dict[str, Any]) -> dict[str, Any]:
        plan, links = self._planned(parse_video(row["line"]))
        return {**plan.as_row(), "links": [link.as_row() for link in links]}

    def _planned(self, video: Video) -> tuple[Plan, list[Link]]:
        level = choose_level(video.levels, self.rules.level)
        times = timing(level, video.duration_s, self.rules.released_rounding)
        links = [Link(n, url) for n, url in enumerate(self._sheets(video, level))]
        problems = tuple(video.problems)
        # The addresses stand in the links.
        bare = replace(level, template="", query="", addresses=())
        plan = Plan(video.id, video.duration_s, bare, times, problems=problems)
        return self._with_subtitles(plan, choose_track(video.tracks, self.rules.language), links)

    def _sheets(self, video: Video, level: Level) -> list[str]:
        addresses = level.sheet_addresses
        if not self.has_media or not all(map(is_web_address, addresses)):
            return list(addresses)
        form = self.rules.sheet_path.replace("{id}", video.id).replace("{level}", str(level.number))
        return [form.replace("{sheet}", str(n)) for n in range(level.num_sheets)]

    def _with_subtitles(
        self, plan: Plan, track: Track | None, links: list[Link]
    ) -> tuple[Plan, list[Link]]:
        slot = len(links)
        if track is not None and track.is_held:
            named = replace(
                plan,
                language=track.language or self.rules.language,
                is_automatic=track.is_automatic,
            )
            try:
                return replace(named, cues=_held_subtitles(track)), links
            except Rejected as error:
                held = Link(slot, "(in the record)").dropped(error.reason, error.detail)
                return named, [*links, held]
        if self.has_media and self.rules.subtitle_path is not None:
            path = self.rules.subtitle_path.replace("{id}", plan.id)
            path = path.replace("{language}", self.rules.language)
            named = replace(plan, language=self.rules.language, subtitles_slot=slot)
            return named, [*links, Link(slot, path)]
        if track is None or track.url is None:
            return plan, links
        named = replace(
            plan,
            language=track.language,
            is_automatic=track.is_automatic,
            subtitles_slot=slot,
        )
        return named, [*links, Link(slot, track.url)]


def _held_subtitles(track: Track) -> Subtitles:
    """The subtitles that a record holds; raises `Rejected`."""
    if track.entries is not None:
        return from_entries(track.entries)
    return read_subtitles((track.text or "").encode())
