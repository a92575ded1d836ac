"""The reasons and options in docs/data.md are those of the code."""

import importlib
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from jobs import COMMANDS
from jobs.building import BuildOptions
from pipelines.core.pipeline import Reason
from pipelines.corpora import CORPORA, adopted
from pipelines.corpora.build import Build
from pipelines.download.config import FetchConfig
from pipelines.miniworld.config import MiniworldConfig
from pipelines.readers.tars import TarSource
from schemas.sample import SAMPLES, Sample, Segment


def reasons_of_all_corpora() -> Iterator[tuple[str, Reason]]:
    for name in CORPORA.values():
        corpus = importlib.import_module(name)
        pipeline = corpus.pipeline(Build(corpus.READER(["x"]), media="x"), corpus.Rules())
        yield from pipeline.reasons.items()
    yield from {**adopted.ADOPT_REASONS, **TarSource(["x"]).reasons}.items()


def test_every_reason_is_listed_with_its_meaning(repository: Path):
    text = (repository / "docs/data.md").read_text()
    rows = set(re.findall(r"^\| `([a-z0-9_]+)` \| (.+) \|$", text, re.MULTILINE))
    known = set()
    for word, reason in reasons_of_all_corpora():
        mark = " *retryable*" if reason.retryable else ""
        known.add((word, reason.meaning + mark))
    assert known <= rows, known - rows
    assert rows <= known, f"reasons that no corpus has: {rows - known}"


def test_every_option_exists(repository: Path):
    text = (repository / "docs/data.md").read_text()
    jobs = [importlib.import_module(f"jobs.{c.module}") for c in COMMANDS.values()]
    options = [
        kind
        for job in jobs
        for kind in vars(job).values()
        if isinstance(kind, type) and is_dataclass(kind) and kind.__module__ == job.__name__
    ]
    names = {
        f.name
        for kind in (*options, BuildOptions, FetchConfig, MiniworldConfig)
        for f in fields(kind)
    }
    known = {"--" + name.replace("_", "-") for name in names} | {"--working-dir"}
    named = set(re.findall(r"--[a-z][a-z-]+", text))
    assert named <= known, named - known


def test_the_example_of_a_filter_works(repository: Path):
    text = (repository / "docs/data.md").read_text()
    example = next(c for c in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "Filter(" in c)
    scope: dict[str, Any] = {}
    exec(example, scope)
    texts = [Segment.of_text("x")] * 3
    rows = [Sample(f"s-{n}", "test", tuple(texts[:n])).as_row() for n in (1, 2, 3)]
    found = scope["max_segments"]()
    assert found.test(SAMPLES.table(rows)).to_pylist() == [None, None, "many_segments"]
    assert set(found.reasons) == {"many_segments"}
