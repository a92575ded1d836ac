"""Requests that arrive together share one batch and answer as they do alone."""

from concurrent.futures import ThreadPoolExecutor

from emu.generate.engine import Engine
from tests.serve.conftest import Caller, parts


def test_parallel_requests_answer_as_alone(
    caller: Caller, engine: Engine, photo_png: bytes
) -> None:
    contents = [
        "a red circle",
        parts(photo_png, "describe the image"),
        "what colour is the triangle in the picture? it is green",
        parts("two blue squares ", photo_png),
    ]

    def ask(content: object) -> str:
        return caller.text(content, max_tokens=8)

    alone = [ask(content) for content in contents]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(ask, contents * 2))
    assert together == alone * 2
    pool = engine.start_batching().scheduler.pool
    assert pool.num_used == 0 and pool.num_hits > 0
