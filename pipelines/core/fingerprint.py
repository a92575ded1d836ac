"""Fingerprint: hashes of what a dataset is made from, and what differs between two of them."""

import hashlib
import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.core.errors import EngineError
from pipelines.core.stage import Pipeline
from schemas.manifest import Fingerprint
from schemas.sample import canonical_json

PACKAGES = ("pipelines", "schemas")


def fingerprint(pipeline: Pipeline) -> Fingerprint:
    """Hashes of the inputs, the configuration and the code of a pipeline."""
    stages = [s.name for s in pipeline.stages]
    described = {"corpus": pipeline.corpus, "stages": stages, "config": plain_config(pipeline)}
    return Fingerprint(
        inputs=pipeline.source.fingerprint(),
        config=hashlib.sha256(canonical_json(described).encode()).hexdigest(),
        code=code_hash(PACKAGES),
    )


def plain_config(pipeline: Pipeline) -> dict[str, Any]:
    """The configuration as JSON values; raises `EngineError` if it has others."""
    try:
        return json.loads(canonical_json(dict(pipeline.config)))
    except (TypeError, ValueError) as error:
        raise EngineError(
            f"the config of pipeline '{pipeline.corpus}' is not JSON: {error}"
        ) from error


def code_hash(packages: Sequence[str]) -> str:
    """A hash of the source files of packages, the same wherever they are installed."""
    digest = hashlib.sha256()
    for package in packages:
        found = importlib.import_module(package).__file__
        assert found is not None, package
        folder = Path(found).parent
        for file in sorted(folder.rglob("*.py")):
            name = f"{package}/{file.relative_to(folder).as_posix()}"
            digest.update(f"{name}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def differences(
    old: Fingerprint,
    new: Fingerprint,
    old_config: Mapping[str, Any],
    new_config: Mapping[str, Any],
) -> str:
    """In words, what differs between two fingerprints; empty if they are equal."""
    found = []
    if old.inputs != new.inputs:
        found.append("the inputs (files, sizes or contents)")
    if old.config != new.config:
        found.append(f"the configuration ({_config_words(old_config, new_config)})")
    if old.code != new.code:
        found.append(f"the code of {' and '.join(PACKAGES)} (another release?)")
    return "; ".join(found)


def _config_words(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    names = sorted(n for n in {*old, *new} if old.get(n) != new.get(n))
    if not names:
        return "its corpus or stages"
    return ", ".join(f"{n}: {old.get(n)!r} there, {new.get(n)!r} now" for n in names)
