"""Inputs with known scores of the official scorers."""

import json
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def golden_metrics(shared: Path) -> Path:
    """The folder of inputs with known scores: `shared/golden/metrics`."""
    folder = shared / "golden" / "metrics"
    if not folder.is_dir():
        pytest.skip("no folder shared/golden/metrics beside the repository")
    return folder


@pytest.fixture(scope="session")
def abstract_scenes(golden_metrics: Path) -> tuple[dict[int, str], dict[int, list[str]]]:
    """Predictions and references: two candidates per image, each scored as a sample of its own."""
    sentences: dict[str, list[str]] = {}
    for record in json.loads((golden_metrics / "abstract48S.json").read_text()):
        sentences.setdefault(record["image_id"], []).append(record["caption"])
    candidates = json.loads((golden_metrics / "abstract_candsB.json").read_text())
    return (
        {index: record["caption"] for index, record in enumerate(candidates)},
        {index: sentences[record["image_id"]] for index, record in enumerate(candidates)},
    )
