import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.download.breaker import Pause
from pipelines.download.host_queue import ByteBudget, HostQueue, Lease


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcd")), max_size=30),
    st.integers(1, 3),
    st.integers(1, 6),
)
@settings(max_examples=60)
def test_every_item_is_handed_out_once_within_the_limits(
    items: list[tuple[str, str]], per_host: int, num_workers: int
) -> None:
    """Each item is for one host and moves on to another, as redirects do."""

    async def scenario() -> tuple[list[int], int]:
        queue: HostQueue[int] = HostQueue(per_host, rate=0.0)
        now: dict[str, int] = dict.fromkeys("abcd", 0)
        done: list[int] = []
        most = 0

        async def visit(host: str) -> None:
            nonlocal most
            now[host] += 1
            most = max(most, now[host])
            await asyncio.sleep(0)
            now[host] -= 1

        async def work() -> None:
            while taken := await queue.take():
                host, number = taken
                await visit(host)
                queue.leave(host)
                onward = items[number][1]
                await queue.enter(onward)
                await visit(onward)
                queue.leave(onward)
                done.append(number)

        for number, (host, _) in enumerate(items):
            queue.add(host, number)
        await asyncio.wait_for(asyncio.gather(*(work() for _ in range(num_workers))), 5)
        return done, most

    done, most = asyncio.run(scenario())
    assert sorted(done) == list(range(len(items)))
    assert most <= per_host


def test_hosts_are_served_round_robin() -> None:
    async def order() -> list[str]:
        queue: HostQueue[int] = HostQueue(per_host=2, rate=0.0)
        for host in "aaaabbcc":
            queue.add(host, 0)
        taken = []
        while item := await queue.take():
            taken.append(item[0])
            queue.leave(item[0])
        return taken

    assert "".join(asyncio.run(order())) == "abcabcaa"


def test_a_pause_holds_a_host_back_and_no_other() -> None:
    async def scenario() -> list[str]:
        queue: HostQueue[int] = HostQueue(per_host=1, rate=0.0)
        queue.set_pause("a", Pause(asyncio.get_running_loop().time() + 0.05))
        queue.add("a", 0)
        queue.add("b", 1)
        return [item[0] for item in (await queue.take(), await queue.take()) if item]

    assert asyncio.run(scenario()) == ["b", "a"]


def test_a_cancelled_wait_passes_its_slot_on() -> None:
    async def scenario() -> None:
        queue: HostQueue[int] = HostQueue(per_host=1, rate=0.0)
        await queue.enter("a")
        first, second = (asyncio.ensure_future(queue.enter("a")) for _ in range(2))
        await asyncio.sleep(0)
        queue.leave("a")  # the first task now owns the slot and has not run yet
        first.cancel()
        await asyncio.wait_for(second, 1)
        queue.leave("a")
        await asyncio.wait_for(queue.enter("a"), 1)

    asyncio.run(scenario())


@given(st.lists(st.integers(1, 10), min_size=1, max_size=30), st.sets(st.integers(0, 29)))
@settings(max_examples=60)
def test_a_budget_is_never_overdrawn_and_never_lost(sizes: list[int], cancelled: set[int]) -> None:
    async def scenario() -> int:
        budget = ByteBudget(10)
        held = most = 0

        async def hold(size: int) -> None:
            nonlocal held, most
            lease = Lease(budget)
            try:
                await lease.grow(size)
                held += size
                most = max(most, held)
                try:
                    await asyncio.sleep(0)
                finally:
                    held -= size
            finally:
                lease.release()

        tasks = [asyncio.ensure_future(hold(size)) for size in sizes]
        await asyncio.sleep(0)
        for number in sorted(cancelled):
            if number < len(tasks):
                tasks[number].cancel()
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
        assert budget.take_now(10)
        return most

    assert asyncio.run(scenario()) <= 10


def test_a_lease_grows_shrinks_and_waits() -> None:
    async def scenario() -> None:
        budget = ByteBudget(10)
        first, second = Lease(budget), Lease(budget)
        assert first.grow_now(8)
        assert not second.grow_now(5)
        waiting = asyncio.ensure_future(second.grow(5))
        await asyncio.sleep(0)
        assert not waiting.done()
        first.shrink(5)
        await asyncio.wait_for(waiting, 1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(budget.take(1), 0.01)
        first.release()
        second.release()
        assert budget.take_now(10)

    asyncio.run(scenario())
