"""Accuracy by agreement of annotators in each mode, against a plain transcription of the official scorer."""

import json
import random
import re
from collections import Counter
from pathlib import Path

import pytest

from emu.eval.metrics.answers import (
    ARTICLES,
    CONTRACTIONS,
    NUMBERS,
    normalized,
    short_answer,
    short_caption,
    stem,
    textvqa_normalized,
    without_punctuation,
)
from emu.eval.metrics.metric import Bootstrap
from emu.eval.metrics.vqa import VqaAccuracy, VqaReference

NO_INTERVAL = Bootstrap(0)


def question(*answers: str, **others: str) -> VqaReference:
    return VqaReference(answers, **others)  # type: ignore[arg-type]


def accuracy(
    prediction: str, reference: VqaReference, mode: str = "official", stemmed: bool = False
) -> float:
    return VqaAccuracy(mode, stemmed, NO_INTERVAL).accuracy(prediction, reference)  # type: ignore[arg-type]


def test_agreement_counts_others_up_to_three():
    assert accuracy("red", question(*["red"] * 10)) == 1
    assert accuracy("red", question("red", *["blue"] * 9)) == pytest.approx(9 * (1 / 3) / 10)
    assert accuracy("red", question("red", "red", "red", *["blue"] * 7)) == pytest.approx(
        (3 * 2 / 3 + 7) / 10
    )
    assert accuracy("green", question("red", "blue")) == 0


def test_official_mode_normalizes_only_if_annotators_differ():
    same, different = question(*["red"] * 10), question(*["red"] * 9, "blue")
    assert (accuracy("The red.", same), accuracy("The red.", different)) == (0, 1)
    assert accuracy("The red.", same, "always_normalized") == 1


def test_released_mode_normalizes_predictions_fully_and_references_only_by_punctuation():
    assert accuracy("two", question(*["2"] * 10), "released") == 1
    assert accuracy("2", question(*["two"] * 9, "2"), "released") == pytest.approx(9 / 30)
    assert (
        accuracy("running dogs", question(*["run dog"] * 9, "cats"), "released", stemmed=True) == 0
    )
    assert accuracy("dogs", question(*["dog"] * 9, "cats"), "released", stemmed=True) == 1


def test_textvqa_mode_splits_possessives_and_drops_commas():
    assert textvqa_normalized("The Dog's 1,000 bones?") == "dog 's 1000 bones"
    assert accuracy("1,000", question(*["1000"] * 10), "textvqa") == 1


def test_equal_answers_of_the_same_confidence_are_one_annotator_in_vizwiz():
    answers = ["red"] * 4 + ["blue"] * 6
    alone = VqaReference(answers, ["yes"] * 10)
    assert accuracy("red", alone) == pytest.approx(6 / 10)
    assert accuracy("red", VqaReference(answers)) == 1


def test_groups_are_means_by_question_and_answer_type():
    references = {
        1: question(*["red"] * 10, question_type="what", answer_type="other"),
        2: question(*["yes"] * 10, question_type="is", answer_type="yes/no"),
        3: question(*["no"] * 10, question_type="is", answer_type="yes/no"),
    }
    score = VqaAccuracy(bootstrap=NO_INTERVAL)({1: "red", 2: "yes", 3: "yes"}, references)
    assert score.value == pytest.approx(200 / 3)
    assert score.groups == {
        "question_type/what": 100,
        "question_type/is": 50,
        "answer_type/other": 100,
        "answer_type/yes/no": 50,
    }


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The two red-cats", "2 red cats"),
        ("red, blue", "red blue"),
        ("1,000 dogs!", "1000 dogs"),
        ("red/blue 1,2", "redblue 12"),
        ("dont know", "don't know"),
        ("3.5 a.m.", "3.5 am"),
        ("a\tred\n", "red"),
        ("." * 40 + "x", "." * 8 + "x"),
        ("", ""),
    ],
)
def test_official_normalization(answer: str, expected: str):
    assert normalized(answer) == expected


