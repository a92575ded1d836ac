"""Pages are counted, shared by content and evicted; keys of content never mix prompts up."""

import random

import pytest
import torch

from emu.generate.engine import Engine
from emu.generate.page_pool import PAGE_POSITIONS, PagePool
from emu.generate.prefix import image_key, page_keys, weights_key

IMAGE, NUM_QUERIES = 99, 8


def test_pages_are_taken_shared_and_evicted(engine: Engine) -> None:
    pool = PagePool(engine.model.language, 6)
    first = pool.take([b"a", b"b"], 4)
    assert first is not None and first.num_shared == 0 and first.is_run and pool.num_used == 4
    assert pool.take([], 3) is None and pool.num_used == 4
    for number, key in enumerate((b"a", b"b")):
        pool.register(first, number, key)
    second = pool.take([b"a", b"x"], 3)
    assert second is not None and second.num_shared == 1 and second.pages[0] == first.pages[0]
    assert pool.num_used == 6
    pool.release(first)
    assert pool.num_used == 3 and pool.num_registered == 2
    third = pool.take([], 3)  # needs the page of b, which nobody uses, and not that of a
    assert third is not None and pool.num_registered == 1
    pool.release(second)
    pool.release(third)
    assert pool.num_used == 0
    again = pool.take([b"a", b"b"], 2)
    assert again is not None and again.num_shared == 1


def test_the_end_of_a_prompt_is_evicted_before_its_beginning(engine: Engine) -> None:
    pool = PagePool(engine.model.language, 3)
    table = pool.take([], 3)
    assert table is not None
    for number, key in enumerate((b"a", b"b", b"c")):
        pool.register(table, number, key)
    pool.release(table)
    assert pool.take([], 1) is not None
    kept = pool.take([b"a", b"b", b"c"], 2)
    assert kept is not None and kept.num_shared == 2


def test_what_is_written_is_read_from_any_pages(engine: Engine) -> None:
    pool = PagePool(engine.model.language, 4)
    tables = [pool.take([], 1) for _ in range(4)]
    for number in (0, 2, 3):
        pool.release(tables[number])  # type: ignore[arg-type]
    table = pool.take([], 3)
    assert table is not None and not table.is_run
    heads = engine.config.language.num_heads
    keys_THK = torch.randn(40, heads, engine.config.language.hidden_size // heads)
    pool.write(1, table.slots_S[:40], keys_THK, 2 * keys_THK)
    keys_HSK, values_HSK = pool.read(1, table, 40)
    assert torch.equal(keys_HSK, keys_THK.transpose(0, 1))
    assert torch.equal(values_HSK, 2 * keys_HSK)


def test_keys_of_images_and_weights(engine: Engine) -> None:
    weights = weights_key(engine.model)
    assert weights == weights_key(engine.model) != weights_key(engine.model, b"other")
    pixels = torch.rand(3, 4, 4)
    assert image_key(weights, pixels) == image_key(weights, pixels.clone())
    assert image_key(weights, pixels) != image_key(weights, pixels + 1e-6)
    assert image_key(weights, pixels) != image_key(b"other", pixels)


def fuzz_prompts(number: int) -> None:
    """Every key stands for one content: all ids and images up to the end of its page."""
    rng = random.Random(number)
    contents: dict[bytes, object] = {}
    num_shared = 0
    for _ in range(number):
        ids: list[int] = []
        images: list[bytes] = []
        for _ in range(rng.randrange(1, 6)):
            if rng.random() < 0.5:
                ids += [90, *[IMAGE] * NUM_QUERIES, 91]
                images.append(bytes([rng.randrange(3)]) * 32)
            else:
                ids += [rng.randrange(2)] * rng.randrange(1, 20)
        keys = page_keys(b"w", ids, images, IMAGE, NUM_QUERIES)
        assert len(keys) == (len(ids) - 1) // PAGE_POSITIONS
        for page, key in enumerate(keys, 1):
            head = tuple(ids[: page * PAGE_POSITIONS])
            num_images = -(-head.count(IMAGE) // NUM_QUERIES)
            content = head, tuple(images[:num_images])
            num_shared += key in contents
            assert contents.setdefault(key, content) == content
    assert num_shared > 0


def test_no_prompt_hits_the_pages_of_another() -> None:
    fuzz_prompts(3000)


@pytest.mark.slow
def test_no_prompt_of_many_hits_the_pages_of_another() -> None:
    fuzz_prompts(100_000)
