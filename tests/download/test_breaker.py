import pytest

from pipelines.core.pipeline import Rejected
from pipelines.download.host_queue import MAX_REMEMBERED, DeadHosts, HostIsDead

ORIGIN = ("a.example", 80)


class Clock:
    """Seconds that only pass when told."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_host_dies_rests_and_may_try_once_more() -> None:
    clock = Clock()
    hosts = DeadHosts(failures=2, pause_s=10.0, clock=clock)
    refused = Rejected("connect_refused", "detail")
    hosts.failed(ORIGIN, refused)
    hosts.check(ORIGIN)
    hosts.failed(ORIGIN, refused)
    with pytest.raises(HostIsDead) as caught:
        hosts.check(ORIGIN)
    assert (caught.value.reason, caught.value.detail) == ("connect_refused", "detail")
    hosts.check(("a.example", 443))
    clock.now_s = 10.0
    hosts.check(ORIGIN)
    with pytest.raises(HostIsDead):
        hosts.check(ORIGIN)
    hosts.answered(ORIGIN)
    hosts.check(ORIGIN)


def test_only_failures_in_a_row_count() -> None:
    hosts = DeadHosts(failures=2, pause_s=10.0, clock=Clock())
    for _ in range(5):
        hosts.failed(ORIGIN, Rejected("connect_timeout"))
        hosts.answered(ORIGIN)
    hosts.check(ORIGIN)


def test_the_memory_of_hosts_is_bounded() -> None:
    hosts = DeadHosts(failures=1, pause_s=10.0, clock=Clock())
    for number in range(MAX_REMEMBERED + 1):
        hosts.failed((f"h{number}.example", 80), Rejected("connect_refused"))
    hosts.check(("h0.example", 80))
    with pytest.raises(HostIsDead):
        hosts.check(("h1.example", 80))
