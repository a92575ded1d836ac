"""What docs/data.md says of reasons and options is what the code says."""

import re
from dataclasses import fields
from pathlib import Path

from jobs.build_mmc4 import BuildMmc4
from jobs.cli import BuildOptions
from pipelines.corpora.mmc4 import rules as mmc4
from pipelines.download.config import FetchConfig
from pipelines.filters import FILTERS


def test_every_reason_stands_there_with_its_meaning(repository: Path):
    text = (repository / "docs/data.md").read_text()
    rows = dict(re.findall(r"^\| `([a-z0-9_]+)` \| (.+) \|$", text, re.MULTILINE))
    pipeline = mmc4.pipeline(mmc4.READER(["x.jsonl"]), mmc4.Rules(), FetchConfig())
    for word, reason in pipeline.reasons.items():
        again = " *again*" if reason.retryable else ""
        assert rows.pop(word) == reason.meaning + again, word
    assert rows == {}


def test_every_option_and_filter_that_is_named_exists(repository: Path):
    text = (repository / "docs/data.md").read_text()
    names = {f.name for kind in (BuildMmc4, BuildOptions) for f in fields(kind)}
    known = {"--" + name.replace("_", "-") for name in names} | {"--working-dir"}
    named = set(re.findall(r"--[a-z][a-z-]+", text))
    assert named <= known, named - known
    assert set(re.findall(r"^\| `(\w+)\(", text, re.MULTILINE)) == set(FILTERS)
