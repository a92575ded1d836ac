import io
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.core.pipeline import Reason
from pipelines.core.storage import Storage, write_parquet
from pipelines.publish.cards import card_parts, clock, pick_samples
from pipelines.publish.report import (
    MAX_HOSTS,
    Distribution,
    Hosts,
    Report,
    bins,
    collect_statistics,
    number,
    size,
)
from pipelines.publish.shards import ShardSink
from schemas.manifest import Fingerprint, Manifest, Tally
from schemas.sample import SAMPLES, Sample, Segment
from schemas.tables import LEDGER

EVIL = '"><script>alert(1)</script><img src=x onerror=alert(2)>\x00\u202e<!-- '
VOID = {"meta", "img", "line", "rect", "br", "input", "link"}


class Page(HTMLParser):
    """Checks that tags are closed in order, and collects tags and attributes."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


def image(colour: tuple[int, int, int]) -> Segment:
    buffer = io.BytesIO()
    Image.new("RGB", (90, 60), colour).save(buffer, "PNG")
    return Segment.of_image(buffer.getvalue(), "png", 90, 60)


def dataset(out: Path, num_shards: int = 2, per_shard: int = 10, text: str = "hello") -> Manifest:
    """A published dataset, made of the parts that make real ones."""
    storage, entries = Storage(str(out)), []
    for shard in range(num_shards):
        samples = [
            Sample(
                f"s{shard}-{i}",
                "test",
                (Segment.of_text(text), image((i, shard, 0)), Segment.of_text(f"{text} {i}")),
                {"url": f"http://{text}/", "similarity": [0.25], "scores": {"mean": i / 10}},
            )
            for i in range(per_shard)
        ]
        rows = SAMPLES.table([s.as_row() for s in samples])
        entries.append(ShardSink().write(f"test-{shard:06d}", rows, storage))
        ledger = [
            {
                "key": f"s{shard}-{i}",
                "slot": slot,
                "source": "x",
                "record": i + 1,
                "url": f"http://host{slot}.example/{text}" if slot is not None else None,
                "stage": "fetch" if slot == 1 else "publish",
                "status": "dropped" if slot == 1 else "kept",
                "reason": "not_found" if slot == 1 else None,
            }
            for i in range(per_shard)
            for slot in (None, 0, 1)
        ]
        path = f"ledger/test-{shard:06d}.parquet"
        write_parquet(storage, path, LEDGER.table(ledger), LEDGER)
    total = num_shards * per_shard
    return Manifest(
        "test",
        tuple(entries),
        Tally(total, total),
        Tally(2 * total, total, {"not_found": total}),
        Fingerprint("a", "b", "c"),
        stages={"fetch": {"seen": total, "dropped": {}}},
        alarms=(f"too much {text}",),
        config={"rules": {"name": text}, "side": 256},
    )


REPORT = Report("A title <b>")
REASONS = {"not_found": Reason("It is <gone>.")}


def written(out: Path, manifest: Manifest) -> str:
    REPORT(Storage(str(out)), manifest, REASONS)
    return (out / "report.html").read_text()


def test_all_text_of_the_dataset_is_escaped(tmp_path: Path):
    page = written(tmp_path, dataset(tmp_path, text=EVIL))
    parsed = Page(page)
    tags = {tag for tag, _ in parsed.tags}
    assert "script" not in tags and "a" not in tags and "link" not in tags
    assert not any(name.startswith("on") for _, attributes in parsed.tags for name in attributes)
    assert "<!--" not in page and "\x00" not in page
    assert "&lt;script&gt;" in page and "&#34;" in page


def test_control_characters_are_shown_as_replacement_characters(tmp_path: Path):
    page = written(tmp_path, dataset(tmp_path, text="a\x1b<&'b\nc"))
    assert "a\ufffd&lt;&amp;&#39;b\nc" in page and "\x1b" not in page


def test_images_are_never_cropped_and_have_a_text_alternative(tmp_path: Path):
    page = written(tmp_path, dataset(tmp_path))
    assert "object-fit: contain" in page and "object-fit: cover" not in page
    images = [a for tag, a in Page(page).tags if tag == "img"]
    assert images and all(a["alt"] == "image, 90 × 60 pixels" for a in images)
    charts = [a for tag, a in Page(page).tags if tag == "svg"]
    assert charts and all(a["role"] == "img" and a["aria-label"] for a in charts)


def test_a_dataset_without_samples_has_a_report(tmp_path: Path):
    page = written(tmp_path, dataset(tmp_path, num_shards=0))
    Page(page)
    assert "No samples." in page and page.count("No values.") == 5


def test_the_file_is_self_contained(tmp_path: Path):
    page = written(tmp_path, dataset(tmp_path))
    sources = [a["src"] for tag, a in Page(page).tags if "src" in a]
    assert sources and all((s or "").startswith("data:image/jpeg;base64,") for s in sources)
    assert "url(" not in page and "@import" not in page
    assert "default-src 'none'" in page


def test_it_shows_counts_reasons_alarms_hosts_and_configuration(tmp_path: Path):
    page = written(tmp_path, dataset(tmp_path))
    for text in (
        "20 of 20 documents were kept, with 20 images",
        "too much hello",
        "It is &lt;gone&gt;.",
        "host1.example",
        "rules.name",
        "A title &lt;b&gt;",
    ):
        assert text in page, text
    assert page.count("<article") == 12


def test_equal_datasets_give_equal_reports(tmp_path: Path):
    pages = [written(tmp_path / n, dataset(tmp_path / n)) for n in "ab"]
    assert pages[0] == pages[1]


def test_samples_are_picked_at_equal_distances_over_the_shards(tmp_path: Path):
    manifest = dataset(tmp_path, num_shards=3, per_shard=8)
    keys = [s.key for s in pick_samples(Storage(str(tmp_path)), manifest, 6)]
    assert keys == ["s0-2", "s0-6", "s1-2", "s1-6", "s2-2", "s2-6"]
    assert len(list(pick_samples(Storage(str(tmp_path)), manifest, 100))) == 24


def test_statistics_of_a_dataset(tmp_path: Path):
    found, hosts = collect_statistics(Storage(str(tmp_path)), dataset(tmp_path), "fetch")
    assert found["images"].counts == {1: 20} and found["texts"].counts == {2: 20}
    assert found["side"].counts == {60: 20}
    assert found["score mean"].quantile(0.5) == 0.4 and found["score mean"].counts.total() == 20
    assert hosts.worst(5) == [("host1.example", 20, 0, "not_found")]


def test_distributions_and_hosts_do_not_grow_with_the_dataset():
    values = Distribution()
    generator = np.random.default_rng(0)
    for _ in range(20):
        values.add(generator.uniform(0, 1000, 5000))
    assert len(values.counts) < 4000 and values.counts.total() == 100_000
    assert values.mean == pytest.approx(500, rel=0.02)
    hosts = Hosts()
    for i in range(10):
        hosts.add([f"http://kept{i}-{j}.example/" for j in range(MAX_HOSTS)], [None] * MAX_HOSTS)
        urls = [f"http://h{i}-{j}.example/" for j in range(MAX_HOSTS)] + ["http://often/"] * 9
        hosts.add([*urls, "http://often/"], ["timeout"] * len(urls) + [None])
    assert len(hosts.links) <= MAX_HOSTS
    assert hosts.worst(1) == [("often", 90, 10, "timeout")]


def test_a_host_has_its_most_frequent_reason_and_hosts_without_failures_are_not_listed():
    hosts = Hosts()
    hosts.add(["http://a/1", "http://a/2", "http://a/3"], ["timeout", "not_found", "not_found"])
    hosts.add(["http://b/1", "http://a/4", "", "http://["], [None, None, "url_invalid", "timeout"])
    assert hosts.worst(9) == [("a", 3, 1, "not_found"), ("(no host)", 2, 0, "timeout")]


@pytest.mark.parametrize(
    "values", [[0.0], [5.0] * 9, [0.31, 0.32], [1, 1, 2, 900_000], [-0.5, 0.5], [0, 0, 1e-7]]
)
@pytest.mark.parametrize("is_whole", [True, False])
def test_every_value_is_in_a_bin(values: list[float], is_whole: bool):
    distribution = Distribution()
    distribution.add(np.array(values, dtype=float))
    edges, counts = bins(distribution, is_whole)
    assert sum(counts) == len(values) and len(edges) == len(counts) + 1 <= 60
    assert edges == sorted(edges)


def test_numbers_and_sizes_for_people():
    assert [number(v) for v in (0, 3, 1234.5, 12.34, 0.31416)] == [
        "0",
        "3",
        "1,234",
        "12.3",
        "0.314",
    ]
    assert [size(v) for v in (0, 999, 1000, 9_640_000)] == ["0 B", "999 B", "1 kB", "9.64 MB"]


def test_cards_of_dialogues_clips_and_documents():
    frame, answer = image((1, 2, 3)), Segment.of_text("a", role="assistant")
    timed = [Segment("image", image=b"x", format="jpg", time_s=float(t)) for t in range(20)]

    def shape(*segments: Segment) -> list[tuple[str | None, int, str | None, int]]:
        parts = card_parts(Sample("s", "test", segments))
        return [(p.role, len(p.frames), p.text and p.text.text, len(p.hidden)) for p in parts]

    question = replace(frame, role="user")
    assert shape(question, question, Segment.of_text("q", role="user"), answer) == [
        ("user", 2, None, 0),
        ("user", 0, "q", 0),
        ("assistant", 0, "a", 0),
    ]
    text = Segment.of_text("t", time_s=9.5)
    assert shape(*timed[:10], text, *timed[10:]) == [
        (None, 10, None, 0),
        (None, 0, "t", 0),
        (None, 2, None, 0),
        (None, 0, None, 8),
    ]
    assert shape(*[answer] * 25)[-1] == (None, 0, None, 15)
    assert [p.image is None for p in card_parts(Sample("s", "test", (frame, text)))] == [True, True]
    plain = card_parts(Sample("s", "test", (frame, Segment.of_text("t"))))
    assert [(p.image is frame, p.text and p.text.text) for p in plain] == [(True, "t")]


def test_times_for_people():
    times = (0, 7.5, 59.96, 760, 3723, 3599.99)
    assert [clock(t) for t in times] == ["0:00", "0:07.5", "1:00", "12:40", "1:02:03", "1:00:00"]
