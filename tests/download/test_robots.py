import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.download.config import FORBIDDING, agent_token, forbidding_directive

FORBIDDING_WORDS = st.sampled_from(sorted(FORBIDDING))


@pytest.mark.parametrize(
    ("headers", "directive"),
    [
        (["noai"], "noai"),
        (["NoImageAI"], "noimageai"),
        (["nofollow, noindex"], "noindex"),
        (["all", "noimageindex"], "noimageindex"),
        (["none"], "none"),
        (["*: noai"], "noai"),
        (["emuplatform: noai"], "noai"),
        (["EmuPlatform/0.1: noai"], "noai"),
        (["otherbot: nofollow, emuplatform: noai"], "noai"),
        (["max-snippet: 20, noai"], "noai"),
        (["unavailable_after: 25 Jun 2010 15:00:00 PST, noai"], "noai"),
        (["unavailable_after: Wed, 25 Jun 2025 15:00:00 GMT", "emuplatform:noindex"], "noindex"),
        (["otherbot: noai"], None),
        (["otherbot: nofollow, noai"], None),
        (["otherbot: noai", "all"], None),
        (["emuplatform2: noai"], None),
        (["nofollow, noarchive"], None),
        (["unavailable_after: Wednesday, 25-Jun-25 15:00:00 GMT"], None),
        (["max-image-preview: none"], None),
        (["", ",", ":", "::,:"], None),
        ([], None),
    ],
)
def test_directives(headers: list[str], directive: str | None) -> None:
    assert forbidding_directive(headers, "emuplatform") == directive


@given(st.lists(st.text(max_size=40), max_size=4))
def test_any_header_is_read(headers: list[str]) -> None:
    assert forbidding_directive(headers, "emuplatform") in FORBIDDING | {None}


@given(
    FORBIDDING_WORDS, st.lists(st.sampled_from(["all", "nofollow", "max-snippet: 3"]), max_size=3)
)
def test_a_forbidding_word_is_found_anywhere_and_only_for_whom_it_is(
    word: str, others: list[str]
) -> None:
    for place in range(len(others) + 1):
        joined = ", ".join([*others[:place], word, *others[place:]])
        assert forbidding_directive([joined], "emuplatform") == word
        assert forbidding_directive([f"otherbot: {joined}"], "emuplatform") is None


@pytest.mark.parametrize(
    ("user_agent", "token"),
    [
        ("EmuPlatform/0.1 (x)", "emuplatform"),
        ("MyBot", "mybot"),
        (" Bot (+http://b.example)", "bot"),
        ("", ""),
    ],
)
def test_agent_token(user_agent: str, token: str) -> None:
    assert agent_token(user_agent) == token
