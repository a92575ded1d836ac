"""The synthetic world as an MMC4 download: document shards, the images they link to, and the ground truth.

DIR/documents/docs_shard_0_v2.jsonl, docs_shard_1_v2.jsonl.zip, docs_shard_2_v2.jsonl.gz, ...
DIR/images/NAME        a file for each link that has one; serve this folder with `server`
DIR/truth.jsonl        one line per link of a well-formed document: scene, caption, questions
DIR/summary.json       configuration and exact counts

The folder is written atomically.
"""

from __future__ import annotations

import dataclasses
import gzip
import io
import itertools
import json
import shutil
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from pipelines.miniworld.config import MiniworldConfig
from pipelines.miniworld.link_kinds import LINK_KINDS
from pipelines.miniworld.mmc4_page import MALFORMED, Page, fault_of, sample_page, to_line
from pipelines.miniworld.render import encode

VERSION = 1
"""Incremented when the same configuration gives other bytes than before."""
IN_PROGRESS = ".in_progress"
"""Marks `DIR.partial` as a folder of this module; removed before the folder is renamed."""

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

    An existing world of the same configuration is left as it is. The folder gets its name when it is
    complete, so a killed run leaves only `DIR.partial`, which the next run replaces.

    Raises:
        FileExistsError: `directory` or `DIR.partial` contains something else; nothing is deleted then.
    """
    directory = Path(directory).resolve()
    if _holds(directory, config):
        return read_summary(directory)
    if directory.is_file() or (directory.is_dir() and any(directory.iterdir())):
        raise FileExistsError(
            f"directory={str(directory)!r} contains something other than the world of this "
            "configuration: remove it, or give an empty or new folder"
        )
    partial = directory.with_name(directory.name + ".partial")
    _clear(partial)
    summary = _write(config, partial)
    (partial / IN_PROGRESS).unlink()
    partial.replace(directory)
    return summary


def read_summary(directory: Path | str) -> MiniworldSummary:
    """The summary of a world.

    Raises:
        FileNotFoundError: the folder has none.
        ValueError: another version of this module wrote it.
    """
    data = _summary_json(Path(directory))
    if data["version"] != VERSION:
        raise ValueError(
            f"the world in {str(directory)!r} has version {data['version']}, this release reads "
            f"version {VERSION}: build it again with jobs/build_miniworld.py"
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
    """Delete what a killed run left; a folder that this module did not create is kept."""
    if not partial.exists():
        return
    is_ours = (partial / IN_PROGRESS).is_file() or _is_summary(partial)
    if not is_ours and (not partial.is_dir() or any(partial.iterdir())):
        raise FileExistsError(
            f"{str(partial)!r} is needed while the world is written, but contains something else: move it, or "
            "give another folder"
        )
    shutil.rmtree(partial)


def _is_summary(directory: Path) -> bool:
    """Whether the folder contains a complete world, of any configuration and version."""
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
    """Whether the folder contains the complete world of this configuration and version."""
    if not _is_summary(directory):
        return False
    data = _summary_json(directory)
    wanted = json.loads(json.dumps(dataclasses.asdict(config)))
    return (data.get("config"), data.get("version")) == (wanted, VERSION)


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
    directory.mkdir(parents=True)
    (directory / IN_PROGRESS).touch()
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
    summary = tally.summary(config)
    text = json.dumps(dataclasses.asdict(summary), indent=2)
    (directory / "summary.json").write_text(text + "\n")
    return summary


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
