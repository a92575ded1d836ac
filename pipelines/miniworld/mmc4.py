"""The synthetic world as an MMC4 download: document shards, the images they link to, and the ground truth.

DIR/documents/docs_shard_0_v2.jsonl, docs_shard_1_v2.jsonl.zip, docs_shard_2_v2.jsonl.gz, ...
DIR/images/NAME        a file for each link that has one; serve this folder with `server`
DIR/truth.jsonl        one line per link of a well-formed document: scene, caption, questions
DIR/summary.json       configuration and exact counts
"""

from __future__ import annotations

import gzip
import io
import itertools
import json
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from pipelines.miniworld.config import MiniworldConfig
from pipelines.miniworld.folder import read_world_summary, write_world_folder
from pipelines.miniworld.link_kinds import LINK_KINDS
from pipelines.miniworld.mmc4_page import MALFORMED, Page, fault_of, sample_page, to_line
from pipelines.miniworld.render import encode

VERSION = 1
"""Incremented when the same configuration gives other bytes than before."""
_FORMS = (".jsonl", ".jsonl.zip", ".jsonl.gz")
_EARLIEST = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip can store


@dataclass(frozen=True)
class MiniworldSummary:
    """Exact counts of a world: what a correct build must find in it.

    Attributes:
        num_records: lines of all shards.
        num_malformed_by_kind: lines that are no valid document, by mmc4_page.MALFORMED.
        num_documents: valid documents, those without images included.
        num_documents_kept: valid documents with at least one image kept.
        num_links: images linked from valid documents.
        num_links_by_kind: the same by link_kinds.LINK_KINDS.
        num_images_arriving: links whose image arrives in the end.
        num_images_low_similarity: arriving images that no sentence describes.
        num_images_kept: arriving images above any threshold within mmc4_page.SIMILARITY_GAP.
        num_files: image files on disk, those of noai and truncated links included.
        num_sentences: sentences of valid documents.
        num_questions: questions in the ground truth.
    """

    config: MiniworldConfig
    num_records: int
    num_malformed_by_kind: dict[str, int]
    num_documents: int
    num_documents_kept: int
    num_links: int
    num_links_by_kind: dict[str, int]
    num_images_arriving: int
    num_images_low_similarity: int
    num_images_kept: int
    num_files: int
    num_sentences: int
    num_questions: int
    version: int = VERSION


def write_mmc4(config: MiniworldConfig, directory: Path | str) -> MiniworldSummary:
    """Write the world of `config` into `directory` and return its counts; the same bytes each time.

    An existing world of the same configuration is left as it is.

    Raises:
        FileExistsError: `directory` or `DIR.partial` contains something else; nothing is deleted then.
    """
    write_world_folder(directory, "mmc4", VERSION, config, lambda partial: _write(config, partial))
    return read_summary(directory)


write_world = write_mmc4
BUILD = "emu build mmc4 --documents '{out}/documents/*'"


def read_summary(directory: Path | str) -> MiniworldSummary:
    """The summary of a world.

    Raises:
        FileNotFoundError: the folder has none.
        ValueError: another version of this module wrote it.
    """
    config, counts = read_world_summary(directory, VERSION)
    return MiniworldSummary(config=config, **counts)


def read_truth(directory: Path | str) -> Iterator[dict[str, Any]]:
    """The lines of truth.jsonl, see mmc4_page.Page.truth."""
    with (Path(directory) / "truth.jsonl").open() as lines:
        for line in lines:
            yield json.loads(line)


@dataclass
class _Tally:
    """Counts while writing; the source of the summary."""

    counts: Counter[str] = field(default_factory=Counter)
    malformed: Counter[str] = field(default_factory=Counter)
    links: Counter[str] = field(default_factory=Counter)

    def add(self, page: Page) -> None:
        arriving = [i for i, p in enumerate(page.images) if LINK_KINDS[p.link_kind].arrives]
        kept = [i for i in arriving if page.is_described(i)]
        self.links.update(image.link_kind for image in page.images)
        self.counts.update(
            num_documents=1,
            num_documents_kept=int(bool(kept)),
            num_links=len(page.images),
            num_images_arriving=len(arriving),
            num_images_low_similarity=len(arriving) - len(kept),
            num_images_kept=len(kept),
            num_files=sum(LINK_KINDS[p.link_kind].has_file for p in page.images),
            num_sentences=len(page.sentences),
            num_questions=sum(len(p.questions) for p in page.images),
        )

    def summary(self, config: MiniworldConfig) -> MiniworldSummary:
        return MiniworldSummary(
            config=config,
            num_records=self.counts["num_documents"] + self.malformed.total(),
            num_malformed_by_kind=dict(sorted(self.malformed.items())),
            num_links_by_kind=dict(sorted(self.links.items())),
            **{name: self.counts[name] for name in _COUNTED},
        )


_COUNTED = (
    *("num_documents", "num_documents_kept", "num_links", "num_images_arriving"),
    *("num_images_low_similarity", "num_images_kept", "num_files", "num_sentences"),
    "num_questions",
)


def _write(config: MiniworldConfig, directory: Path) -> MiniworldSummary:
    (directory / "documents").mkdir()
    (directory / "images").mkdir()
    tally = _Tally()
    bounds = [i * config.num_documents // config.num_shards for i in range(config.num_shards + 1)]
    progress = tqdm(total=config.num_documents, desc="write", unit="page", disable=None)
    with progress, (directory / "truth.jsonl").open("w") as truth:
        for shard, (start, stop) in enumerate(itertools.pairwise(bounds)):
            lines = []
            for index in range(start, stop):
                lines.append(_write_page(config, index, directory / "images", truth, tally))
                progress.update()
            form = _FORMS[shard % len(_FORMS)]
            write_lines(directory / "documents" / f"docs_shard_{shard}_v2{form}", lines)
    return tally.summary(config)


def _write_page(
    config: MiniworldConfig, index: int, images: Path, truth: TextIO, tally: _Tally
) -> bytes:
    """Write the images and the ground truth of a page, count it, and return its line."""
    fault = fault_of(config, index)
    page = sample_page(config, index, fault)
    if fault in MALFORMED:  # nobody can read its links, so they need no files
        tally.malformed[fault] += 1
        return MALFORMED[fault](page.document())
    for image in page.images:
        if LINK_KINDS[image.link_kind].has_file:
            (images / image.name).write_bytes(encode(image.scene, image.form))
    truth.writelines(json.dumps(row) + "\n" for row in page.truth())
    tally.add(page)
    return to_line(page.document())


def write_lines(path: Path, lines: Iterable[bytes]) -> None:
    """Write the lines, each ended by a line feed; `.gz` and `.zip` (of one member) compress.

    The bytes depend on the lines only, not on times or users. The member of a zip is named as the file without `.zip`,
    as MMC4 distributes its shards.
    """
    data = b"".join(line + b"\n" for line in lines)
    path.write_bytes(_PACK[path.suffix](path, data) if path.suffix in _PACK else data)


def _zip(path: Path, data: bytes) -> bytes:
    member = zipfile.ZipInfo(path.name.removesuffix(".zip"), date_time=_EARLIEST)
    member.compress_type = zipfile.ZIP_DEFLATED
    member.create_system = 3  # Unix, whichever system writes it
    member.external_attr = 0o644 << 16
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(member, data)
    return out.getvalue()


def _gzip(path: Path, data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


_PACK = {".zip": _zip, ".gz": _gzip}
