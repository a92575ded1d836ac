"""Time limits around many waits, and what ends them from outside."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from emu.serve.deadline import Deadline
from emu.serve.server import ClientGone, unless_gone

TIMEOUT_S = 10.0


def in_loop(job: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(job(), TIMEOUT_S))


async def forever() -> None:
    await asyncio.Event().wait()


def test_a_deadline_ends_a_wait_and_every_later_one_but_no_block_that_need_not_wait() -> None:
    async def job() -> None:
        deadline = Deadline(asyncio.get_running_loop().time() + 0.01)
        with deadline:
            await asyncio.sleep(0)
        for _ in range(2):
            with pytest.raises(TimeoutError), deadline:
                await forever()
        with deadline:
            pass
        await asyncio.sleep(0.01)
        task = asyncio.current_task()
        assert task is not None and not task.cancelling()

    in_loop(job)


def test_a_deadline_that_is_closed_or_not_entered_ends_nothing() -> None:
    async def job() -> None:
        loop = asyncio.get_running_loop()
        closed, outside = Deadline(loop.time() + 0.01), Deadline(loop.time() + 0.01)
        with closed:
            closed.close()
            await asyncio.sleep(0.03)
        outside.close()

    in_loop(job)


def test_an_end_from_outside_is_no_timeout() -> None:
    async def job() -> None:
        async def wait() -> None:
            with Deadline(asyncio.get_running_loop().time() + TIMEOUT_S):
                await forever()

        task = asyncio.ensure_future(wait())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    in_loop(job)


@pytest.mark.parametrize("is_outer", [False, True])
def test_a_client_that_goes_away_ends_the_job_alone(is_outer: bool) -> None:
    """`is_outer`: the task is cancelled as well, which must not be taken for the client."""
    ended: list[str] = []

    async def work() -> None:
        try:
            await forever()
        finally:
            ended.append("job")

    async def job() -> None:
        gone = asyncio.Event()

        async def receive() -> dict[str, Any]:
            await gone.wait()
            return {"type": "http.disconnect"}

        task = asyncio.ensure_future(unless_gone(receive, work()))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        if is_outer:
            task.cancel()
        gone.set()
        with pytest.raises(asyncio.CancelledError if is_outer else ClientGone):
            await task

    in_loop(job)
    assert ended == ["job"]
