"""Levels of a storyboard: the grids of frames that a specification describes, and the time of every frame.

A specification is a template of addresses and an entry for each level, separated by `|`. The fields of an entry:

    width#height#count#columns#rows#interval_ms#name#sigh

Entries of 7 fields (older responses) end with the name. The address of sheet number m of level l is the template with
`$L` replaced by l, `$N` by the name and then `$M` by m, and with `sigh` as a parameter. Live streams have another form
(`template#width#height#columns#rows`), which says neither how many frames there are nor when.

Frame k is at k x interval. An interval of 0 (level 0: one sheet) means frames at equal distances over the duration.
yt-dlp keeps only `fps`, count over duration; as count is about duration / interval + 2, times made of it are two
intervals early at the end. `recovered_interval` finds the interval again.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from pipelines.core.pipeline import Reason, Rejected

SPEC_REASONS: Mapping[str, Reason] = MappingProxyType(
    {
        "spec_malformed": Reason("The storyboard has no readable level."),
        "live_storyboard": Reason(
            "The storyboard of a live stream gives neither the number nor the times of its frames."
        ),
        "level_missing": Reason("The storyboard does not have the requested level."),
        "duration_missing": Reason(
            "The level gives times relative to the duration, which is missing."
        ),
    }
)
"""Why a storyboard gives no frames."""

MAX_COUNT = 100_000
MAX_GRID = 100
MAX_SHEETS = 1000
MAX_SIDE_PX = 4096
MAX_INTERVAL_MS = 86_400_000
INTERVALS_S = (1.0, 2.0, 5.0, 10.0)
"""The intervals that YouTube uses, in seconds."""


@dataclass(frozen=True)
class Level:
    """One level: sheets of `columns` x `rows` frames of `width` x `height` pixels, `count` frames in all."""

    number: int
    width: int
    height: int
    count: int
    columns: int
    rows: int
    interval_s: float | None
    """Seconds between frames; 0: equal distances over the duration; None: not known."""
    template: str = ""
    """Address of the sheets, with `$M`."""
    query: str = ""
    """What follows the address."""
    addresses: tuple[str, ...] = ()
    """Of all sheets, where they are given one by one."""

    @property
    def num_sheets(self) -> int:
        """Sheets that hold `count` frames."""
        return -(-self.count // (self.columns * self.rows))

    @property
    def sheet_addresses(self) -> tuple[str, ...]:
        """The addresses of all sheets in order."""
        if self.addresses:
            return self.addresses
        numbers = range(self.num_sheets)
        return tuple(self.template.replace("$M", str(m)) + self.query for m in numbers)

    def frames_of(self, sheet: int) -> range:
        """The numbers of the frames in a sheet; cells behind the last frame are none."""
        first = sheet * self.columns * self.rows
        return range(first, min(first + self.columns * self.rows, self.count))


def parse_spec(spec: str) -> tuple[list[Level], list[str]]:
    """The levels of a specification, and what is wrong with the entries that are none; raises `Rejected`."""
    template, *entries = spec.strip().split("|")
    if not entries:
        is_live = len(spec.split("#")) == 5
        raise Rejected("live_storyboard" if is_live else "spec_malformed", shortened(spec))
    if template.startswith("//"):
        template = f"https:{template}"
    levels, problems = [], []
    for number, entry in enumerate(entries):
        try:
            levels.append(_level(number, template, entry))
        except ValueError as error:
            problems.append(f"level {number}: {error}: {shortened(entry)}")
    if not levels:
        raise Rejected("spec_malformed", "; ".join(problems)[:400])
    return levels, problems


def _level(number: int, template: str, entry: str) -> Level:
    fields = entry.split("#")
    if len(fields) not in (7, 8):
        raise ValueError(f"{len(fields)} fields, not 8 or 7")
    names = ("width", "height", "count", "columns", "rows")
    width, height, count, columns, rows = (
        whole(field, name) for name, field in zip(names, fields[:5], strict=True)
    )
    interval_ms = whole(fields[5], "interval", 0, MAX_INTERVAL_MS)
    query = ""
    if len(fields) == 8:
        query = f"{'&' if '?' in template else '?'}sigh={fields[7]}"
    address = template.replace("$L", str(number)).replace("$N", fields[6])
    interval_s = interval_ms / 1000
    level = Level(number, width, height, count, columns, rows, interval_s, address, query)
    if level.num_sheets > MAX_SHEETS:
        raise ValueError(f"{level.num_sheets} sheets, more than {MAX_SHEETS}")
    if level.num_sheets > 1 and "$M" not in address:
        raise ValueError(f"one address for {level.num_sheets} sheets")
    return level


_LIMITS = {"width": MAX_SIDE_PX, "height": MAX_SIDE_PX, "count": MAX_COUNT}


def whole(value: object, name: str, least: int = 1, most: int | None = None) -> int:
    """A whole number in its bounds; raises `ValueError` naming it."""
    most = _LIMITS.get(name, MAX_GRID) if most is None else most
    text = str(value)
    if isinstance(value, bool) or not re.fullmatch("[0-9]{1,9}", text):
        raise ValueError(f"{name} is {shortened(text)}, no whole number")
    if not least <= int(text) <= most:
        raise ValueError(f"{name} is {text}, not in {least}..{most}")
    return int(text)


def shortened(text: str) -> str:
    """The beginning of a text, in ASCII."""
    return ascii(text[:80])


def choose_level(levels: list[Level], wanted: int | None) -> Level:
    """The level of a number, or the one with the largest frames; raises `Rejected`."""
    if wanted is None:
        return max(levels, key=lambda level: (level.width * level.height, level.number))
    found = [level for level in levels if level.number == wanted]
    if not found:
        raise Rejected("level_missing", f"has {sorted(level.number for level in levels)}")
    return found[0]


@dataclass(frozen=True)
class Timing:
    """When frames are: frame k at k x `interval_s`."""

    interval_s: float
    source: str
    """`given`; `uniform`: over the duration, as the level says; `recovered` from count and duration; `count`: duration
    over count for want of better, up to two intervals early at the end; `released`: rounded as Emu's tools do."""


def timing(level: Level, duration_s: float | None, is_released: bool = False) -> Timing:
    """The times of a level's frames; raises `Rejected` where they need a duration and there is none.

    Args:
        level: with or without an interval.
        duration_s: of the video.
        is_released: round(duration / count), as the released tools of Emu do.
    """
    if level.interval_s and not is_released:
        return Timing(level.interval_s, "given")
    if duration_s is None:
        raise Rejected("duration_missing", f"level {level.number}")
    if is_released:
        return Timing(float(round(duration_s / level.count)), "released")
    if level.interval_s is None:
        found = recovered_interval(level.count, duration_s)
        if found is not None:
            return Timing(found, "recovered")
    return Timing(duration_s / level.count, "count" if level.interval_s is None else "uniform")


def recovered_interval(count: int, duration_s: float) -> float | None:
    """The interval behind a count, which is about duration / interval + 2; None where it is not certain."""
    fits = [i for i in INTERVALS_S if abs(count - 2 - math.floor(duration_s / i)) <= 1]
    return fits[0] if len(fits) == 1 else None
