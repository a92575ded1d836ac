"""The contract of filters, tested over the registry: a registered filter is a tested filter."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

from pipelines.core.pipeline import Construct, Filter
from pipelines.filters import FILTERS
from pipelines.filters.options import parameters_of, reasons_of_filter, shown_value
from pipelines.images.perceptual_hash import perceptual_hash
from schemas.sample import SAMPLES, Sample, Segment
from schemas.tables import REASON_PATTERN
from tests.filters.tiny_clip import scene_jpeg, tiny_clip

PHOTO, OTHER = scene_jpeg(1), scene_jpeg(2)


def image(width: int, height: int, data: bytes = b"x") -> Segment:
    return Segment.of_image(data, "jpg", width, height)


ENGLISH = "the small dog runs across the green field after a ball"
ROWS = [
    Sample("a", "test", (Segment.of_text(""),)),
    Sample("b", "test", (Segment.of_text("é" * 50), image(30, 500, PHOTO), image(100, 80, PHOTO))),
    Sample("c", "test", (image(30, 500, PHOTO),), {"url": "https://img.blocked.example/c.jpg"}),
    Sample("d", "test", (Segment.of_text("ab"), image(64, 64, OTHER), Segment.of_text("c"))),
    Sample("e", "test", (Segment.of_text("der kleine Hund läuft über die grüne Wiese"),)),
    Sample("f", "test", (image(99, 99, OTHER), Segment.of_text("stock photo 4k hd IMG_1234.jpg"))),
    Sample("g", "test", (Segment.of_text("buy now " * 20),), {"scores": {"similarity": 0.1}}),
    Sample(
        "h",
        "test",
        (Segment.of_text(ENGLISH),),
        {"scores": {"similarity": 0.4}, "nsfw": "UNLIKELY"},
    ),
    *(Sample(f"i{n}", "test", (Segment.of_text(f"Photo {n} of 80"),)) for n in range(12)),
]
TABLE = SAMPLES.table([row.as_row() for row in ROWS])


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Arguments of the filters that cannot do without."""
    folder = tmp_path_factory.mktemp("examples")
    (folder / "blocked.txt").write_text("# takedowns\nblocked.example\n")
    (folder / "hashes.txt").write_text(f"{perceptual_hash(OTHER):016x}\n")
    (folder / "questions.txt").write_text(
        "What? The small dog runs across the green field, after a ball!\n"
    )
    clip = tiny_clip(folder / "clip")
    layers = {"0.weight": torch.ones(1, 16), "0.bias": torch.zeros(1)}
    torch.save(layers, folder / "layers.pt")
    return {
        "block_list": {"file": str(folder / "blocked.txt")},
        "evaluation_images": {"file": str(folder / "hashes.txt")},
        "evaluation_texts": {"file": str(folder / "questions.txt")},
        "clip_similarity": {"model": str(clip), "min": 1.0},
        "image_score": {"model": str(clip), "weights": str(folder / "layers.pt"), "min": 99.0},
        "score": {"min": 0.2, "missing": "keep"},
    }


def reasons_from(filter_: Filter, table: pa.Table) -> list[str | None]:
    """The reasons that a filter gives, made as a worker makes it."""
    test = (
        filter_.test.make(*filter_.test.args)
        if isinstance(filter_.test, Construct)
        else filter_.test
    )
    found = test(table)
    if not pa.types.is_struct(found.type):
        assert found.type == pa.string()
        return found.to_pylist()
    details = pc.struct_field(found, "detail").to_pylist()
    reasons = pc.struct_field(found, "reason").to_pylist()
    assert all(r is not None for r, d in zip(reasons, details, strict=True) if d is not None)
    return reasons


@pytest.mark.parametrize("name", FILTERS)
def test_contract(name: str, repository: Path, examples: dict[str, dict[str, Any]]):
    filter_ = FILTERS[name](**examples.get(name, {}))
    assert isinstance(filter_, Filter) and filter_.name.startswith(name)
    assert (repository / f"pipelines/filters/{name}.py").is_file()
    reasons = reasons_from(filter_, TABLE)
    assert len(reasons) == len(TABLE)
    found = [r for r in reasons if r is not None]
    assert found, "the table has a row that each filter drops"
    assert len(found) < len(TABLE), "and one that it keeps"
    assert all(re.fullmatch(REASON_PATTERN, r) and r in filter_.reasons for r in found)
    assert filter_.reasons == reasons_of_filter(name)
    assert all(reason.meaning.endswith(".") for reason in filter_.reasons.values())
    chunked = pa.concat_tables([TABLE.slice(0, 1), TABLE.slice(1, 0), TABLE.slice(1)])
    assert reasons_from(filter_, chunked) == reasons
    assert reasons_from(filter_, TABLE.slice(0, 0)) == []
    assert reasons_from(filter_, TABLE.schema.empty_table()) == []


