"""Attention with a block table: what it is given on any device, and on CUDA what it gives."""

from collections.abc import Sequence

import pytest
import torch
from torch.nn import functional

from emu.generate.engine import Engine
from emu.generate.page_pool import PAGE_POSITIONS, PagePool, pages_for
from emu.generate.paged_attention import (
    LONGEST_MULTIPLE,
    PackedBatch,
    PagedBatch,
    attend_packed,
    attend_pages,
    attend_pages_plainly,
    reading_of,
)
from emu.generate.prompts import TextOptions
from emu.generate.request_state import Request, RequestState
from emu.generate.step_attention import Span, StepAttention

BEFORE, NEW = (0, 20, 40, 15), (18, 1, 3, 1)
"""A whole prompt, a step after 20 positions, a chunk, a step that fills a page."""
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


def spans_over(pool: PagePool, engine: Engine) -> list[Span]:
    """Sequences whose pages lie in no order, at the lengths of `BEFORE`."""
    blockers = [pool.take([], 1) for _ in range(6)]
    for blocker in blockers[::2]:
        assert blocker is not None
        pool.release(blocker)
    spans, start = [], 0
    for length, number in zip(BEFORE, NEW, strict=True):
        request = Request(engine.encode("a"), TextOptions())
        state = RequestState(request, engine.config, engine.tokenizer, lambda ids: torch.empty(0))
        state.table = pool.take([], pages_for(length + number))
        state.length = length
        spans.append(Span(state, number, start))
        start += number
    tables = [span.state.table for span in spans]
    assert any(table is not None and not table.is_run for table in tables)
    return spans


def filled(pool: PagePool, spans: Sequence[Span], seed: int = 3) -> list[torch.Tensor]:
    """Writes what came before the step; gives queries, keys and values `THK` of the step."""
    generator = torch.Generator().manual_seed(seed)
    heads, width = pool.read(0, spans[0].state.table, 1)[0].shape[::2]  # type: ignore[arg-type]
    for span in spans:
        assert span.state.table is not None
        old = torch.randn(2, span.state.length, heads, width, generator=generator)
        pool.write(0, span.state.table.slots_S[: span.state.length], *old)
    total = sum(NEW)
    return list(torch.randn(3, total, heads, width, generator=generator))


def mixed_by_slots(engine: Engine) -> torch.Tensor:
    """The mixed values `THK` of the step, read sequence by sequence."""
    pool = PagePool(engine.model.language, 12)
    spans = spans_over(pool, engine)
    return StepAttention(pool, spans, torch.device("cpu"))(0, *filled(pool, spans))


def test_both_layouts_of_a_pool_read_what_was_written(engine: Engine) -> None:
    found = []
    for positions_first in (False, True):
        pool = PagePool(engine.model.language, 12, positions_first)
        spans = spans_over(pool, engine)
        filled(pool, spans)
        tables = [(span.state.table, span.state.length) for span in spans if span.state.length]
        reads = [pool.read(0, table, length) for table, length in tables if table is not None]
        found.append([each.contiguous() for pair in reads for each in pair])
    assert len(found[0]) == 6
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


def test_the_block_table_says_what_each_position_sees(engine: Engine) -> None:
    """Plain attention from the block table alone is that of each sequence over its slots."""
    expected = mixed_by_slots(engine)
    pool = PagePool(engine.model.language, 12, positions_first=True)
    spans = spans_over(pool, engine)
    queries, keys, values = filled(pool, spans)
    slots_T = torch.cat([s.state.table.slots_S[s.state.length :][: s.number] for s in spans])  # type: ignore[union-attr]
    pool.write(0, slots_T, keys, values)
    tables = [span.state.table.pages for span in spans]  # type: ignore[union-attr]
    batch = PagedBatch.of(tables, BEFORE, NEW)
    assert batch.bounds_N.tolist() == [0, 18, 19, 22, 23] and batch.longest_new == 32
    assert batch.lengths_N.tolist() == [18, 21, 43, 16] and batch.longest == LONGEST_MULTIPLE
    assert batch.pages_NP.shape == (4, 16) and not batch.pages_NP[3, 1:].any()
    assert all(t.dtype == torch.int32 for t in (batch.bounds_N, batch.lengths_N, batch.pages_NP))
    found = attend_pages_plainly(batch, queries, *pool.pages(0))
    assert torch.allclose(found, expected, atol=1e-6)


