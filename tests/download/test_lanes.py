import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.download.body import ByteBudget, Lease
from pipelines.download.host_queue import HostLanes


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcd")), max_size=30),
    st.integers(1, 3),
    st.integers(1, 6),
)
@settings(max_examples=60)
def test_all_work_is_handed_out_once_within_the_limits(
    items: list[tuple[str, str]], per_host: int, num_workers: int
) -> None:
    """Each item is for one host and moves on to another, as redirects do."""

    async def play() -> tuple[list[int], int]:
        lanes: HostLanes[int] = HostLanes(per_host, rate=0.0)
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
            while turn := await lanes.take():
                await visit(turn[0])
                lanes.leave(turn[0])
                onward = items[turn[1]][1]
                await lanes.enter(onward)
                await visit(onward)
                lanes.leave(onward)
                done.append(turn[1])

        for number, (host, _) in enumerate(items):
            lanes.add(host, number)
        await asyncio.wait_for(asyncio.gather(*(work() for _ in range(num_workers))), 5)
        return done, most

    done, most = asyncio.run(play())
    assert sorted(done) == list(range(len(items)))
    assert most <= per_host


def test_hosts_take_turns() -> None:
    async def order() -> list[str]:
        lanes: HostLanes[int] = HostLanes(per_host=2, rate=0.0)
        for host in "aaaabbcc":
            lanes.add(host, 0)
        taken = []
        while turn := await lanes.take():
            taken.append(turn[0])
            lanes.leave(turn[0])
        return taken

    assert "".join(asyncio.run(order())) == "abcabcaa"


def test_a_pause_holds_a_host_back_and_no_other() -> None:
    async def play() -> list[str]:
        lanes: HostLanes[int] = HostLanes(per_host=1, rate=0.0)
        lanes.pause("a", 0.05)
        lanes.add("a", 0)
        lanes.add("b", 1)
        return [turn[0] for turn in (await lanes.take(), await lanes.take()) if turn]

    assert asyncio.run(play()) == ["b", "a"]


def test_a_cancelled_wait_gives_its_turn_to_the_next() -> None:
    async def play() -> None:
        lanes: HostLanes[int] = HostLanes(per_host=1, rate=0.0)
        await lanes.enter("a")
        first, second = (asyncio.ensure_future(lanes.enter("a")) for _ in range(2))
        await asyncio.sleep(0)
        lanes.leave("a")  # now the turn is the first one's, who does not know it yet
        first.cancel()
        await asyncio.wait_for(second, 1)
        lanes.leave("a")
        await asyncio.wait_for(lanes.enter("a"), 1)

    asyncio.run(play())


@given(st.lists(st.integers(1, 10), min_size=1, max_size=30), st.sets(st.integers(0, 29)))
@settings(max_examples=60)
def test_a_budget_is_never_overdrawn_and_never_lost(sizes: list[int], cancelled: set[int]) -> None:
    async def play() -> int:
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

    assert asyncio.run(play()) <= 10


def test_a_lease_grows_shrinks_and_waits() -> None:
    async def play() -> None:
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

    asyncio.run(play())