@pytest.mark.parametrize("name", FILTERS)
def test_every_parameter_is_an_option(name: str):
    for parameter in parameters_of(name):
        assert parameter.words
        text = shown_value(parameter.default)
        if parameter.default not in ("", ()):
            assert parameter.value_of(text) == parameter.default, parameter


@pytest.mark.parametrize("name", FILTERS)
def test_the_page_of_filters_is_complete(name: str, repository: Path):
    page = (repository / "docs/filters.md").read_text()
    section = page.partition(f"### {name}\n")[2].partition("\n### ")[0]
    assert section, f"docs/filters.md has no section {name}"
    for parameter in parameters_of(name):
        assert f"`{parameter.name}`" in section or parameter.name == "max_drop", parameter.name
    for word, reason in reasons_of_filter(name).items():
        assert f"| `{word}` | {reason.meaning} |" in section, word


def test_min_images():
    drops = reasons_from(FILTERS["min_images"](2, reason="lonely"), TABLE)[:4]
    assert drops == ["lonely", None, "lonely", "lonely"]


def test_text_length_counts_characters_not_bytes():
    drops = reasons_from(FILTERS["text_length"](3, 49), TABLE)[:4]
    assert drops == ["text_too_short", "text_too_long", "text_too_short", None]


def test_image_size_looks_at_the_largest_image():
    drops = reasons_from(FILTERS["image_size"](64), TABLE)[:4]
    assert drops == ["images_too_small", None, "images_too_small", None]


def test_filters_agree_with_the_samples_on_tables_of_several_chunks():
    generator = np.random.default_rng(0)
    samples = [
        Sample(
            f"s-{i}",
            "test",
            tuple(
                image(*generator.integers(1, 200, 2).tolist())
                if generator.random() < 0.5
                else Segment.of_text("é" * int(generator.integers(0, 60)))
                for _ in range(int(generator.integers(1, 6)))
            ),
        )
        for i in range(200)
    ]
    rows = SAMPLES.table([sample.as_row() for sample in samples])
    table = pa.concat_tables([rows.slice(first, 7) for first in range(0, 200, 7)])

    def length(sample: Sample) -> int:
        return sum(len(s.text or "") for s in sample.segments)

    def side(sample: Sample) -> int:
        return max((min(s.width or 0, s.height or 0) for s in sample.images), default=0)

    keeps = [
        (FILTERS["min_images"](2), lambda s: len(s.images) >= 2),
        (FILTERS["image_size"](80), lambda s: side(s) >= 80),
        (FILTERS["text_length"](20, 70), lambda s: 20 <= length(s) <= 70),
        (FILTERS["text_length"](20), lambda s: length(s) >= 20),
    ]
    for filter_, is_kept in keeps:
        found = [reason is None for reason in reasons_from(filter_, table)]
        assert found == [is_kept(sample) for sample in samples]
        assert 20 < sum(found) < 180, filter_.name


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("min_images", {"minimum": 0}),
        ("text_length", {"minimum": 5, "maximum": 4}),
        ("text_length", {"minimum": -1}),
        ("image_size", {"min_side": 0}),
        ("image_size", {"max_side": 10}),
        ("image_size", {"max_drop": 90}),
        ("image_aspect", {"max_ratio": 0.5}),
        ("image_bytes", {"minimum": 9, "maximum": 8}),
        ("segment_count", {"min_images": 3, "max_images": 2}),
        ("repetition", {"max_share": 30}),
        ("repeated_captions", {"max_repeats": 0}),
        ("metadata_words", {"max_share": 30}),
        ("language", {"languages": ("english",)}),
        ("language", {"min_score": 90}),
        ("score", {}),
        ("score", {"min": 2, "max": 1}),
        ("tag", {"allowed": ()}),
        ("clip_similarity", {"min": 28, "model": "ViT-B-32", "pretrained": "openai"}),
        ("clip_similarity", {}),
        ("clip_similarity", {"pretrained": "no/such/file.pt"}),
        ("image_score", {"min": 5}),
        ("block_list", {}),
        ("block_list", {"file": "no/such/list.txt"}),
        ("evaluation_images", {"file": __file__, "radius": 40}),
        ("evaluation_texts", {"file": __file__, "num_words": 2}),
    ],
)
def test_impossible_limits_are_refused(name: str, arguments: dict):
    with pytest.raises(ValueError, match=name):
        FILTERS[name](**arguments)
