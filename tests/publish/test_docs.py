"""The reasons, options and filters in docs/data.md are those of the code."""

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from jobs.build_miniworld import BuildMiniworld
from jobs.build_mmc4 import BuildMmc4
from jobs.building import BuildOptions
from pipelines.corpora.mmc4 import rules as mmc4
from pipelines.download.config import FetchConfig
from pipelines.filters import FILTERS
from pipelines.miniworld.config import MiniworldConfig
from schemas.sample import SAMPLES, Sample, Segment


def test_every_reason_is_listed_with_its_meaning(repository: Path):
    text = (repository / "docs/data.md").read_text()
    rows = dict(re.findall(r"^\| `([a-z0-9_]+)` \| (.+) \|$", text, re.MULTILINE))
    pipeline = mmc4.pipeline(mmc4.READER(["x.jsonl"]), mmc4.Rules(), FetchConfig())
    for word, reason in pipeline.reasons.items():
        mark = " *retryable*" if reason.retryable else ""
        assert rows.pop(word) == reason.meaning + mark, word
    assert rows == {}


def test_every_option_and_filter_exists(repository: Path):
    text = (repository / "docs/data.md").read_text()
    kinds = (BuildMmc4, BuildOptions, BuildMiniworld, MiniworldConfig)
    names = {f.name for kind in kinds for f in fields(kind)}
    known = {"--" + name.replace("_", "-") for name in names} | {"--working-dir"}
    named = set(re.findall(r"--[a-z][a-z-]+", text))
    assert named <= known, named - known
    assert set(re.findall(r"^\| `(\w+)\(", text, re.MULTILINE)) == set(FILTERS)


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