def transcribed_normalization(text: str) -> str:
    """The official scorer's steps, as its code states them."""
    text = text.replace("\n", " ").replace("\t", " ").strip()
    result = text
    for mark in ';/[]"{}()=+\\_-><@`,?!':
        if (mark + " " in text or " " + mark in text) or re.search(
            r"(\d)(\,)(\d)", text
        ) is not None:
            result = result.replace(mark, "")
        else:
            result = result.replace(mark, " ")
    result = re.compile(r"(?!<=\d)(\.)(?!\d)").sub("", result, count=32)
    words = [NUMBERS.get(word, word) for word in result.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def made_answers(count: int, seed: int) -> list[str]:
    """Strings of letters, and of words, numbers and punctuation with and without spaces between."""
    generator = random.Random(seed)
    letters = "aeiouybcdlnrstz' -5éA"
    words = "the The a an none two ten dont don't im Yes 1,000 3.5 12 5' p.m. é 日本 😀"
    pieces = [*words.split(), *" \t\n;/[]\"{}()=+\\_-<>@`,?!.'&%$#*~:|"]

    def one() -> str:
        if generator.random() < 0.5:
            return "".join(generator.choices(letters, k=generator.randint(0, 18)))
        gap = generator.choice(["", " "])
        return gap.join(generator.choices(pieces, k=generator.randint(0, 8)))

    return [one() for _ in range(count)]


def test_normalization_is_the_official_one_on_generated_strings():
    strings = made_answers(3000, seed=6)
    assert [normalized(text) for text in strings] == [
        transcribed_normalization(text) for text in strings
    ]


def test_accuracy_is_the_official_one_on_generated_answers():
    generator = random.Random(3)
    words = ["red", "Red.", "the red", "blue", "2", "two", "dont", "don't", "a b", ""]
    for _ in range(300):
        answers = [
            {"answer": generator.choice(words), "confidence": generator.choice("ab")}
            for _ in range(10)
        ]
        prediction = generator.choice(words)
        reference = VqaReference([a["answer"] for a in answers], [a["confidence"] for a in answers])
        if len({answer["answer"].strip() for answer in answers}) > 1:
            prediction = transcribed_normalization(prediction)
            answers = [
                {**answer, "answer": transcribed_normalization(answer["answer"])}
                for answer in answers
            ]
        scores = []
        for answer in answers:
            others = [other for other in answers if other != answer]
            scores.append(min(1, sum(other["answer"] == prediction for other in others) / 3))
        assert accuracy(prediction, reference) == pytest.approx(sum(scores) / 10)


def test_known_scores_of_vizwiz(golden_metrics: Path):
    annotations = json.loads((golden_metrics / "val_annotations_vqa_format.json").read_text())[
        "annotations"
    ]
    references = {
        record["question_id"]: VqaReference(
            [answer["answer"] for answer in record["answers"]],
            [answer["answer_confidence"] for answer in record["answers"]],
        )
        for record in annotations
    }
    metric, always = (
        VqaAccuracy(bootstrap=NO_INTERVAL),
        VqaAccuracy("always_normalized", bootstrap=NO_INTERVAL),
    )
    first = {key: reference.answers[0] for key, reference in references.items()}
    most = {
        key: Counter(reference.answers).most_common(1)[0][0]
        for key, reference in references.items()
    }
    wrapped = {key: f"The {answer}." for key, answer in first.items()}
    cases = [
        (dict.fromkeys(references, "unanswerable"), metric, "42.9413"),
        (dict.fromkeys(references, "yes"), metric, "2.8579"),
        (most, metric, "67.0626"),
        (first, metric, "54.6184"),
        (wrapped, metric, "50.2562"),
        (wrapped, always, "54.6184"),
    ]
    for predictions, scorer, expected in cases:
        assert f"{scorer(predictions, references).value:.4f}" == expected


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("It is a red dog. And more", "red dog"),
        ('"quoted"', ""),
        ("a an the cat", "cat"),
        ("the a cat", "a cat"),
        ("Yes, it is", "yes"),
        ("No.\nmore", "no"),
        ("it's ITS.", "its"),
        ("", ""),
    ],
)
def test_short_answers_of_the_released_evaluation(reply: str, answer: str):
    assert short_answer(reply) == answer


def test_short_captions_of_the_released_evaluation():
    assert short_caption("A dog. It runs.\nx") == "a dog"
    assert short_caption("A Dog.") == "a dog"


# Words and their stems by NLTK's PorterStemmer in its default mode; the other modes give other stems.
STEMS = """
caresses caress ponies poni ties tie died die agreed agre feed feed plastered plaster hopping hop falling fall
filing file happy happi enjoy enjoy relational relat probably probabl geology geolog formality formal news news
sky sky skies sky dying die oed o controlling control rate rate cease ceas ion ion
"""


