"""Patterns of inputs that reach into the folder of the output.

Such a build would read its own files: started again, it would see other inputs than the first time.
"""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from pipelines.core.build_plan import PLAN_FILE
from pipelines.core.erase import REPORT_FILE
from pipelines.core.lines import InputError, located
from pipelines.core.lock import LOCK
from pipelines.core.storage import TEMPORARY
from pipelines.core.workspace import WORK
from schemas.manifest import MANIFEST_FILE
from schemas.shard import FEATURES, INDEXES, LEDGERS, SHARDS, shard_name

_MAGIC = re.compile(r"[*?\[]")


def refuse_overlap(patterns: Sequence[str], base: str, out: str, corpus: str) -> None:
    """Raise `InputError` for the first pattern that matches what a build of the corpus in `out` writes.

    Whether it exists yet does not matter. Names without a wildcard are what they are, wherever they lie.

    Args:
        patterns: as of `LineSource`.
        base: folder that relative patterns are relative to.
        out: absolute path or address of the dataset.
        corpus: the shards are named after it.
    """
    for pattern in patterns:
        match = _first_match(pattern, base, out, corpus)
        if match is not None:
            raise InputError(
                f"'{pattern}' would also match '{match}', which this build writes: started again, it "
                "would see other inputs. Name the documents more closely, as in 'FOLDER/*.jsonl.zip', "
                "or choose an output elsewhere"
            )


def _first_match(pattern: str, base: str, out: str, corpus: str) -> str | None:
    try:
        (system, path), (other, root) = located(pattern, base), located(out, base)
        if not _MAGIC.search(path) or type(system) is not type(other) or system.exists(path):
            return None
    except (OSError, ValueError, ImportError):
        return None  # it is named where the inputs are looked up, or the output is made
    if isinstance(system, LocalFileSystem):
        path, root = _without_links(path), os.path.realpath(root)
    expression = re.compile(glob_translate(path))
    return next((p for p in _written(root, corpus) if expression.match(p)), None)


def _without_links(pattern: str) -> str:
    """The pattern with its part before the first wildcard as the file system knows it."""
    parts = pattern.split("/")
    place = next(n for n, part in enumerate(parts) if _MAGIC.search(part))
    folder = os.path.realpath("/".join(parts[:place]) or "/")
    return "/".join([folder.rstrip("/"), *parts[place:]])


def _written(root: str, corpus: str) -> Iterator[str]:
    """Every kind of file and folder that a build makes, once; the folders above the output too."""
    yield root
    yield from (f"{root}/{name}" for name in (MANIFEST_FILE, REPORT_FILE, PLAN_FILE, LOCK))
    shard, level = shard_name(corpus, 0), f"{WORK}/01-stage"
    for folder, suffix in ((SHARDS, "tar"), (INDEXES, "parquet"), (LEDGERS, "parquet")):
        yield from (f"{root}/{folder}", f"{root}/{folder}/{shard}.{suffix}")
    yield from (f"{root}/{FEATURES}", f"{root}/{FEATURES}/{shard}.arrow")
    yield from (f"{root}/{p}" for p in (WORK, TEMPORARY, f"{TEMPORARY}/{shard}.tar.1.0123abcd"))
    yield from (f"{root}/{level}", f"{root}/{level}/{shard}.arrow")
    yield from map(str, PurePosixPath(root).parents)
