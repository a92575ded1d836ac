from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines.corpora.mmc4.rules import Rules
from pipelines.miniworld.config import MiniworldConfig
from pipelines.miniworld.mmc4 import write_mmc4
from pipelines.miniworld.server import ImageServer
from tests.mmc4.pages import build, page, samples, shown, write_images, write_pages


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ImageServer]:
    with ImageServer(write_images(tmp_path / "images")) as server:
        yield server


def ledger(out: Path) -> list[dict]:
    files = sorted((out / "ledger").iterdir())
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def fates(out: Path) -> list[str | None]:
    """The reasons of the links, in order."""
    return [row["reason"] for row in ledger(out) if row["slot"] is not None]


def test_every_image_stands_before_its_sentence_in_the_order_of_sentences(
    tmp_path: Path, server: ImageServer
):
    texts = ["about blue", "", "about red", "filler", "about green"]
    # images in another order than their sentences; the blank sentence is similar to all
    similarity = [
        [0.1, 0.9, 0.5, 0.1, 0.1],
        [0.1, 0.9, 0.1, 0.1, 0.5],
        [0.5, 0.9, 0.1, 0.1, 0.1],
    ]
    documents = write_pages(
        tmp_path / "d.jsonl", [page(texts, ["red", "green", "blue"], similarity)]
    )
    build(documents, tmp_path / "out", server)
    (sample,) = samples(tmp_path / "out")
    assert shown(sample) == [
        "[blue]",
        "about blue",
        "",
        "[red]",
        "about red",
        "filler",
        "[green]",
        "about green",
    ]
    assert sample.key == "d-0000001"
    assert sample.meta == {
        "url": "http://pages.example/",
        "source": "d.jsonl",
        "record": 1,
        "image_slot": [2, 0, 1],
        "image_url": [
            f"http://images.miniworld.example/image/{c}.png" for c in ("blue", "red", "green")
        ],
        "matched_text_index": [0, 2, 4],
        "similarity": [0.5, 0.5, 0.5],
        "scores": {"min_similarity": 0.5, "mean_similarity": 0.5},
    }


def test_images_that_share_a_sentence_neither_vanish_nor_swap(tmp_path: Path, server: ImageServer):
    texts = ["about red", "about green and grey", "about blue", "more of grey"]
    similarity = [
        [0.1, 0.45, 0.1, 0.36],  # grey
        [0.1, 0.50, 0.1, 0.20],  # green
        [0.4, 0.1, 0.1, 0.1],  # red
        [0.2, 0.1, 0.4, 0.1],  # blue
    ]
    images = ["grey", "green", "red", "blue"]
    documents = write_pages(
        tmp_path / "d.jsonl",
        [
            page(texts, images, similarity, matched=[1, 1, 0, 2]),
            page(
                texts, ["grey", "not_found/green", "red", "blue"], similarity, matched=[1, 1, 0, 2]
            ),
            page(texts[:2], images[:3], [row[:2] for row in similarity[:3]], matched=[1, 1, 1]),
        ],
    )
    build(documents, tmp_path / "out", server)
    whole, without_green, few_texts = (shown(s) for s in samples(tmp_path / "out"))
    grey = ["[grey]", "more of grey"]
    assert whole == [
        *("[red]", "about red", "[green]", "about green and grey", "[blue]", "about blue"),
        *grey,
    ]
    # green did not arrive: grey takes the sentence that it fits best
    assert without_green[2:4] == ["[grey]", "about green and grey"]
    assert without_green[-1] == "more of grey"
    assert few_texts == ["[red]", "about red", "[green]", "about green and grey"]
    assert fates(tmp_path / "out")[-3:] == ["unassigned", None, None]


def test_each_way_to_lose_a_document_has_its_reason(tmp_path: Path, server: ImageServer):
    documents = write_pages(
        tmp_path / "d.jsonl",
        [
            page(["a"], ["red"], [[0.31]]),
            page(["a"], ["not_found/red", "html/blue"], [[0.4], [0.5]]),
            "{not json",
            page(["a", "b"], ["red", "blue"], [[0.4, 0.1], [0.5, 0.1]]),
            page(["a"], ["noai/red", "blue", "green"], [[0.6], [0.5], [0.4]]),
        ],
    )
    manifest = build(documents, tmp_path / "out", server, rules=Rules(0.32, max_images=2))
    rows = ledger(tmp_path / "out")
    records = {r["record"]: (r["stage"], r["reason"]) for r in rows if r["slot"] is None}
    assert records == {
        1: ("parse/living_links", "no_image_wanted"),
        2: ("fetch/arrived_images", "no_image_arrived"),
        3: ("parse", "malformed_json"),
        4: ("publish", None),
        5: ("publish", None),
    }
    links = {(r["record"], r["slot"]): r["reason"] for r in rows if r["slot"] is not None}
    assert links == {
        (1, 0): "low_similarity",
        (2, 0): "not_found",
        (2, 1): "html_not_image",
        (4, 0): "low_similarity_assigned",
        (4, 1): None,
        (5, 0): "robots_refused",
        (5, 1): None,
        (5, 2): "over_max_images",
    }
    assert manifest.records.kept == 2 and manifest.links.kept == 2