def test_stems_are_those_of_nltks_default_mode():
    words = STEMS.split()
    assert [stem(word) for word in words[::2]] == words[1::2]
    assert stem("Running Dogs") == "running dog"


def test_a_comma_between_digits_affects_all_punctuation():
    assert without_punctuation("a-b") == "a b"
    assert without_punctuation("a-b 1,2") == "ab 12"


def test_bad_input_is_named():
    metric = VqaAccuracy(bootstrap=NO_INTERVAL)
    with pytest.raises(ValueError, match="predictions: 1 values are not str: 1: 2"):
        metric({1: 2}, {1: question("x")})  # type: ignore[dict-item]
    # text is a sequence of its letters
    with pytest.raises(ValueError, match="references: 1 values are not list or tuple: 1: 'red'"):
        metric({1: "x"}, {1: VqaReference("red")})
    with pytest.raises(ValueError, match="1 questions have no answers: 1"):
        metric({1: "x"}, {1: question()})
    with pytest.raises(ValueError, match="do not have one annotator per answer"):
        metric({1: "x"}, {1: VqaReference(["x", "y"], ["a"])})
    with pytest.raises(ValueError, match=r"needs mode 'released'.*mode is 'official'"):
        VqaAccuracy("official", stemmed=True)
    with pytest.raises(ValueError, match="mode is 'other', give one of 'official'"):
        VqaAccuracy("other")  # type: ignore[arg-type]


def test_textvqa_ignores_the_annotators():
    answers = ["red"] * 4 + ["blue"] * 6
    reference = VqaReference(answers, ["yes"] * 10)
    assert accuracy("red", reference, "textvqa") == pytest.approx((4 * 1 + 6 * 1) / 10)
    assert accuracy("red", reference) == pytest.approx(6 / 10)


def test_missing_annotators_are_named():
    with pytest.raises(ValueError, match="do not have one annotator per answer"):
        VqaAccuracy(bootstrap=NO_INTERVAL)({1: "x"}, {1: VqaReference(["x", "y"], [])})


def transcribed_punctuation(text: str) -> str:
    """The official scorer's treatment of punctuation only."""
    marks = ';/[]"{}()=+\\_-><@`,?!'
    inside = re.search(r"(\d)(\,)(\d)", text) is not None
    result = text
    for mark in marks:
        touches = mark + " " in text or " " + mark in text
        result = result.replace(mark, "" if touches or inside else " ")
    return re.compile(r"(?!<=\d)(\.)(?!\d)").sub("", result, count=32)


def agreement(prediction: str, answers: list[str]) -> float:
    """The mean over numbered answers of what the others agree."""
    numbered = list(enumerate(answers))
    others = [[other for other in numbered if other != one] for one in numbered]
    return sum(min(1, sum(text == prediction for _, text in found) / 3) for found in others) / len(
        answers
    )


def transcribed_words(text: str) -> str:
    """The official scorer's treatment of words only."""
    words = [NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def transcribed_accuracy(mode: str, prediction: str, answers: list[str]) -> float:
    """What the released evaluation and M4C's evaluator compute of ten numbered answers."""
    if mode == "textvqa":

        def processed(text: str) -> str:
            text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
            return transcribed_normalization(text)

        return agreement(processed(prediction), [processed(text) for text in answers])
    line = prediction.replace("\n", " ").replace("\t", " ").strip()
    if len(set(answers)) > 1:
        answers = [transcribed_punctuation(text) for text in answers]
    return agreement(transcribed_words(transcribed_punctuation(line)), answers)


@pytest.mark.parametrize("mode", ["textvqa", "released"])
def test_other_modes_are_their_evaluators_on_generated_answers(mode: str):
    generator = random.Random(11)
    made = made_answers(600, seed=12)
    right = 0.0
    for _ in range(600):
        few = generator.sample(made, 2)
        answers = [generator.choice(few) for _ in range(10)]
        prediction = generator.choice([*few, few[0].upper(), few[0] + ".", "the " + few[1]])
        reference = VqaReference(answers, list(range(10)))
        found = accuracy(prediction, reference, mode)
        assert found == pytest.approx(transcribed_accuracy(mode, prediction, answers), abs=1e-12)
        right += found
    assert right > 100
