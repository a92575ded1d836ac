"""The drawn world as an MMC4 download: document shards, the pictures they link to, and the truth.

DIR/documents/docs_shard_0_v2.jsonl, docs_shard_1_v2.jsonl.zip, docs_shard_2_v2.jsonl.gz, ...
DIR/images/NAME        a file for each link that has one; serve this folder with `server`
DIR/truth.jsonl        a line for each link of a well-formed document: scene, caption, questions
DIR/summary.json       configuration and exact counts; the folder appears complete or not at all
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from pipelines.miniworld.archive import write_lines
from pipelines.miniworld.config import MiniworldConfig
from pipelines.miniworld.link_kinds import LINK_KINDS
from pipelines.miniworld.mmc4_page import Page, draw_page
from pipelines.miniworld.mmc4_trouble import MALFORMED, to_line, trouble_of
from pipelines.miniworld.render import encode

VERSION = 1
"""Raised when the same configuration gives other bytes than before."""
DRAWING = ".drawing"
"""A file in `DIR.partial` that says that this module made it; gone before the folder gets its name."""

_FORMS = (".jsonl", ".jsonl.zip", ".jsonl.gz")


@dataclass(frozen=True)
class MiniworldSummary:
    """Exact counts of a written world: what a correct build must find in it.

    Attributes:
        num_records: lines of all shards.
        num_malformed_by_kind: lines that are no valid document, by mmc4_trouble.MALFORMED.
        num_documents: valid documents, those without pictures included.
        num_documents_kept: valid documents with at least one picture kept.
        num_links: pictures linked from valid documents.
        num_links_by_kind: the same by link_kinds.LINK_KINDS.
        num_images_arriving: links whose picture comes in the end.
        num_images_low_similarity: arriving pictures that no sentence describes.
        num_images_kept: arriving pictures above any threshold within mmc4_page.SIMILARITY_GAP.
        num_files: picture files on disk, those behind noai and truncated links included.
        num_sentences: sentences of valid documents.
        num_questions: questions in the truth.
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
    """Writes the world of `config` into `directory` and returns its counts; the same bytes each time.

    A world of the same configuration that is already there is left as it is. The folder gets its
    name when all is written, so that a killed run leaves only `DIR.partial`, which the next replaces.

    Raises:
        FileExistsError: something else is in `directory`, or in `DIR.partial`; nothing is deleted then.
    """
    directory = Path(directory).resolve()
    if _holds(directory, config):
        return read_summary(directory)
    if directory.is_file() or (directory.is_dir() and any(directory.iterdir())):
        raise FileExistsError(
            f"directory={str(directory)!r} holds something else than the world of this "
            "configuration: remove it or give an empty or new folder"
        )
    partial = directory.with_name(directory.name + ".partial")
    _clear(partial)
    summary = _write(config, partial)
    (partial / DRAWING).unlink()
    partial.replace(directory)
    return summary


def read_summary(directory: Path | str) -> MiniworldSummary:
    """The summary of a written world.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it was written by another version of this module.
    """
    data = _summary_json(Path(directory))
    if data["version"] != VERSION:
        raise ValueError(
            f"the world in {str(directory)!r} is of version {data['version']}, this code writes and "
            f"reads version {VERSION}: write it again with jobs/build_miniworld.py"
        )
    config = data.pop("config")
    for name in ("images_per_document", "sentences_per_document"):
        config[name] = tuple(config[name])
    return MiniworldSummary(config=MiniworldConfig(**config), **data)


def read_truth(directory: Path | str) -> Iterator[dict[str, Any]]:
    """The lines of truth.jsonl, see mmc4_page.Page.truth."""
    with (Path(directory) / "truth.jsonl").open() as lines:
        for line in lines:
            yield json.loads(line)


def _clear(partial: Path) -> None:
    """Delete what a killed run left; a folder that this module did not make stays."""
    if not partial.exists():
        return
    is_ours = (partial / DRAWING).is_file() or _is_summary(partial)
    if not is_ours and (not partial.is_dir() or any(partial.iterdir())):
        raise FileExistsError(
            f"{str(partial)!r} is where the world is drawn, and holds something else: move it away, or "
            "give another folder"
        )
    shutil.rmtree(partial)


def _is_summary(directory: Path) -> bool:
    """Whether a whole world is there, of whatever configuration and version."""
    if not (directory / "summary.json").is_file():
        return False
    try:
        data = _summary_json(directory)
    except ValueError:
        return False
    return isinstance(data, dict) and {"config", "version", "num_links_by_kind"} <= set(data)


def _summary_json(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "summary.json").read_text())


def _holds(directory: Path, config: MiniworldConfig) -> bool:
    """Whether the complete world of this configuration and version is already there."""
    if not _is_summary(directory):
        return False
    data = _summary_json(directory)
    wanted = json.loads(json.dumps(dataclasses.asdict(config)))
    return (data.get("config"), data.get("version")) == (wanted, VERSION)


@dataclass
class _Tally:
    """Counts while writing; mutable, private, turned into a summary at the end."""

    counts: Counter[str] = field(default_factory=Counter)
    malformed: Counter[str] = field(default_factory=Counter)
    links: Counter[str] = field(default_factory=Counter)

    def add(self, page: Page) -> None:
        arriving = [i for i, p in enumerate(page.pictures) if LINK_KINDS[p.link_kind].arrives]
        kept = [i for i in arriving if page.is_described(i)]
        self.links.update(picture.link_kind for picture in page.pictures)
        self.counts.update(
            num_documents=1,
            num_documents_kept=int(bool(kept)),
            num_links=len(page.pictures),
            num_images_arriving=len(arriving),
            num_images_low_similarity=len(arriving) - len(kept),
            num_images_kept=len(kept),
            num_files=sum(LINK_KINDS[p.link_kind].has_file for p in page.pictures),
            num_sentences=len(page.sentences),
            num_questions=sum(len(p.questions) for p in page.pictures),
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
    directory.mkdir(parents=True)
    (directory / DRAWING).touch()
    (directory / "documents").mkdir()
    (directory / "images").mkdir()
    tally = _Tally()
    bounds = [i * config.num_documents // config.num_shards for i in range(config.num_shards + 1)]
    progress = tqdm(total=config.num_documents, desc="drawing", unit="page", disable=None)
    with progress, (directory / "truth.jsonl").open("w") as truth:
        for shard, (start, stop) in enumerate(itertools.pairwise(bounds)):
            lines = []
            for index in range(start, stop):
                lines.append(_write_page(config, index, directory / "images", truth, tally))
                progress.update()
            form = _FORMS[shard % len(_FORMS)]
            write_lines(directory / "documents" / f"docs_shard_{shard}_v2{form}", lines)
    summary = tally.summary(config)
    text = json.dumps(dataclasses.asdict(summary), indent=2)
    (directory / "summary.json").write_text(text + "\n")
    return summary


def _write_page(
    config: MiniworldConfig, index: int, images: Path, truth: TextIO, tally: _Tally
) -> bytes:
    """Writes a page's pictures and truth, counts it, and returns its line."""
    trouble = trouble_of(config, index)
    page = draw_page(config, index, trouble)
    if trouble in MALFORMED:  # its links never come to light, so nothing lies behind them
        tally.malformed[trouble] += 1
        return MALFORMED[trouble](page.document())
    for picture in page.pictures:
        if LINK_KINDS[picture.link_kind].has_file:
            (images / picture.name).write_bytes(encode(picture.scene, picture.form))
    truth.writelines(json.dumps(row) + "\n" for row in page.truth())
    tally.add(page)
    return to_line(page.document())