def test_a_table_without_enough_pages_is_an_error() -> None:
    with pytest.raises(AssertionError):
        PagedBatch.of([[1]], [PAGE_POSITIONS], [1])


def test_packed_positions_are_those_of_the_slots(engine: Engine) -> None:
    """Plain attention over what `packed` gathers is that of each sequence over its slots."""
    expected = mixed_by_slots(engine)
    pool = PagePool(engine.model.language, 12, positions_first=True)
    spans = spans_over(pool, engine)
    queries, keys, values = filled(pool, spans)
    tables = [span.state.table.slots_S for span in spans]  # type: ignore[union-attr]
    new = [
        table[before:][:number] for table, before, number in zip(tables, BEFORE, NEW, strict=True)
    ]
    pool.write(0, torch.cat(new), keys, values)
    batch = PackedBatch.of(tables, BEFORE, NEW, torch.device("cpu"))
    assert batch.bounds_N.tolist() == [0, 18, 19, 22, 23] and batch.longest_new == 18
    assert batch.key_bounds_N.tolist() == [0, 18, 39, 82, 98] and batch.longest == 43
    assert batch.bounds_N.dtype == batch.key_bounds_N.dtype == torch.int32
    found = []
    all_keys, all_values = (each.index_select(0, batch.slots_A) for each in pool.positions(0))
    for row in range(len(NEW)):
        own, seen = (
            slice(*b[row : row + 2].tolist()) for b in (batch.bounds_N, batch.key_bounds_N)
        )
        length, number = seen.stop - seen.start, own.stop - own.start
        mask = torch.ones(number, length, dtype=torch.bool).tril(length - number)
        query, key, value = (
            each.transpose(0, 1)[None] for each in (queries[own], all_keys[seen], all_values[seen])
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        found.append(mixed[0].transpose(0, 1))
    assert torch.allclose(torch.cat(found), expected, atol=1e-6)


def test_a_cpu_and_float32_read_slots() -> None:
    assert reading_of(torch.device("cpu"), torch.bfloat16, 8, 64) == "slots"
    assert reading_of(torch.device("cuda"), torch.float32, 8, 64) == "slots"


@needs_cuda
@pytest.mark.parametrize("width", [64, 128])
def test_on_cuda_one_call_gives_what_plain_attention_gives(width: int) -> None:
    device = torch.device("cuda")
    reading = reading_of(device, torch.bfloat16, 8, width)
    assert reading != "slots", "every card with Flash attention reads packed keys"
    pages = [[5, 2], [1, 4], [3, 6, 7], [0, 9]]
    batch = PagedBatch.of(pages, BEFORE, NEW).to(device)
    shapes = ((sum(NEW), 8, width), *[(10, PAGE_POSITIONS, 8, width)] * 2)
    queries, keys, values = (torch.randn(s, device=device, dtype=torch.bfloat16) for s in shapes)
    expected = attend_pages_plainly(batch, queries, keys, values)
    within_R = torch.arange(PAGE_POSITIONS)
    slots = [
        (torch.tensor(own)[:, None] * PAGE_POSITIONS + within_R).flatten().to(device)
        for own in pages
    ]
    packed = PackedBatch.of(slots, BEFORE, NEW, device)
    found = [attend_packed(packed, queries, keys.flatten(0, 1), values.flatten(0, 1))]
    if reading == "pages":
        found.append(attend_pages(batch, queries, keys, values))
    for mixed in found:
        assert (mixed - expected).float().abs().max() < 3e-2
