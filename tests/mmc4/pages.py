"""Small documents with images of one colour each, so that a test can tell which image is where."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipelines.core.run import run
from pipelines.corpora.build import Build
from pipelines.corpora.mmc4 import rules as mmc4
from pipelines.corpora.mmc4.rules import Rules
from pipelines.download.fetcher import FetchConfig
from pipelines.miniworld.link_kinds import link_url
from pipelines.miniworld.server import ImageServer
from pipelines.readers.jsonl import LineSource
from pipelines.transforms.fetch_links import Prior, has_retryable
from schemas.manifest import Manifest
from schemas.sample import Sample
from schemas.shard import read_tar

COLOURS = {
    "red": (220, 20, 20),
    "green": (20, 200, 20),
    "blue": (20, 20, 220),
    "grey": (99, 99, 99),
}


def write_images(folder: Path) -> Path:
    """A folder of images `<colour>.png`."""
    folder.mkdir()
    for name, colour in COLOURS.items():
        Image.new("RGB", (48, 40), colour).save(folder / f"{name}.png")
    return folder


def colour_of(image: bytes | None) -> str:
    """The name of a picture's colour."""
    pixel = np.asarray(Image.open(io.BytesIO(image or b"")).convert("RGB"))[20, 20].astype(int)
    return min(COLOURS, key=lambda name: int(np.abs(pixel - COLOURS[name]).sum()))


def page(
    texts: Sequence[str],
    images: Sequence[str],
    similarity: Sequence[Sequence[float]],
    matched: Sequence[int] | None = None,
) -> dict[str, Any]:
    """A document; an image is `colour` or `kind/colour`."""
    kinds = [i.rpartition("/")[::2] for i in images]
    best = matched or [int(np.argmax(row)) for row in similarity]
    return {
        "url": "http://pages.example/",
        "text_list": list(texts),
        "image_info": [
            {"raw_url": link_url(kind or "image", f"{colour}.png"), "matched_text_index": index}
            for (kind, colour), index in zip(kinds, best, strict=True)
        ],
        "similarity_matrix": [list(row) for row in similarity],
    }


def write_pages(path: Path, pages: Sequence[Mapping[str, Any] | str]) -> Path:
    """The documents as a `.jsonl`; a string is a line as it is."""
    path.write_text("".join(f"{p if isinstance(p, str) else json.dumps(p)}\n" for p in pages))
    return path


def build(
    documents: Path | str,
    out: Path,
    server: ImageServer,
    *,
    rules: Rules | None = None,
    retry: bool = False,
    samples_per_shard: int = 1000,
    runner: Any = None,
    **fetch: Any,
) -> Manifest:
    """The dataset of the documents, fetched from the server."""
    build = Build(
        LineSource([str(documents)], samples_per_shard),
        FetchConfig(allow_host=(server.allow_host,), backoff_s=0.01, **fetch),
        prior=Prior(str(out)) if retry else None,
    )
    pipeline = mmc4.pipeline(build, rules or Rules())
    redo = has_retryable(pipeline.reasons) if retry else None
    return run(pipeline, str(out), runner, redo=redo, progress=False)


def samples(out: Path) -> list[Sample]:
    """All samples of a dataset."""
    tars = sorted((out / "shards").iterdir())
    return [sample for tar in tars for sample in read_tar(tar.open("rb"), tar.name)]


def shown(sample: Sample) -> list[str]:
    """The sample as texts, and `[colour]` for pictures."""
    return [
        s.text or "" if s.kind == "text" else f"[{colour_of(s.image)}]" for s in sample.segments
    ]
