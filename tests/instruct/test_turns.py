"""Turns are cleaned by rules, and what is taken away is counted."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.core.pipeline import Rejected
from pipelines.corpora.instruct.forms import Dialogue, Role, Turn
from pipelines.corpora.instruct.markup import is_html, plain_text
from pipelines.corpora.instruct.rules import Rules
from pipelines.corpora.instruct.turns import clean
from tests.instruct.dialogues import build, reasons, samples, shown, talk

CLEANED = [
    (["a:Hi!", "u:q", "a:r"], ["user: q", "assistant: r"], {"assistant_first": 1}),
    (["u:q", "u:p", "a:r"], ["user: q\np", "assistant: r"], {}),
    (["u:q", "a:r", "a:s"], ["user: q", "assistant: r\ns"], {}),
    (["u:q", "a: \n", "u:p", "a:s"], ["user: p", "assistant: s"], {"empty": 2}),
    (["u:", "a:r", "u:p", "a:s"], ["user: p", "assistant: s"], {"empty": 2}),
    (["u:q", "a:r", "u:p"], ["user: q", "assistant: r"], {"unanswered": 1}),
    (["s:x", "s:y", "u:q", "a:r"], ["system: x y", "user: q", "assistant: r"], {}),
    (["s:", "u:q", "a:r"], ["user: q", "assistant: r"], {}),
]


def test_turns_are_cleaned_and_counted(tmp_path: Path) -> None:
    build(tmp_path, [talk(*turns) for turns, _, _ in CLEANED])
    for sample, (turns, wanted, removed) in zip(samples(tmp_path / "out"), CLEANED, strict=True):
        assert shown(sample) == wanted, turns
        assert sample.meta["removed_turns"] == removed
        assert sample.meta["scores"]["removed_turns"] == sum(removed.values())


@given(
    turns=st.lists(
        st.tuples(
            st.sampled_from(("user", "assistant", "system")), st.sampled_from(["", " ", "a", "b\n"])
        ),
        min_size=1,
        max_size=9,
    )
)
def test_a_cleaned_dialogue_alternates_and_says_something(turns: list[tuple[Role, str]]) -> None:
    dialogue = Dialogue("sharegpt", tuple(Turn(role, text) for role, text in turns))
    try:
        found = clean(dialogue, True, 1000)
    except Rejected as rejected:
        assert rejected.reason in ("no_answer", "system_in_middle")
        return
    roles = [turn.role for turn in found.turns]
    assert roles == ["user", "assistant"] * (len(roles) // 2) and roles
    assert all(turn.text.strip() for turn in found.turns)


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<p>a &amp; <b>b</b></p>", "a & b"),
        ("<div><p>one</p><p>two<br>three</p></div>", "one\n\ntwo\nthree"),
        ("<ol><li><p>a</p></li><li>b</li></ol><p>end</p>", "1. a\n2. b\n\nend"),
        ("<ul>\n<li>a</li>\n<li>b</li>\n</ul>", "- a\n- b"),
        ("<p>use <code>x &lt; y</code></p>", "use `x < y`"),
        (
            '<div><pre><div><span>python</span><button>Copy code</button></div><code class="hljs '
            'language-python">if a:\n    b  # &lt;p&gt;\n</code></pre><p>Done.</p></div>',
            "```python\nif a:\n    b  # <p>\n\n```\n\nDone.",
        ),
        (
            "<table><tr><th>a</th><th>b</th></tr><tr><td>1</td><td>2</td></tr></table>",
            "a | b\n1 | 2",
        ),
        ("<p>unclosed <b>tags", None),
        ("Why does <p>x</p> work?", None),
        ("<p>this</p> and that", None),
        ("1 < 2 > 0", None),
    ],
)
def test_html_becomes_text_and_text_stays(html: str, text: str | None) -> None:
    assert is_html(html) == (text is not None)
    if text is not None:
        assert plain_text(html) == text


def test_html_can_be_kept(tmp_path: Path) -> None:
    build(tmp_path, [talk("u:q", "a:<p>r</p>")], Rules(strip_html=False))
    assert shown(samples(tmp_path / "out")[0])[1] == "assistant: <p>r</p>"


def test_what_the_paper_left_out_of_llava(tmp_path: Path) -> None:
    detailed = "<image>\nAnalyze the image in a comprehensive and detailed manner."
    records = [
        talk(f"u:{detailed}", "a:Much.", image="red.png"),
        talk("u:Where?\n<image>", "a:On top of  the back of a cat.", image="red.png"),
        talk(f"u:{detailed}", "a:Much.", "u:Colour?", "a:Red.", image="red.png"),
        talk("u:Where?", "a:on top of the back of a cat."),
    ]
    build(tmp_path, records, Rules(paper_filter=True))
    found = reasons(tmp_path / "out")
    assert [found[n][0] for n in (1, 2, 3, 4)] == [
        *("detailed_description", "answer_pattern", None, None)
    ]
    (tmp_path / "all").mkdir()
    assert build(tmp_path / "all", records).records.kept == 4
