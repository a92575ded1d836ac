"""The contract of filters, tested over the registry: a registered filter is a tested filter."""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipelines.core.pipeline import Filter
from pipelines.filters import FILTERS
from schemas.sample import SAMPLES, Sample, Segment
from schemas.tables import REASON_PATTERN


def image(width: int, height: int) -> Segment:
    return Segment.of_image(b"x", "jpg", width, height)


ROWS = [
    Sample("a", "test", (Segment.of_text(""),)),
    Sample("b", "test", (Segment.of_text("é" * 50), image(30, 500), image(100, 80))),
    Sample("c", "test", (image(30, 500),)),
    Sample("d", "test", (Segment.of_text("ab"), image(64, 64), Segment.of_text("c"))),
]
TABLE = SAMPLES.table([row.as_row() for row in ROWS])


@pytest.mark.parametrize("name", FILTERS)
def test_contract(name: str, repository: Path):
    filter_ = FILTERS[name]()
    assert isinstance(filter_, Filter) and filter_.name == name
    assert (repository / f"pipelines/filters/{name}.py").is_file()
    reasons = filter_.test(TABLE)
    assert len(reasons) == len(TABLE) and reasons.type == pa.string()
    found = [r for r in reasons.to_pylist() if r is not None]
    assert found, "the table has a row that each filter drops with its defaults"
    assert all(re.fullmatch(REASON_PATTERN, r) and r in filter_.reasons for r in found)
    chunked = pa.concat_tables([TABLE.slice(0, 1), TABLE.slice(1, 0), TABLE.slice(1)])
    assert filter_.test(chunked).to_pylist() == reasons.to_pylist()
    assert len(filter_.test(TABLE.slice(0, 0))) == 0
    assert len(filter_.test(TABLE.schema.empty_table())) == 0


def test_min_images():
    drops = FILTERS["min_images"](2, reason="lonely").test(TABLE).to_pylist()
    assert drops == ["lonely", None, "lonely", "lonely"]


def test_text_length_counts_characters_not_bytes():
    drops = FILTERS["text_length"](3, 49).test(TABLE).to_pylist()
    assert drops == ["text_too_short", "text_too_long", "text_too_short", None]


def test_image_size_looks_at_the_largest_image():
    drops = FILTERS["image_size"](64).test(TABLE).to_pylist()
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
        found = [reason is None for reason in filter_.test(table).to_pylist()]
        assert found == [is_kept(sample) for sample in samples]
        assert 20 < sum(found) < 180, filter_.name


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("min_images", {"minimum": 0}),
        ("text_length", {"minimum": 5, "maximum": 4}),
        ("text_length", {"minimum": -1}),
        ("image_size", {"min_side": 0}),
        ("image_size", {"max_drop": 90}),
    ],
)
def test_impossible_limits_are_refused(name: str, arguments: dict):
    with pytest.raises(ValueError, match=name):
        FILTERS[name](**arguments)
