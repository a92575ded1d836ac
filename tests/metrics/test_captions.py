"""Bleu, ROUGE-L and CIDEr against the stored values of the official scorers, and their edges."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from emu.eval.metrics.captions import Bleu, Cider, RougeL, already_tokens, score_captions
from emu.eval.metrics.metric import Bootstrap

STORED = json.loads((Path(__file__).parent / "official.json").read_text(encoding="utf-8"))
PREDICTIONS, REFERENCES = STORED["tokens"]["predictions"], STORED["tokens"]["references"]
NO_INTERVAL = Bootstrap(0)


def test_scores_are_the_official_scorers_to_1e_9():
    scores = score_captions(PREDICTIONS, REFERENCES, already_tokens, NO_INTERVAL)
    assert [score.name for score in scores] == list(STORED["scores"])
    for score in scores:
        stored = STORED["scores"][score.name]
        assert score.value == pytest.approx(stored["value"], abs=1e-9)
        assert score.samples == pytest.approx(stored["samples"], abs=1e-9)


def test_cider_d_is_the_coco_scorers_cider_and_the_unclipped_one_is_not():
    values = {
        variant: Cider(already_tokens, variant, NO_INTERVAL)(PREDICTIONS, REFERENCES).value
        for variant in ("CIDEr", "CIDEr-D", "CIDEr-unclipped")
    }
    assert values["CIDEr"] == values["CIDEr-D"] != values["CIDEr-unclipped"]


def test_perfect_captions_score_highest():
    captions = {
        index: f"a {word} sits on the old red mat"
        for index, word in enumerate(["dog", "cat", "cow"])
    }
    references = {key: [text, "something else"] for key, text in captions.items()}
    assert Bleu(already_tokens, 4, NO_INTERVAL)(captions, references).value == pytest.approx(
        1, abs=1e-6
    )
    assert RougeL(already_tokens, NO_INTERVAL)(captions, references).value == pytest.approx(1)
    alone = Cider(already_tokens, bootstrap=NO_INTERVAL)(
        captions, {key: [text] for key, text in captions.items()}
    )
    assert alone.value == pytest.approx(10)


def test_one_image_has_no_cider():
    assert Cider(already_tokens, bootstrap=NO_INTERVAL)({"a": "a dog"}, {"a": ["a dog"]}).value == 0


def test_empty_captions_score_zero_and_nothing_is_nan():
    scores = score_captions(
        {1: "", 2: ""}, {1: ["a dog"], 2: ["a cat"]}, already_tokens, NO_INTERVAL
    )
    assert all(score.value == pytest.approx(0, abs=1e-9) for score in scores)
    assert not any(math.isnan(value) for score in scores for value in score.samples.values())


def test_interval_holds_the_score_and_is_the_same_for_a_seed():
    first = score_captions(PREDICTIONS, REFERENCES, already_tokens, Bootstrap(200, seed=1))
    again = score_captions(PREDICTIONS, REFERENCES, already_tokens, Bootstrap(200, seed=1))
    assert first == again
    alone = Bleu(already_tokens, 2, Bootstrap(200, seed=1))(PREDICTIONS, REFERENCES)
    wanted = first[1].interval
    assert alone.interval is not None and wanted is not None
    ends = (alone.interval.low, alone.interval.high)
    assert ends == pytest.approx((wanted.low, wanted.high), rel=1e-12)
    for score in first:
        assert score.interval is not None
        assert score.interval.low < score.value < score.interval.high


BAD_INPUTS: list[tuple[Mapping, Mapping[object, Sequence[object]], str]] = [
    ({"a": "x"}, {"a": ["x"], "b": ["y"]}, "1 of 2 references have no prediction .'b'."),
    ({"a": "x", "c": "y"}, {"a": ["x"]}, "1 of 2 predictions have no reference .'c'."),
    ({1: "x"}, {"1": ["x"]}, "types of the ids differ: int and str"),
    ({}, {}, "nothing to score"),
    ({"a": None}, {"a": ["x"]}, "'a': None"),
    ({"a": float("nan")}, {"a": ["x"]}, "predictions: 1 values are not str"),
    ({"a": "x"}, {"a": []}, "1 images have none: 'a'"),
    ({"a": "x"}, {"a": "x"}, "references: 1 values are not list or tuple"),
    ({"a": "x"}, {"a": ["x", 3]}, "references: 1 values are not str"),
    ({"a": "a  dog"}, {"a": ["x"]}, "1 captions are not tokens joined by single spaces.*'a  dog'"),
    ({"a": "x"}, {"a": ["x\n"]}, r"not tokens joined by single spaces on one line: 'x\\n'"),
]


@pytest.mark.parametrize(("predictions", "references", "message"), BAD_INPUTS)
def test_bad_input_is_an_error_that_names_it(
    predictions: Mapping, references: Mapping, message: str
):
    with pytest.raises(ValueError, match=message):
        score_captions(predictions, references, already_tokens, NO_INTERVAL)


def test_a_tokenizer_that_loses_captions_is_an_error():
    with pytest.raises(ValueError, match="2 captions were tokenized into 1"):
        RougeL(lambda captions: captions[1:])({1: "a", 2: "b"}, {1: ["a"], 2: ["b"]})


def test_an_unknown_variant_is_named():
    with pytest.raises(ValueError, match="variant is 'CIDEr-X', give one of 'CIDEr'"):
        Cider(already_tokens, "CIDEr-X")  # type: ignore[arg-type]


@pytest.mark.parametrize("order", [0, 5])
def test_an_order_outside_bleus_range_is_named(order: int):
    with pytest.raises(ValueError, match=f"order is {order}, give a whole number from 1 to 4"):
        Bleu(already_tokens, order)


def test_cider_over_one_image_warns_that_it_is_0(caplog: pytest.LogCaptureFixture) -> None:
    one, two = {"a": "a dog runs"}, {"a": "a dog runs", "b": "a cat sits"}
    (cider,) = [s for s in score_captions(one, {"a": ["a dog runs"]}) if s.name == "CIDEr"]
    assert cider.value == 0
    assert [r.getMessage() for r in caplog.records if "CIDEr" in r.getMessage()] == [
        "CIDEr over 1 image is 0 by definition: n-grams of every image have no weight; give at least 2 images"
    ]
    caplog.clear()
    score_captions(two, {key: [text] for key, text in two.items()})
    assert not caplog.records
