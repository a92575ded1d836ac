"""Filters as options: what is read, what is refused with a hint, and what they do in a build."""

import json
from pathlib import Path

import pytest

from jobs.build_mmc4 import main as build_mmc4
from jobs.list_filters import main as list_filters
from pipelines.core.pipeline import Stage
from pipelines.core.run import run
from pipelines.core.storage import Storage, read_parquet
from pipelines.corpora.build import Build
from pipelines.filters import FILTERS
from pipelines.filters.options import parse_filters, with_filters
from pipelines.miniworld.config import PairsConfig
from pipelines.miniworld.pairs import pairs_pipeline
from schemas.shard import LEDGERS
from schemas.tables import LEDGER
from tests.exit_codes import exit_code


def ledger(out: Path) -> list[dict]:
    storage = Storage(str(out))
    names = storage.list(LEDGERS)
    return [r for n in names for r in read_parquet(storage, f"{LEDGERS}/{n}", LEDGER).to_pylist()]


def test_values_are_read_by_their_annotations():
    text = "language:languages=en+de,min_score=0.5,detector=lingua"
    (choice,) = parse_filters([text])
    assert choice.arguments == {"languages": ("en", "de"), "min_score": 0.5, "detector": "lingua"}
    (choice,) = parse_filters(["text_length:maximum=none,min_words=3"])
    assert choice.config()["maximum"] is None and choice.config()["min_words"] == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image_sise", "no filter 'image_sise'; did you mean 'image_size'?"),
        ("", "no filter ''; the filters are image_size"),
        ("image_size:min_sid=3", "image_size has no parameter 'min_sid'; did you mean 'min_side'?"),
        ("image_size:min_side=x", "image_size: min_side is 'x', give a whole number"),
        ("image_size:min_side", "'min_side' is not key=value"),
        ("image_size:min_side=1,min_side=2", "min_side is given twice"),
        ("image_size:images=most", "images is 'most', give any or all"),
        ("score:min=nan", "score: min is 'nan', give a number or none"),
        ("language:detector=best", "detector is 'best', give fast or lingua"),
    ],
)
def test_a_wrong_option_says_what_it_may_be(text: str, message: str):
    with pytest.raises(ValueError) as error:
        parse_filters([text])
    assert message in str(error.value)


def test_a_wrong_option_ends_a_job_before_it_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["--documents", "x.jsonl", "--out", tmp_path / "out", "--filters", "langage"]
    assert exit_code(build_mmc4, words) == 2
    assert "did you mean 'language'?" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_wrong_line_of_a_list_is_named(tmp_path: Path):
    file = tmp_path / "list.txt"
    for name, text, words in (
        ("block_list", "ok.example\nno domain at all", "line 2"),
        ("block_list", "\xff", "line 1"),
        ("evaluation_images", "00ff00ff00ff00ff\nxyz", "line 2.*16 hexadecimal digits"),
        ("evaluation_images", "", "no image and no hash"),
        ("evaluation_texts", "too short", "no text of at least 4 words"),
    ):
        file.write_bytes(text.encode("latin-1"))
        with pytest.raises(ValueError, match=words):
            parse_filters([f"{name}:file={file}"])


def test_filters_run_last_and_count(tmp_path: Path):
    choices = parse_filters(
        ["text_length:min_words=12", "text_length:maximum=60", "tag:missing=keep"]
    )
    pipeline = with_filters(pairs_pipeline(PairsConfig(num_pairs=40), 10), choices)
    manifest = run(pipeline, str(tmp_path / "out"), progress=False)
    counts = manifest.stages
    assert counts["filter/text_length"]["seen"] == 40 and counts["filter/tag"]["dropped"] == {}
    dropped = counts["filter/text_length"]["dropped"] | counts["filter/text_length#2"]["dropped"]
    assert manifest.records.dropped == dropped and set(dropped) == {
        "text_too_short",
        "text_too_long",
    }
    assert 0 < manifest.records.kept < 40
    assert [f["filter"] for f in manifest.config["filters"]] == [
        "text_length",
        "text_length",
        "tag",
    ]


def test_what_is_in_a_file_is_part_of_the_fingerprint(tmp_path: Path):
    file = tmp_path / "list.txt"
    file.write_text("a.example\n")
    (choice,) = parse_filters([f"block_list:file={file}"])
    before = choice.config()
    assert before["file"] == "list.txt", "not where it lies"
    file.write_text("b.example\n")
    assert choice.config() != before


def test_filters_that_need_other_resources_have_stages_of_their_own(tmp_path: Path):
    tiny = tmp_path / "clip"
    tiny.mkdir()
    clip = f"clip_similarity:model={tiny},gpus=0.5,workers=3"
    choices = parse_filters(["image_size", "text_length", clip, "tag:missing=keep"])
    pipeline = with_filters(pairs_pipeline(PairsConfig(num_pairs=4)), choices)
    names = [s.name for s in pipeline.stages]
    assert names == ["render", "filter", "filter_2", "filter_3"]
    needs = [s.resources for s in pipeline.stages]
    assert (needs[2].num_gpus, needs[2].concurrency) == (0.5, 3) and needs[3].num_gpus == 0
    config = json.dumps(pipeline.config["filters"])
    assert "gpus" not in config and "workers" not in config


def test_blocked_addresses_are_not_fetched(tmp_path: Path):
    from pipelines.corpora.mmc4 import rules as mmc4
    from pipelines.download.config import FetchConfig

    blocked = tmp_path / "blocked.txt"
    blocked.write_text("images.blocked.example\nhttp://PAGES.example:80/taken-down#x\n")
    document = {
        "text_list": ["A sentence."],
        "similarity_matrix": [[0.4]],
    }
    pages = {
        "http://pages.example/one": "http://cdn.images.blocked.example/a.jpg",
        "http://pages.example/two": "http://127.0.0.1/a.jpg",
        "https://pages.example/taken-down": "http://free.invalid/a.jpg",
    }
    lines = [
        document | {"url": page, "image_info": [{"raw_url": image, "matched_text_index": 0}]}
        for page, image in pages.items()
    ]
    source = tmp_path / "docs.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    pipeline = mmc4.pipeline(
        Build(mmc4.READER([str(source)]), FetchConfig(retries=0)), mmc4.Rules()
    )
    pipeline = with_filters(pipeline, parse_filters([f"block_list:file={blocked}"]))
    parse = pipeline.stages[0]
    assert isinstance(parse, Stage) and parse.steps[-1].name == "block_list"  # type: ignore[union-attr]
    out = tmp_path / "out"
    run(pipeline, str(out), progress=False)
    found = {r["record"]: r for r in ledger(out) if r["slot"] is None}
    assert [found[n]["reason"] for n in (1, 3)] == ["domain_blocked", "url_blocked"]
    assert {found[n]["stage"] for n in (1, 3)} == {"parse/block_list"}
    assert found[1]["detail"] == "images.blocked.example"
    assert found[2]["stage"].startswith("fetch")


def test_the_list_of_filters(capsys: pytest.CaptureFixture[str]):
    assert list_filters([]) == 0
    shown = capsys.readouterr().out
    assert all(f"{name}: Samples" in shown for name in FILTERS)
    assert list_filters(["score"]) == 0
    assert "-> score_missing" in capsys.readouterr().out
    assert list_filters(["scor"]) == 2
