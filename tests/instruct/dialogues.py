"""Small dialogues, and how a sample of one looks in a test."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.core.run import run
from pipelines.core.storage import Storage, read_parquet
from pipelines.corpora.build import Build
from pipelines.corpora.instruct import rules as instruct
from pipelines.corpora.instruct.rules import Rules
from pipelines.download.config import FetchConfig
from schemas.manifest import Manifest
from schemas.sample import Sample
from schemas.shard import LEDGERS, read_tar
from schemas.tables import LEDGER
from tests.mmc4.pages import colour_of, write_images

SIDES = {"u": "human", "a": "gpt", "s": "system"}


def talk(*turns: str, **more: Any) -> dict[str, Any]:
    """A record with `conversations`; each turn is `u:`, `a:` or `s:` and its text."""
    said = [{"from": SIDES[turn[0]], "value": turn[2:]} for turn in turns]
    return {"conversations": said, **more}


def build(
    folder: Path, records: Sequence[Any], rules: Rules | None = None, **fetch: Any
) -> Manifest:
    """The dataset `folder/out` of the records, with the media folder `folder/media` of coloured images."""
    if not (folder / "media").exists():
        write_images(folder / "media")
    texts = [r if isinstance(r, str) else json.dumps(r) for r in records]
    (folder / "d.json").write_text("[" + ",".join(texts) + "]")
    source = instruct.READER([str(folder / "d.json")], samples_per_shard=50)
    build = Build(source, FetchConfig(**fetch), media=str(folder / "media"))
    pipeline = instruct.pipeline(build, rules or Rules())
    return run(pipeline, str(folder / "out"), progress=False)


def samples(out: Path) -> list[Sample]:
    """All samples of a dataset."""
    return [s for tar in sorted((out / "shards").iterdir()) for s in read_tar(tar.open("rb"))]


def shown(sample: Sample) -> list[str]:
    """The segments as `user: text` and `user: [colour]`."""
    return [
        f"{s.role}: {s.text if s.kind == 'text' else f'[{colour_of(s.image)}]'}"
        for s in sample.segments
    ]


def reasons(out: Path) -> dict[int, tuple[str | None, str | None]]:
    """Reason and detail of each record, by its number."""
    storage = Storage(str(out))
    tables = [
        read_parquet(storage, f"{LEDGERS}/{p.name}", LEDGER) for p in (out / "ledger").iterdir()
    ]
    rows = [row for table in tables for row in table.to_pylist() if row["slot"] is None]
    return {row["record"]: (row["reason"], row["detail"]) for row in rows}
