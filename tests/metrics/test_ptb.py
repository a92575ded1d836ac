"""The tokenizer in Python: recorded tokens of Stanford's program for generated captions, and corner cases."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu.eval.metrics.captions import RougeL, score_captions
from emu.eval.metrics.metric import Bootstrap
from emu.eval.metrics.ptb import PUNCTUATION, PtbTokenizer, raw_tokens
from tests.metrics.absent import hide_package
from tests.metrics.ptb_probe import made_captions

# captions and their tokens, recorded in this order, which matters: the next caption is part of the context
CASES: list[list[str]] = json.loads((Path(__file__).parent / "ptb_cases.json").read_text())


def test_tokens_are_those_that_stanfords_program_gave(monkeypatch: pytest.MonkeyPatch):
    hide_package("pycocoevalcap", monkeypatch)
    found = PtbTokenizer()([caption for caption, _ in CASES])
    assert len(CASES) > 500
    assert [(caption, tokens) for (caption, _), tokens in zip(CASES, found, strict=True)] == [
        tuple(case) for case in CASES
    ]


@pytest.mark.parametrize(
    ("captions", "tokens"),
    [
        (["A dog, a Cat."], ["a dog a cat"]),
        (["He can't, she won't."], ["he ca n't she wo n't"]),
        (["It's the boys' \"5\" (red) dogs"], ["it 's the boys 5 -lrb- red -rrb- dogs"]),
        # a period depends on the beginning of the next caption
        (["see fig.", "5 dogs"], ["see fig.", "5 dogs"]),
        (["see fig.", "a dog"], ["see fig", "a dog"]),
        # a line end is white space, the end of the text is not
        (["since '98", "a"], ["since '98", "a"]),
        (["since '98"], ["since 98"]),
        (["", " ", "?!", "\U0001f600"], ["", "", "?!", ""]),
        ([], []),
    ],
)
def test_tokens_of_examples(captions: list[str], tokens: list[str]):
    assert PtbTokenizer()(captions) == tokens


def test_line_ends_inside_captions_separate_words():
    captions = [f"a{end}b" for end in "\n\r\x0b\x0c\u2028\u2029"]
    assert PtbTokenizer()([*captions, "c"]) == ["a b"] * 6 + ["c"]


def test_half_a_surrogate_pair_is_named():
    with pytest.raises(ValueError, match=r"1 captions have half a surrogate pair.*ud800b"):
        PtbTokenizer()(["a", "\ud800b"])


def test_cached_chunks_have_the_tokens_of_the_whole_text():
    captions = [*made_captions(7, 1500), *(caption for caption, _ in CASES)]
    captions = [" ".join(caption.splitlines()) for caption in captions]
    text, start, whole = "\n".join(captions), 0, []
    for caption in captions:
        line = " ".join(raw_tokens(text, start, start + len(caption))).rstrip()
        whole.append(" ".join(word for word in line.split(" ") if word not in PUNCTUATION))
        start += len(caption) + 1
    tokenize = PtbTokenizer()
    assert tokenize(captions) == whole
    assert tokenize(captions) == whole


# no deadline: the first example compiles the patterns
@settings(deadline=None)
@given(st.lists(st.text(max_size=30), max_size=4))
def test_any_text_has_tokens(captions: list[str]):
    if any("\ud800" <= unit <= "\udfff" for caption in captions for unit in caption):
        return
    tokenize = PtbTokenizer()
    found = tokenize(captions)
    assert len(found) == len(captions)
    assert tokenize(captions) == found
    assert not any(word in PUNCTUATION for text in found for word in text.split(" "))


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "piece", ["a", "a.", "a,", "<a ", "<a b='", "a@", "www.", "é.", "5 ", "(5", "'", "\xad", "漢"]
)
def test_long_captions_end_in_time(piece: str):
    assert len(PtbTokenizer()([piece * (4000 // len(piece)), "x"])) == 2


def test_scores_tokenize_by_default():
    texts, tokens = (
        {1: "A dog, and a cat.", 2: "It's 5 p.m."},
        {1: "a dog and a cat", 2: "it 's 5 p.m."},
    )
    references = {key: [text] for key, text in tokens.items()}
    assert RougeL()(texts, references).value == 1
    assert [score.value for score in score_captions(texts, references)] == [
        score.value for score in score_captions(tokens, references)
    ]


def test_known_scores_of_the_official_scorers_need_no_java(
    abstract_scenes: tuple[dict, dict], monkeypatch: pytest.MonkeyPatch
):
    hide_package("pycocoevalcap", monkeypatch)
    scores = score_captions(
        *abstract_scenes,
        bootstrap=Bootstrap(0),
    )
    known = ["0.833688", "0.697768", "0.573835", "0.462659", "0.642443", "0.655244"]
    assert [f"{score.value:.6f}" for score in scores] == known
