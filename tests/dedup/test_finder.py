"""Duplicates against a plain loop over all pairs; the result depends on neither the size of buckets nor the shards."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.dedup import several
from pipelines.dedup.candidates import NUM_PERMUTATIONS, block_masks
from pipelines.dedup.finder import EXACT, KINDS, NEAR_IMAGE, NEAR_TEXT, DuplicateFinder
from pipelines.dedup.spill import Buckets
from pipelines.dedup.text_signatures import as_matrix

Found = dict[int, tuple[str, int]]
RADIUS = 4


def found_by(
    columns: Mapping[str, pa.Array], rows_per_bucket: int = 10**6, shard: int = 37, **options: float
) -> Found:
    """For each dropped row its kind and the row that is kept."""
    num = len(next(iter(columns.values())))
    finder = DuplicateFinder(list(columns), rows_per_bucket=rows_per_bucket, **options)  # type: ignore[arg-type]
    for start in range(0, num, shard):
        keys = pa.array([f"k{n}" for n in range(start, min(num, start + shard))])
        parts = {kind: column.slice(start, shard) for kind, column in columns.items()}
        finder.add(str(start), keys, parts)
    drops = [(int(name) + d.row, d) for name, some in finder.drops() for d in some]
    assert [row for row, _ in drops] == sorted({row for row, _ in drops}), "in order, each once"
    return {row: (d.kind, int(d.kept[1:])) for row, d in drops}


def expected(columns: Mapping[str, list[int | None]]) -> Found:
    """The rules, word for word: one kind after the other, among what is left."""
    num = len(next(iter(columns.values())))
    found: Found = {}
    for kind in (k for k in KINDS if k in columns):
        values, first = columns[kind], {}
        for row in (n for n in range(num) if n not in found and values[n] is not None):
            if values[row] in first:
                found[row] = (kind, first[values[row]])
            else:
                first[values[row]] = row
        if kind == NEAR_IMAGE:
            kept: list[int] = []
            for row in (n for n in range(num) if n not in found and values[n] is not None):
                near = [
                    k for k in kept if ((values[k] or 0) ^ (values[row] or 0)).bit_count() <= RADIUS
                ]
                if near:
                    found[row] = (kind, near[0])
                else:
                    kept.append(row)
    return found


def as_columns(columns: Mapping[str, Sequence[int | None]]) -> dict[str, pa.Array]:
    return {kind: pa.array(values, pa.uint64()) for kind, values in columns.items()}


def random_hashes(rng: np.random.Generator, num: int, num_images: int) -> list[int | None]:
    images = rng.integers(0, 2**63, num_images)
    found: list[int | None] = []
    for image in images[rng.integers(0, num_images, num)].tolist():
        for bit in rng.integers(0, 64, int(rng.integers(0, 5))).tolist():
            image ^= 1 << bit
        found.append(image if rng.random() > 0.05 else None)
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rows_per_bucket", [7, 60, 10**6])
def test_the_rules_word_for_word(seed: int, rows_per_bucket: int) -> None:
    rng = np.random.default_rng(seed)
    columns: dict[str, list[int | None]] = {
        kind: [int(v) if v < 700 else None for v in rng.integers(0, 800, 400)] for kind in EXACT[:2]
    }
    columns[NEAR_IMAGE] = random_hashes(rng, 400, 60)
    wanted = expected(columns)
    assert {kind for kind, _ in wanted.values()} == set(columns)
    assert found_by(as_columns(columns), rows_per_bucket, shard=int(rng.integers(1, 90))) == wanted


@given(
    st.integers(0, 2**64 - 1),
    st.sets(st.integers(0, 63), max_size=10),
    st.integers(0, 10),
    st.integers(1, 10**9),
)
def test_hashes_within_the_radius_agree_in_a_band(
    value: int, bits: set[int], radius: int, num: int
) -> None:
    other = value ^ sum(1 << bit for bit in bits)
    agrees = any(
        (np.uint64(value) ^ np.uint64(other)) & mask == 0 for mask in block_masks(radius, num)
    )
    assert agrees or len(bits) > radius


@pytest.mark.parametrize("num_buckets", [2, 8, 10])
def test_buckets_of_a_band_have_about_as_many_rows(tmp_path: Path, num_buckets: int) -> None:
    """In a band most bits are 0 in all rows, the lowest too; the memory is that of the largest bucket."""
    hashes = np.random.default_rng(0).integers(0, 1 << 64, 20_000, np.uint64)
    for number, mask in enumerate(block_masks(4, 1_000_000)):
        with Buckets(tmp_path / f"{number}", num_buckets, 1) as buckets:
            buckets.add_by_hash(pa.table({"value": hashes}), hashes & mask)
            sizes = [spill.num_rows for spill in buckets.spills]
        assert sum(sizes) == len(hashes)
        assert max(sizes) < 1.5 * len(hashes) / num_buckets


def test_a_chain_of_near_images_does_not_end_in_one() -> None:
    chain = [0b0, 0b111, 0b111111, 0b111111111]
    assert found_by(as_columns({NEAR_IMAGE: chain})) == {1: (NEAR_IMAGE, 0), 3: (NEAR_IMAGE, 2)}


def test_a_dropped_record_is_no_reason_to_drop_another() -> None:
    # 1 is dropped for its address; the only one with its image, 2, stays.
    assert found_by(as_columns({"url": [5, 5, 6], "image": [1, 2, 2]})) == {1: ("url", 0)}


def test_a_placeholder_that_fills_a_bucket() -> None:
    columns = as_columns({"image": [7] * 5000, NEAR_IMAGE: [n % 3 for n in range(5000)]})
    assert found_by(columns, rows_per_bucket=100) == dict.fromkeys(range(1, 5000), ("image", 0))


def test_rows_of_no_shard_drop_others_and_are_never_dropped() -> None:
    finder = DuplicateFinder(["url"])
    finder.add(None, pa.array(["old/a", "old/b"]), {"url": pa.array([1, 1], pa.uint64())})
    finder.add("new", pa.array(["c", "d"]), {"url": pa.array([2, 1], pa.uint64())})
    ((shard, (drop,)),) = finder.drops()
    assert (shard, drop.row, drop.kept, drop.kind) == ("new", 1, "old/a", "url")


def test_nothing_in_and_nothing_found() -> None:
    assert found_by(as_columns({kind: [] for kind in (*EXACT, NEAR_IMAGE)})) == {}
    assert found_by(as_columns({"url": [None, None], NEAR_IMAGE: [None, None]})) == {}


def signatures(rng: np.random.Generator, similarity: float, num: int) -> pa.Array:
    """Pairs of signatures that agree in about this share of their values."""
    one = rng.integers(0, 2**32, (num, NUM_PERMUTATIONS), dtype=np.uint32)
    other = rng.integers(0, 2**32, (num, NUM_PERMUTATIONS), dtype=np.uint32)
    other = np.where(rng.random(one.shape) < similarity, one, other)
    rows = np.stack([one, other], 1).reshape(-1, NUM_PERMUTATIONS)
    return pa.array([row.astype("<u4").tobytes() for row in rows], pa.binary(4 * NUM_PERMUTATIONS))


@pytest.mark.parametrize("rows_per_bucket", [50, 10**6])
def test_texts_above_the_similarity_are_found_and_no_others(rows_per_bucket: int) -> None:
    rng = np.random.default_rng(0)
    for similarity, low, high in ((0.95, 195, 200), (0.9, 190, 200), (0.5, 0, 0)):
        columns = {NEAR_TEXT: signatures(rng, similarity, 200)}
        found = found_by(columns, rows_per_bucket, similarity=0.8)
        assert low <= len(found) <= high
        assert all(kept == row - 1 and row % 2 for row, (_, kept) in found.items())


def changed(rng: np.random.Generator, signature: np.ndarray, num: int) -> np.ndarray:
    """Signatures that differ from one in 6 of 128 values each."""
    rows = np.tile(signature, (num, 1))
    for row in rows:
        row[rng.choice(NUM_PERMUTATIONS, 6, replace=False)] = rng.integers(0, 2**32, 6)
    return rows


@pytest.mark.parametrize("rows_per_bucket", [40, 10**6])
def test_boilerplate_and_records_without_text(rows_per_bucket: int) -> None:
    rng = np.random.default_rng(1)
    texts = rng.integers(0, 2**32, (3, NUM_PERMUTATIONS), dtype=np.uint32)
    groups = [changed(rng, text, 200) for text in texts]
    values = [row.astype("<u4").tobytes() for row in np.stack(groups, 1).reshape(600, -1)]
    # Every fourth record has no text: rows and numbers of signatures are not the same.
    rows: list[bytes | None] = list(values)
    for position in range(0, 800, 4):
        rows.insert(position, None)
    found = found_by({NEAR_TEXT: pa.array(rows, pa.binary(512))}, rows_per_bucket, shard=91)
    kept = {kept for _, kept in found.values()}
    assert kept <= {1, 2, 3} | {row for row in range(800) if row not in found}
    assert all(kept < row and kept % 4 == row % 4 for row, (_, kept) in found.items())
    assert len(found) >= 590, "in rows that share a band with 16 earlier ones, nearly all are found"


def test_signatures_are_read_out_of_a_slice() -> None:
    rows = [bytes([n]) * 512 for n in range(5)]
    assert as_matrix(pa.array(rows, pa.binary(512))[2:4])[:, 0].tolist() == [0x02020202, 0x03030303]


LISTS = st.lists(
    st.one_of(
        st.none(),
        st.lists(st.sampled_from([0, 1, 7, 2**63, 2**40 + 3, 2**64 - 1]), min_size=1, max_size=3),
    ),
    max_size=60,
)


@given(LISTS, st.sampled_from([3, 10**6]))
def test_samples_of_several_images_are_near_image_by_image(
    rows: list[list[int] | None], rows_per_bucket: int
) -> None:
    found = found_by({NEAR_IMAGE: pa.array(rows, pa.list_(pa.uint64()))}, rows_per_bucket, 7)
    kept: list[int] = []
    expected: Found = {}
    for number, row in enumerate(rows):
        if row is None:
            continue
        equal = [k for k in kept if rows[k] == row]
        near = [k for k in kept if _are_near(rows[k] or [], row)]
        if near:
            expected[number] = (NEAR_IMAGE, (equal or near)[0])
        else:
            kept.append(number)
    assert set(found) == set(expected)
    assert all(_are_near(rows[kept] or [], rows[row] or []) for row, (_, kept) in found.items())


def _are_near(some: list[int], others: list[int]) -> bool:
    pairs = zip(some, others, strict=False)
    return len(some) == len(others) and all((a ^ b).bit_count() <= RADIUS for a, b in pairs)


def test_a_logo_that_all_share_hides_no_duplicate() -> None:
    others = np.random.default_rng(0).integers(0, 2**63, 200).tolist()
    rows = [[5, other] for other in others] + [[5, others[150] ^ 1]]
    found = found_by({NEAR_IMAGE: pa.array(rows, pa.list_(pa.uint64()))}, radius=1)
    assert found[200] == (NEAR_IMAGE, 150)


def popular(rng: np.random.Generator, num_popular: int, num: int) -> list[list[int]]:
    """Samples of two popular images each, and then again nearly: every place of every sample is crowded."""
    images = rng.integers(0, 2**63, num_popular)
    chosen = np.unique(rng.integers(0, num_popular, (num, 2)), axis=0)
    rows = images[rng.permutation(chosen)].tolist()
    return rows + [[one ^ 1, other ^ 2**40] for one, other in rows]


@pytest.mark.parametrize("rows_per_bucket", [2000, 10**6])
def test_samples_whose_images_are_all_popular(rows_per_bucket: int) -> None:
    rows = popular(np.random.default_rng(3), 100, 3000)  # 16 comparisons find 70% of them
    num = len(rows) // 2
    found = found_by({NEAR_IMAGE: pa.array(rows, pa.list_(pa.uint64()))}, rows_per_bucket)
    assert found == {num + n: (NEAR_IMAGE, n) for n in range(num)}


def test_one_place_that_is_not_crowded_finds_all() -> None:
    """An image in front that more samples share than are compared hides no duplicate."""
    num = several.MAX_COMPARED + 50
    others = np.random.default_rng(2).integers(0, 2**63, num).tolist()
    rows = [[5, other] for other in others] + [[5 ^ 1, others[-1] ^ 1], [5, others[0] ^ 1]]
    found = found_by({NEAR_IMAGE: pa.array(rows, pa.list_(pa.uint64()))}, shard=1000, radius=1)
    assert found == {num: (NEAR_IMAGE, num - 1), num + 1: (NEAR_IMAGE, 0)}
