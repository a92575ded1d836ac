from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.download.breaker import HOST_FAILURES
from pipelines.download.reasons import FETCH_REASONS, RETRYABLE, backoff_s, retry_after_s

NOW = datetime(1994, 11, 15, 11, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": " 0 "}, 0.0),
        ({"Retry-After": "9" * 400}, 1e9),
        ({"Retry-After": "Tue, 15 Nov 1994 11:00:30 GMT"}, 30.0),
        ({"Retry-After": "Tue, 15 Nov 1994 10:00:00 GMT"}, 0.0),
        (
            {
                "Retry-After": "Tue, 15 Nov 1994 12:00:05 GMT",
                "Date": "Tue, 15 Nov 1994 12:00:00 GMT",
            },
            5.0,
        ),
        ({"Retry-After": "-5"}, None),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "²"}, None),
        ({"Retry-After": "Tue, 99 Nov 1994 11:00:30 GMT"}, None),
        ({}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_s(headers, NOW) == seconds


@given(st.text(max_size=40), st.text(max_size=40))
def test_any_retry_after_is_read(value: str, date: str) -> None:
    seconds = retry_after_s({"Retry-After": value, "Date": date}, NOW)
    assert seconds is None or seconds >= 0.0


def test_backoff_doubles_within_its_jitter_and_repeats() -> None:
    for attempt in (1, 2, 3):
        waits = [backoff_s(1.0, attempt, f"http://a.example/{n}") for n in range(200)]
        middle = 2.0 ** (attempt - 1)
        assert min(waits) >= 0.5 * middle
        assert max(waits) <= 1.5 * middle
        assert max(waits) - min(waits) > 0.8 * middle
        assert waits == [backoff_s(1.0, attempt, f"http://a.example/{n}") for n in range(200)]


def test_every_word_is_in_the_table_of_reasons() -> None:
    assert set(FETCH_REASONS) >= RETRYABLE | HOST_FAILURES
    assert all(FETCH_REASONS[word].retryable for word in RETRYABLE)
    assert all(word.replace("_", "").isalnum() and word.islower() for word in FETCH_REASONS)
    assert all(reason.meaning.endswith((".", "…")) for reason in FETCH_REASONS.values())
