"""The contract of corpora, over the registry: a new corpus is tested by being registered."""

import gzip
import importlib
import re
from pathlib import Path
from typing import Any

import pytest

from pipelines.core.pipeline import ENGINE_REASONS, Pipeline
from pipelines.core.run import run
from pipelines.core.storage import Storage, read_parquet
from pipelines.corpora import CORPORA
from pipelines.corpora.build import Build
from pipelines.readers.files import InputError
from schemas.manifest import manifest_from_json
from schemas.shard import INDEXES, LEDGERS
from schemas.tables import INDEX, LEDGER, REASON_PATTERN

RUBBISH = {
    "empty": b"",
    "blank lines": b"\n \n\t\n",
    "no JSON, no table": b"once upon a time\n{]\nNaN\n",
    "values of other kinds": b'{}\n[]\n""\n0\nnull\n{"url": 1}\n',
    "bytes": bytes(range(256)) * 8,
    "deep nesting": b"[" * 100_000 + b"\n" + b'{"a":' * 100_000,
    "no character": b'{"url": "\\ud800"}\n\xff\xfe\n',
    "a gzip file": gzip.compress(b"{}\n" * 9),
}


def module(name: str) -> Any:
    return importlib.import_module(CORPORA[name])


def suffixes(name: str) -> tuple[str, ...]:
    return module(name).READER(["x"]).files.suffixes


def pipeline_of(name: str, patterns: list[str]) -> Pipeline:
    corpus = module(name)
    return corpus.pipeline(Build(corpus.READER(patterns, samples_per_shard=3)), corpus.Rules())


@pytest.mark.parametrize("name", CORPORA)
def test_a_corpus_offers_what_the_registry_promises(name: str, repository: Path) -> None:
    corpus = module(name)
    assert name == corpus.CORPUS
    assert (repository / f"jobs/build_{name}.py").is_file(), "every corpus has its job"
    assert len((repository / f"jobs/build_{name}.py").read_text().splitlines()) < 80
    finish = pipeline_of(name, ["x"]).finish
    assert corpus.REPORT in finish and corpus.CARD in finish
    assert suffixes(name)


@pytest.mark.parametrize("name", CORPORA)
def test_every_reason_is_explained(name: str) -> None:
    reasons = pipeline_of(name, ["x"]).reasons
    assert set(reasons) > set(ENGINE_REASONS)
    for word, reason in reasons.items():
        assert re.fullmatch(REASON_PATTERN, word), word
        assert reason.meaning.endswith((".", "…")), word


@pytest.mark.parametrize("what", RUBBISH)
@pytest.mark.parametrize("name", CORPORA)
def test_rubbish_is_ledger_rows_and_the_same_bytes_again(
    tmp_path: Path, name: str, what: str
) -> None:
    patterns = []
    for number, suffix in enumerate(suffixes(name)):
        path = tmp_path / f"input{number}{suffix}"
        path.write_bytes(RUBBISH[what])
        patterns.append(str(path))
    outs = [tmp_path / "one", tmp_path / "two"]
    try:
        for out in outs:
            manifest = run(pipeline_of(name, patterns), str(out), progress=False)
    except InputError as error:  # a table without the columns that are wanted
        assert re.search(r"input\d\.", str(error)) and not (outs[0] / "manifest.json").exists()
        return
    assert manifest.records.kept == 0
    ledgers = [
        read_parquet(Storage(str(outs[0])), f"{LEDGERS}/{s.name}.parquet", LEDGER)
        for s in manifest.shards
    ]
    rows = [row for ledger in ledgers for row in ledger.to_pylist() if row["slot"] is None]
    assert len(rows) == manifest.records.total
    known = pipeline_of(name, patterns).reasons
    assert all(row["status"] == "dropped" and row["reason"] in known for row in rows)
    assert len({(row["source"], row["record"]) for row in rows}) == len(rows)
    for shard in manifest.shards:
        index = read_parquet(Storage(str(outs[0])), f"{INDEXES}/{shard.name}.parquet", INDEX)
        assert index.num_rows == 0
    written = [
        {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()} for out in outs
    ]
    assert written[0] == written[1]
    text = (outs[0] / "manifest.json").read_text()
    assert manifest_from_json(text) == manifest


@pytest.mark.parametrize("name", CORPORA)
def test_inputs_of_another_format_are_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "x.docx").write_bytes(b"x")
    with pytest.raises(InputError, match=r"x\.docx.*must end in"):
        run(pipeline_of(name, [f"{tmp_path}/x.docx"]), str(tmp_path / "out"), progress=False)
