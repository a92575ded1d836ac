"""What docs/data.md says of reasons and options is what the code says."""

import re
from dataclasses import fields
from pathlib import Path

from jobs.build_mmc4 import BuildMmc4
from pipelines.corpora.mmc4.rules import LINK_REASONS, REASONS
from pipelines.filters import FILTERS


def test_every_reason_stands_there_with_its_meaning(repository: Path):
    text = (repository / "docs/data.md").read_text()
    rows = dict(re.findall(r"^\| `([a-z0-9_]+)` \| (.+) \|$", text, re.MULTILINE))
    for word, meaning in REASONS.items():
        again = " *again*" if word in LINK_REASONS and LINK_REASONS[word].retryable else ""
        assert rows.pop(word) == meaning + again, word
    assert rows == {}


def test_every_option_and_filter_that_is_named_exists(repository: Path):
    text = (repository / "docs/data.md").read_text()
    known = {"--" + f.name.replace("_", "-") for f in fields(BuildMmc4)} | {"--working-dir"}
    named = set(re.findall(r"--[a-z][a-z-]+", text))
    assert named <= known, named - known
    assert set(re.findall(r"^\| `(\w+)\(", text, re.MULTILINE)) == set(FILTERS)
