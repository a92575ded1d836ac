import pytest

from pipelines.core.pipeline import Rejected
from pipelines.download.breaker import MAX_REMEMBERED, CircuitBreaker, CircuitOpen

ORIGIN = ("a.example", 80)


class Clock:
    """A clock that advances only when set."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_circuit_opens_pauses_and_lets_one_request_through() -> None:
    clock = Clock()
    breaker = CircuitBreaker(failures=2, pause_s=10.0, clock=clock)
    refused = Rejected("connect_refused", "detail")
    breaker.failed(ORIGIN, refused)
    breaker.check(ORIGIN)
    breaker.failed(ORIGIN, refused)
    with pytest.raises(CircuitOpen) as caught:
        breaker.check(ORIGIN)
    assert (caught.value.reason, caught.value.detail) == ("connect_refused", "detail")
    breaker.check(("a.example", 443))
    clock.now_s = 10.0
    breaker.check(ORIGIN)
    with pytest.raises(CircuitOpen):
        breaker.check(ORIGIN)
    breaker.succeeded(ORIGIN)
    breaker.check(ORIGIN)


def test_only_failures_in_a_row_count() -> None:
    breaker = CircuitBreaker(failures=2, pause_s=10.0, clock=Clock())
    for _ in range(5):
        breaker.failed(ORIGIN, Rejected("connect_timeout"))
        breaker.succeeded(ORIGIN)
    breaker.check(ORIGIN)


def test_the_number_of_remembered_hosts_is_bounded() -> None:
    breaker = CircuitBreaker(failures=1, pause_s=10.0, clock=Clock())
    for number in range(MAX_REMEMBERED + 1):
        breaker.failed((f"h{number}.example", 80), Rejected("connect_refused"))
    breaker.check(("h0.example", 80))
    with pytest.raises(CircuitOpen):
        breaker.check(("h1.example", 80))
