import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.core.run import run
from pipelines.core.storage import Storage, read_parquet
from pipelines.corpora.build import Build
from pipelines.corpora.laion import rules as laion
from pipelines.corpora.laion.cuts import Cuts
from pipelines.corpora.laion.rules import Rules
from pipelines.readers.files import InputError
from pipelines.readers.parquet import ParquetSource
from schemas.manifest import Manifest
from schemas.shard import LEDGERS
from schemas.tables import LEDGER
from tests.laion.conftest import Rows

Write = Callable[[Rows], Path]
URL = "http://127.0.0.1:9/a.jpg"  # refused without a request


def parsed(rules: Rules, *files: Path) -> list[dict[str, Any]]:
    """The rows of the files after the parse stage, those with a reason included."""
    pipeline = laion.pipeline(Build(ParquetSource([str(f) for f in files])), rules)
    assert isinstance(pipeline.source, ParquetSource)
    found = []
    for shard in pipeline.source.plan("laion"):
        rows = pipeline.source.read(shard)
        found += laion.ParsePairs(rules.max_caption_chars)(rows).to_pylist()
    return found


def built(out: Path, rules: Rules, *files: Path) -> Manifest:
    pipeline = laion.pipeline(Build(ParquetSource([str(f) for f in files])), rules)
    return run(pipeline, str(out), progress=False)


@pytest.mark.parametrize(
    ("row", "caption"),
    [
        ({"URL": URL, "TEXT": "alt"}, "alt"),  # LAION-2B-en, LAION-400M
        ({"url": URL, "caption": "alt"}, "alt"),
        ({"url": URL, "text": "alt"}, "alt"),
        ({"URL": URL, "TEXT": "alt", "top_caption": "synthetic"}, "synthetic"),  # LAION-COCO
    ],
)
def test_the_caption_follows_the_corpus(metadata: Write, row: dict[str, str], caption: str) -> None:
    (found,) = parsed(Rules(), metadata([row]))
    assert found["caption"] == caption
    meta = json.loads(found["meta"])
    assert meta.get("columns", {}) == ({"TEXT": "alt"} if "top_caption" in row else {})


def test_another_caption_column_by_name_and_the_other_texts_stay(metadata: Write) -> None:
    row = {"URL": URL, "TEXT": "alt", "top_caption": "synthetic", "all_captions": ["x", "y"]}
    (found,) = parsed(Rules(caption_column="text"), metadata([row]))
    assert found["caption"] == "alt"
    kept = {"top_caption": "synthetic", "all_captions": ["x", "y"]}
    assert json.loads(found["meta"])["columns"] == kept
    with pytest.raises(InputError, match=r"no column 'txt' .--caption-column.*nearest is 'TEXT'"):
        parsed(Rules(caption_column="txt"), metadata([row]))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (  # LAION-2B-en, with the float sizes and missing tag of copies
            {"SAMPLE_ID": 7, "URL": URL, "TEXT": "a", "HEIGHT": 480.0, "WIDTH": 640.0}
            | {"LICENSE": "?", "NSFW": "UNSURE", "similarity": 0.331},
            {"width": 640, "height": 480, "nsfw": "UNSURE", "scores": {"similarity": 0.331}}
            | {"columns": {"SAMPLE_ID": 7, "LICENSE": "?"}},
        ),
        (  # joined and aesthetic cuts
            {"url": URL, "text": "a", "width": None, "height": None, "similarity": float("nan")}
            | {"hash": -412345, "punsafe": 0.25, "pwatermark": 0.5, "aesthetic": 6.5},
            {"scores": {"punsafe": 0.25, "pwatermark": 0.5, "aesthetic": 6.5}}
            | {"columns": {"hash": -412345}},
        ),
        (
            {"URL": URL, "TEXT": "a", "AESTHETIC_SCORE": 8.0, "NSFW": None},
            {"scores": {"aesthetic": 8.0}},
        ),
    ],
)
def test_sizes_scores_and_other_columns_of_every_release_are_in_the_meta(
    metadata: Write, row: dict[str, Any], expected: dict[str, Any]
) -> None:
    path = metadata([row])
    (found,) = parsed(Rules(), path)
    where = {"url": URL, "source": path.name, "record": 1}
    assert json.loads(found["meta"]) == where | expected


