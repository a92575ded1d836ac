"""Columns that hold bytes equal what Arrow makes of the same values."""

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.nested_columns import column_of, numbered, placed

DATA = pa.large_binary()
FRAME = pa.struct([("data", DATA), ("width", pa.int32())])
MEDIA = pa.struct([("slot", pa.int32()), ("frames", pa.list_(FRAME)), ("decoder", pa.string())])

frames = st.fixed_dictionaries(
    {"data": st.none() | st.binary(max_size=5)}, optional={"width": st.integers(0, 9)}
)
media = st.fixed_dictionaries({"slot": st.integers(0, 3), "frames": st.lists(frames, max_size=3)})


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(media, max_size=3) | st.none(), max_size=4))
def test_values_become_what_arrow_makes_of_them(values: list) -> None:
    type_ = pa.list_(MEDIA)
    found = column_of(values, type_)
    found.validate(full=True)
    assert found.equals(pa.array(values, type_))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(media, max_size=3), max_size=4), st.randoms(use_true_random=False))
def test_numbers_lead_to_their_bytes(values: list, chance) -> None:
    column = pa.array([[], *values], pa.list_(MEDIA))[1:]
    numbers, data = numbered(column)
    wanted = [f["data"] for row in values for medium in row for f in medium["frames"]]
    assert data.to_pylist() == wanted
    found = [f["data"] for row in numbers.to_pylist() for medium in row for f in medium["frames"]]
    assert found == list(range(len(wanted)))
    order = [None, *found, None]
    assert placed(data, pa.array(order, pa.int64())).to_pylist() == [None, *wanted, None]
    chance.shuffle(order)
    shuffled = placed(data, pa.array(order, pa.int64()))
    assert shuffled.to_pylist() == [None if n is None else wanted[n] for n in order]


def test_bytes_in_order_are_not_copied() -> None:
    data = pa.array([b"first", b"second"], DATA)
    spread = placed(data, pa.array([0, None, 1], pa.int64()))
    spread.validate(full=True)
    assert spread.to_pylist() == [b"first", None, b"second"]
    assert spread.buffers()[2].address == data.buffers()[2].address


@pytest.mark.parametrize("values", [[], [None, None], [b"", None, b"x"]])
def test_bytes_alone(values: list) -> None:
    found = column_of(values, DATA)
    found.validate(full=True)
    assert found.equals(pa.array(values, DATA))
