"""Traps of other tools that no other test shows to be avoided; `docs/traps.md` lists all, each with its tests."""

import importlib
import re
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import trustme

from pipelines.core.pipeline import Construct, Stage
from pipelines.corpora import CORPORA
from pipelines.corpora.build import Build
from pipelines.download.config import FetchConfig
from pipelines.download.fetcher import Fetcher
from pipelines.transforms.fetch_links import is_fetch
from schemas.sample import SEGMENT_TYPE
from tests.servers.web import WebServer, response


def test_one_tls_context_serves_all_requests(
    monkeypatch: pytest.MonkeyPatch,
    quick_config: Callable[..., FetchConfig],
    authority: tuple[trustme.CA, Path],
) -> None:
    made, ca_file = authority
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.issue_cert("images.example").configure_cert(served)
    contexts: list[ssl.SSLContext] = []
    create = ssl.create_default_context

    def counted(*args: Any, **options: Any) -> ssl.SSLContext:
        contexts.append(create(*args, **options))
        return contexts[-1]

    monkeypatch.setattr(ssl, "create_default_context", counted)
    with WebServer({f"/{n}": response(200, b"x") for n in range(20)}, served) as server:
        config = quick_config(allow_host=(server.allow(),), ca_file=ca_file)
        with Fetcher(config) as fetcher:
            for _ in range(2):
                results = fetcher.fetch_many([server.url(f"/{n}") for n in range(20)])
                assert [r.reason for r in results] == [None] * 20
    assert len(contexts) == 1


@pytest.mark.parametrize(
    ("package", "homes"),
    [
        ("img2dataset", {"pipelines/download/img2dataset.py"}),
        ("decord", {"pipelines/videos/decode.py", "emu/data/video.py"}),
    ],
)
def test_packages_that_age_stand_behind_one_file(
    repository: Path, package: str, homes: set[str]
) -> None:
    line = re.compile(
        rf"^\s*(?:import {package}\b|from {package}[. ]|.*import_module\(.{package}.\))",
        re.MULTILINE,
    )
    files = (p for half in ("pipelines", "emu", "jobs") for p in (repository / half).rglob("*.py"))
    found = {str(p.relative_to(repository)) for p in files if line.search(p.read_text())}
    assert found == homes, "one file of each half"


def binary_types(type_: pa.DataType) -> Iterator[pa.DataType]:
    """The types of bytes within a type."""
    if pa.types.is_binary(type_) or pa.types.is_large_binary(type_):
        yield type_
    for number in range(type_.num_fields):
        yield from binary_types(type_.field(number).type)


@pytest.mark.parametrize("corpus", CORPORA)
def test_columns_of_media_hold_more_than_two_gigabytes(corpus: str) -> None:
    module: Any = importlib.import_module(CORPORA[corpus])
    pipeline = module.pipeline(Build(module.READER(["x"])), module.Rules())
    steps = [step for stage in pipeline.stages if isinstance(stage, Stage) for step in stage.steps]
    (fetch,) = (step for step in steps if is_fetch(step))
    assert isinstance(fetch, Construct)
    fields = fetch.args[1].fields
    found = [*binary_types(SEGMENT_TYPE), *(t for f in fields for t in binary_types(f.type))]
    assert len(found) > 1 and set(found) == {pa.large_binary()}
