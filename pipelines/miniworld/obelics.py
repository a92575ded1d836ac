"""The synthetic world as an OBELICS download: Parquet documents, the images they link to, and the ground truth.

DIR/documents/part-00000-miniworld.parquet, ...
DIR/images/NAME        a file for each link that has one; serve this folder with `server`
DIR/truth.jsonl        one line per link of a well-formed document: scene, caption, questions
DIR/summary.json       configuration and exact counts

The pages are those of `mmc4_page`, each image at its place before the sentence that describes it. A row has the columns
of the release (huggingface.co/datasets/HuggingFaceM4/OBELICS): `images`, `texts`, and `metadata` and `general_metadata`
as JSON.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.miniworld.config import MiniworldConfig
from pipelines.miniworld.folder import read_world_summary, write_world_folder
from pipelines.miniworld.link_kinds import LINK_KINDS
from pipelines.miniworld.mmc4_page import BROKEN_LINKS, NO_IMAGES, Page, sample_page
from pipelines.miniworld.render import encode

VERSION = 1
"""Incremented when the same configuration gives other bytes than before."""
BUILD = "emu build obelics --documents '{out}/documents/*'"
ROW_GROUP = 32
SCHEMA = pa.schema(
    [
        pa.field("images", pa.list_(pa.string())),
        pa.field("metadata", pa.string()),
        pa.field("general_metadata", pa.string()),
        pa.field("texts", pa.list_(pa.string())),
    ]
)

ROW_FAULTS = {
    "null_images": "no_lists",
    "short_texts": "lists_differ",
    "both_at_a_place": "place_unclear",
    NO_IMAGES: "no_image_listed",
    "blank_texts": "no_text_listed",
}
"""Faults of a row that is no document -> the reason for which a build drops it."""
FAULTS: tuple[str, ...] = (
    *("not_found", NO_IMAGES, "throttled", "null_images", "html", "short_texts", "noai"),
    *("both_at_a_place", "redirect", BROKEN_LINKS, "blank_texts", "truncated", "flaky", "loopback"),
    *("huge", "redirect_loopback", "empty", "forbidden", "local_file"),
)
"""Every fault, in the order in which they appear: kinds of links, and faults of rows."""


@dataclass(frozen=True)
class ObelicsSummary:
    """Exact counts of a world: what a correct build must find in it.

    Attributes:
        num_records: rows of all files.
        num_dropped_by_reason: rows that give no link to fetch.
        num_documents_kept: documents of which an image arrives in the end.
        num_links: links that are fetched.
        num_links_by_kind: the same by link_kinds.LINK_KINDS.
        num_images_kept: links whose image arrives.
        num_files: image files on disk.
    """

    config: MiniworldConfig
    num_records: int
    num_dropped_by_reason: dict[str, int]
    num_documents_kept: int
    num_links: int
    num_links_by_kind: dict[str, int]
    num_images_kept: int
    num_files: int
    version: int = VERSION


def write_world(config: MiniworldConfig, directory: Path | str) -> ObelicsSummary:
    """Write the world of `config` into `directory` and return its counts; the same bytes each time.

    Raises:
        FileExistsError: `directory` or `DIR.partial` contains something else; nothing is deleted then.
    """
    write_world_folder(
        directory, "obelics", VERSION, config, lambda partial: _write(config, partial)
    )
    config, counts = read_world_summary(directory, VERSION)
    return ObelicsSummary(config=config, **counts)


def fault_of(config: MiniworldConfig, index: int) -> str | None:
    """The fault of the row at `index`, or None; faulty rows are evenly spread."""
    turn = int(index * config.bad_share + 1e-9)
    is_faulty = int((index + 1) * config.bad_share + 1e-9) > turn
    return FAULTS[turn % len(FAULTS)] if is_faulty else None


def places(page: Page) -> list[tuple[int | None, str | None]]:
    """The places of a page in order: each the index of an image or a text."""
    image_before = {sentence: image for image, sentence in enumerate(page.matched)}
    found: list[tuple[int | None, str | None]] = []
    for index, sentence in enumerate(page.sentences):
        if index in image_before:
            found.append((image_before[index], None))
        found.append((None, sentence.text))
    return found


def row_of(page: Page, fault: str | None) -> dict[str, Any]:
    """The page as a row, with the fault if it is one of `ROW_FAULTS`."""
    found = places(page)
    urls = [None if image is None else page.images[image].raw_url for image, _ in found]
    texts = [text for _, text in found]
    about = [None if url is None else {"src": url, "document_url": page.url} for url in urls]
    row: dict[str, Any] = {
        "images": urls,
        "metadata": json.dumps(about),
        "general_metadata": json.dumps({"url": page.url}),
        "texts": texts,
    }
    faulty: dict[str, dict[str, Any]] = {
        "null_images": {"images": None},
        "short_texts": {"texts": texts[:-1]},
        "both_at_a_place": {"texts": [text or "" for text in texts]},
        "blank_texts": {"texts": [None if text is None else " \n" for text in texts]},
    }
    return row | faulty.get(fault or "", {})


def _write(config: MiniworldConfig, directory: Path) -> ObelicsSummary:
    for name in ("documents", "images"):
        (directory / name).mkdir()
    bounds = [i * config.num_documents // config.num_shards for i in range(config.num_shards + 1)]
    dropped: Counter[str] = Counter()
    links: Counter[str] = Counter()
    num_kept = 0
    with (directory / "truth.jsonl").open("w") as truth:
        for shard, (start, stop) in enumerate(itertools.pairwise(bounds)):
            rows = []
            for index in range(start, stop):
                fault = fault_of(config, index)
                page = sample_page(config, index, fault)
                rows.append(row_of(page, fault))
                if fault in ROW_FAULTS:
                    dropped[ROW_FAULTS[fault]] += 1
                    continue
                kinds = [image.link_kind for image in page.images]
                links.update(kinds)
                num_kept += any(LINK_KINDS[kind].arrives for kind in kinds)
                truth.writelines(json.dumps(line) + "\n" for line in page.truth())
                _write_images(page, directory / "images")
            path = directory / "documents" / f"part-{shard:05d}-miniworld.parquet"
            pq.write_table(
                pa.Table.from_pylist(rows, schema=SCHEMA), path, row_group_size=ROW_GROUP
            )
    return ObelicsSummary(
        config=config,
        num_records=config.num_documents,
        num_dropped_by_reason=dict(sorted(dropped.items())),
        num_documents_kept=num_kept,
        num_links=links.total(),
        num_links_by_kind=dict(sorted(links.items())),
        num_images_kept=sum(n for kind, n in links.items() if LINK_KINDS[kind].arrives),
        num_files=sum(n for kind, n in links.items() if LINK_KINDS[kind].has_file),
    )


def _write_images(page: Page, folder: Path) -> None:
    for image in page.images:
        if LINK_KINDS[image.link_kind].has_file:
            (folder / image.name).write_bytes(encode(image.scene, image.form))
