"""The synthetic world as a LAION download: Parquet metadata, the images they link to, and the ground truth.

DIR/metadata/part-00000-miniworld.snappy.parquet, ...   the forms of `FORMS` alternate
DIR/images/NAME        a file for each link that has one; serve this folder with `server`
DIR/truth.jsonl        one line per usable link: scene, caption, questions
DIR/summary.json       configuration and exact counts

Of `MiniworldConfig`, `num_documents` are the rows and `num_shards` the files; each row has one image.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.miniworld import language
from pipelines.miniworld.config import MiniworldConfig
from pipelines.miniworld.folder import read_world_summary, write_world_folder
from pipelines.miniworld.link_kinds import LINK_KINDS
from pipelines.miniworld.mmc4_page import PageImage
from pipelines.miniworld.render import encode, sample_file_form, size_px
from pipelines.miniworld.scene import pick, sample_scene

VERSION = 1
"""Incremented when the same configuration gives other bytes than before."""
BUILD = "emu build laion --metadata '{out}/metadata/*'"
ROW_GROUP = 64

ROW_FAULTS = {"null_caption": "no_caption", "blank_caption": "no_caption", "null_url": "no_url"}
"""Faults of a row that gives no pair -> the reason for which a build drops it."""
FAULTS: tuple[str, ...] = (
    *("not_found", "null_caption", "throttled", "html", "noai", "control_characters", "loopback"),
    *("redirect", "blank_caption", "truncated", "flaky", "null_url", "huge", "redirect_loopback"),
    *("empty", "forbidden", "local_file"),
)
"""Every fault, in the order in which they appear: kinds of links, faults of rows, and captions that are cleaned."""


@dataclass(frozen=True)
class LaionSummary:
    """Exact counts of a world: what a correct build without cuts must find in it.

    Attributes:
        num_records: rows of all files.
        num_dropped_by_reason: rows that give no link to fetch.
        num_links: links that are fetched.
        num_links_by_kind: the same by link_kinds.LINK_KINDS.
        num_pairs_kept: links whose image arrives in the end.
        num_files: image files on disk.
    """

    config: MiniworldConfig
    num_records: int
    num_dropped_by_reason: dict[str, int]
    num_links: int
    num_links_by_kind: dict[str, int]
    num_pairs_kept: int
    num_files: int
    version: int = VERSION


@dataclass(frozen=True)
class Row:
    """A row: its image, its caption, an alternative text that does not describe it, and its scores."""

    image: PageImage
    caption: str | None
    alt_text: str
    url: str | None
    scores: Mapping[str, float]
    index: int

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return size_px(self.image.scene, self.image.form.shorter_side_px)


def write_world(config: MiniworldConfig, directory: Path | str) -> LaionSummary:
    """Write the world of `config` into `directory` and return its counts; the same bytes each time.

    Raises:
        FileExistsError: `directory` or `DIR.partial` contains something else; nothing is deleted then.
    """
    write_world_folder(directory, "laion", VERSION, config, lambda partial: _write(config, partial))
    config, counts = read_world_summary(directory, VERSION)
    return LaionSummary(config=config, **counts)


def fault_of(config: MiniworldConfig, index: int) -> str | None:
    """The fault of the row at `index`, or None; faulty rows are evenly spread."""
    turn = int(index * config.bad_share + 1e-9)
    is_faulty = int((index + 1) * config.bad_share + 1e-9) > turn
    return FAULTS[turn % len(FAULTS)] if is_faulty else None


def sample_row(config: MiniworldConfig, index: int, fault: str | None = None) -> Row:
    """The row at `index`; it depends on the seed and the index only, not on the size of the world."""
    rng = np.random.default_rng([config.seed, index, 1])
    scene = sample_scene(rng, config.max_things)
    form = sample_file_form(rng)
    kind = fault if fault in LINK_KINDS else "image"
    name = f"l{config.seed}_{index:06d}.{form.format}"
    image = PageImage(name, scene, form, kind, language.questions(scene, rng))
    scores: dict[str, float] = dict(
        zip(SCORES, rng.uniform(0, 1, len(SCORES)).round(4).tolist(), strict=True)
    )
    return Row(
        image=image,
        caption=_caption(language.describe(scene, rng), fault),
        alt_text=pick(rng, language.FILLERS),
        url=None if fault == "null_url" else image.raw_url,
        scores=scores,
        index=index,
    )


SCORES = ("similarity", "punsafe", "pwatermark")


def _caption(text: str, fault: str | None) -> str | None:
    if fault == "control_characters":
        return f"\x00 {text}\x07\n"
    return {"null_caption": None, "blank_caption": " \t\n"}.get(fault or "", text)


def _laion_2b_en(row: Row) -> dict[str, Any]:
    width, height = row.size
    return {
        "SAMPLE_ID": row.index,
        "URL": row.url,
        "TEXT": row.caption,
        "HEIGHT": height,
        "WIDTH": width,
        "LICENSE": "?",
        "NSFW": "UNLIKELY",
        "similarity": row.scores["similarity"],
    }


def _laion_coco(row: Row) -> dict[str, Any]:
    width, height = row.size
    return {
        "URL": row.url,
        "TEXT": row.alt_text,
        "top_caption": row.caption,
        "all_captions": [row.alt_text],
        "all_similarities": [0.25, float("nan")],
        "WIDTH": float(width),
        "HEIGHT": float(height),
        "hash": -row.index,
        **row.scores,
    }


def _joined(row: Row) -> dict[str, Any]:
    width, height = row.size
    sizes = {"width": None, "height": None} if row.index % 5 == 0 else None
    return {
        "url": row.url,
        "text": row.caption,
        **(sizes or {"width": width, "height": height}),
        "hash": row.index,
        **row.scores,
        "aesthetic": 10 * row.scores["similarity"],
    }


FORMS: tuple[Callable[[Row], dict[str, Any]], ...] = (_laion_2b_en, _laion_coco, _joined)
"""LAION-2B-en, LAION-COCO (the caption is `top_caption`, not `TEXT`), and a joined aesthetic cut in lower case."""


def _write(config: MiniworldConfig, directory: Path) -> LaionSummary:
    for name in ("metadata", "images"):
        (directory / name).mkdir()
    bounds = [i * config.num_documents // config.num_shards for i in range(config.num_shards + 1)]
    dropped: Counter[str] = Counter()
    links: Counter[str] = Counter()
    truths: list[dict[str, Any]] = []
    for shard, (start, stop) in enumerate(itertools.pairwise(bounds)):
        rows = []
        for index in range(start, stop):
            fault = fault_of(config, index)
            row = sample_row(config, index, fault)
            rows.append(FORMS[shard % len(FORMS)](row))
            if fault in ROW_FAULTS:
                dropped[ROW_FAULTS[fault]] += 1
                continue
            links[row.image.link_kind] += 1
            truths.append(_truth(row))
            if LINK_KINDS[row.image.link_kind].has_file:
                data = encode(row.image.scene, row.image.form)
                (directory / "images" / row.image.name).write_bytes(data)
        path = directory / "metadata" / f"part-{shard:05d}-miniworld.snappy.parquet"
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=ROW_GROUP)
    lines = (json.dumps(truth) + "\n" for truth in truths)
    (directory / "truth.jsonl").write_text("".join(lines))
    return LaionSummary(
        config=config,
        num_records=config.num_documents,
        num_dropped_by_reason=dict(sorted(dropped.items())),
        num_links=links.total(),
        num_links_by_kind=dict(sorted(links.items())),
        num_pairs_kept=sum(n for kind, n in links.items() if LINK_KINDS[kind].arrives),
        num_files=sum(n for kind, n in links.items() if LINK_KINDS[kind].has_file),
    )


def _truth(row: Row) -> dict[str, Any]:
    width, height = row.size
    kind = LINK_KINDS[row.image.link_kind]
    return {
        "image_name": row.image.name,
        "url": row.url,
        "link_kind": row.image.link_kind,
        "arrives": kind.arrives,
        "file": f"images/{row.image.name}" if kind.has_file else None,
        "width": width,
        "height": height,
        "orientation": row.image.form.orientation,
        "text": " ".join((row.caption or "").replace("\0", " ").replace("\7", " ").split()),
        "caption": language.caption(row.image.scene),
        "questions": [dataclasses.asdict(question) for question in row.image.questions],
        "scene": dataclasses.asdict(row.image.scene),
    }