@pytest.mark.parametrize(
    ("text", "caption", "reason"),
    [
        ("  red\tkettle\non a stove ", "red kettle on a stove", None),
        ("\x00red\x1b[31m\x85\xa0kettle\u2028", "red [31m kettle", None),
        ("a\u200bb é 茶 👩\u200d🍳", "a\u200bb é 茶 👩\u200d🍳", None),
        ("x" * 10_000, "x" * 10_000, None),
        ("x" * 1_000_000, None, "caption_too_long"),
        (" \x00\n", None, "no_caption"),
        ("", None, "no_caption"),
        (None, None, "no_caption"),
    ],
)
def test_captions_are_cleaned_or_dropped(
    metadata: Write, text: str | None, caption: str | None, reason: str | None
) -> None:
    found, _ = parsed(Rules(), metadata([{"URL": URL, "TEXT": text}, {"URL": URL, "TEXT": "a"}]))
    shown = found["caption"] if reason is None else None
    assert (shown, found["drop_reason"]) == (caption, reason)


def test_cuts_drop_by_bound_and_missing_values_each_with_its_reason(
    metadata: Write, tmp_path: Path
) -> None:
    nan = float("nan")
    names = ("punsafe", "pwatermark", "aesthetic", "similarity", "width", "height")
    good = dict(zip(names, (0.4999, 0.0, 5.0, 0.3, 256, 200), strict=True)) | {"nsfw": "UNLIKELY"}
    bad = [
        *({"nsfw": "nsfw"}, {"nsfw": None}, {"punsafe": 0.5}, {"punsafe": nan}, {"punsafe": None}),
        *({"pwatermark": 1.0}, {"aesthetic": 4.99}, {"similarity": 0.29}, {"width": 255}),
        *({"width": None}, {"height": 199}),
    ]
    rows = [{"url": URL, "text": "a"} | good | change for change in ({}, *bad)]
    cuts = Cuts(0.5, 0.8, 5.0, 0.3, 256, 200, ("NSFW",))
    path = metadata(rows)
    manifest = built(tmp_path / "out", Rules(cuts=cuts), path)
    ledger = read_parquet(Storage(str(tmp_path / "out")), f"{LEDGERS}/laion-000000.parquet", LEDGER)
    of_records = [row["reason"] for row in ledger.to_pylist() if row["slot"] is None]
    assert of_records == [
        *("no_image_arrived", "nsfw_tag", "nsfw_missing", "punsafe_high", "punsafe_missing"),
        *("punsafe_missing", "pwatermark_high", "aesthetic_low", "similarity_low", "width_low"),
        *("width_missing", "height_low"),
    ]
    assert manifest.links.total == 1, "what is cut is not fetched"
    kept = built(
        tmp_path / "kept", Rules(cuts=Cuts(0.5, drop_nsfw=("NSFW",), keep_unscored=True)), path
    )
    assert kept.records.dropped == {"nsfw_tag": 1, "punsafe_high": 1, "no_image_arrived": 10}


def test_a_cut_needs_its_column_unless_unscored_rows_are_kept(
    metadata: Write, tmp_path: Path
) -> None:
    path = metadata([{"URL": URL, "TEXT": "a", "p_unsafe": 0.1}])
    with pytest.raises(InputError, match=r"no column 'punsafe'.*the nearest is 'p_unsafe'"):
        built(tmp_path / "out", Rules(cuts=Cuts(max_punsafe=0.5)), path)
    assert not (tmp_path / "out/manifest.json").exists()
    rules = Rules(cuts=Cuts(max_punsafe=0.5, keep_unscored=True))
    assert built(tmp_path / "out", rules, path).links.total == 1


def test_rows_without_a_link_are_dropped(metadata: Write) -> None:
    rows = [{"URL": None, "TEXT": "a"}, {"URL": "", "TEXT": "a"}, {"URL": URL, "TEXT": "a"}]
    found = parsed(Rules(), metadata(rows))
    assert [row["drop_reason"] for row in found] == ["no_url", "no_url", None]


def test_real_rows(sample_data: Path) -> None:
    found = parsed(Rules(), sample_data / "laion/laion_rows_1000.parquet")
    assert len(found) == 1000 == len({row["key"] for row in found})
    assert all(row["drop_reason"] is None for row in found)
    assert found[0]["caption"] == "Classical Masterpieces: Xerses & More, Vol. 8 by Various Artists"
    assert "columns" not in json.loads(found[0]["meta"]), "the index of pandas is no column"