def test_nothing_at_all_is_a_dataset_too(tmp_path: Path, server: ImageServer):
    documents = write_pages(tmp_path / "d.jsonl", ["[]", "{}"])
    manifest = build(documents, tmp_path / "out", server)
    assert manifest.records.dropped == {"missing_field": 1, "not_an_object": 1}
    assert manifest.alarms and (tmp_path / "out/report.html").is_file()
    empty = build(write_pages(tmp_path / "e.jsonl", []), tmp_path / "empty", server)
    assert empty.records.total == 1 and empty.records.dropped == {"input_empty": 1}
    assert (tmp_path / "empty/report.html").is_file()


def test_the_synthetic_world_arrives_exactly(tmp_path: Path):
    world = write_mmc4(MiniworldConfig(num_documents=90, bad_share=0.5), tmp_path / "world")
    with ImageServer(tmp_path / "world/images", retry_after_s=0) as server:
        documents = tmp_path / "world/documents/*"
        manifest = build(documents, tmp_path / "out", server, rules=Rules(0.24))
    assert manifest.records.total == world.num_records
    assert manifest.records.kept == world.num_documents_kept
    assert manifest.links.total == world.num_links
    assert manifest.links.kept == manifest.num_images == world.num_images_kept
    num_malformed = sum(world.num_malformed_by_kind.values())
    reasons = Counter(manifest.records.dropped)
    after_parsing = ("no_image_wanted", "no_image_arrived", "no_image_left", "no_images")
    assert sum(n for r, n in reasons.items() if r not in after_parsing) == num_malformed


def test_retry_fetches_again_only_what_may_have_passed(tmp_path: Path, server: ImageServer):
    texts = ["one", "two", "three"]
    scores = [[0.5, 0.1, 0.1], [0.1, 0.5, 0.1], [0.1, 0.1, 0.5]]
    pages = [
        page(texts, ["grey", "flaky/blue", "not_found/green"], scores),
        page(texts, ["flaky/red", "grey", "noai/green"], scores),
        page(texts[:1], ["flaky/green"], [[0.5]]),
        page(texts, ["red", "blue", "green"], scores),
        page(texts[:1], ["forbidden/red"], [[0.5]]),
        page(texts, ["grey", "grey", "grey"], scores),
    ]
    documents = write_pages(tmp_path / "d.jsonl", pages)
    with ImageServer(tmp_path / "images") as other:
        patient = build(documents, tmp_path / "patient", other, samples_per_shard=2)
    hasty = {"samples_per_shard": 2, "retries": 0}
    first = build(documents, tmp_path / "out", server, **hasty)
    assert first.links.dropped["server_error"] == 3
    assert first.records.dropped == {"no_image_arrived": 2}
    (tmp_path / "images/grey.png").unlink()  # what was kept is not asked for again
    again = build(documents, tmp_path / "out", server, retry=True, **hasty)
    assert again.shards == patient.shards  # byte for byte what a patient first run gives
    assert (again.links, again.records) == (patient.links, patient.records)
    for name in ("ledger", "index", "shards"):
        for file in (tmp_path / "out" / name).iterdir():
            assert file.read_bytes() == (tmp_path / "patient" / name / file.name).read_bytes()
    found = [shown(s) for s in samples(tmp_path / "out")]
    assert found[:3] == [
        ["[grey]", "one", "[blue]", "two", "three"],
        ["[red]", "one", "[grey]", "two", "three"],
        ["[green]", "one"],
    ]
    assert build(documents, tmp_path / "out", server, retry=True, **hasty) == again


def test_a_second_run_of_a_finished_dataset_asks_for_nothing(tmp_path: Path, server: ImageServer):
    documents = write_pages(tmp_path / "d.jsonl", [page(["a"], ["red"], [[0.5]])])
    first = build(documents, tmp_path / "out", server)
    (tmp_path / "images/red.png").unlink()
    assert build(documents, tmp_path / "out", server) == first


def test_a_picture_that_is_named_twice_in_a_shard_is_fetched_once(
    tmp_path: Path, server: ImageServer
):
    # a flaky link answers 500 to its first visitor: a second visitor would get the picture
    pages = [page(["a"], ["flaky/red"], [[0.5]]), page(["b"], ["flaky/red"], [[0.5]])]
    documents = write_pages(tmp_path / "d.jsonl", pages)
    manifest = build(documents, tmp_path / "out", server, retries=0)
    assert manifest.links.dropped == {"server_error": 2}
