"""Caption metrics against the official scorers, if Java and pycocoevalcap are installed."""

import json
import random
from pathlib import Path

import pytest

from emu.eval.metrics.captions import already_tokens, score_captions
from emu.eval.metrics.metric import Bootstrap
from tests.metrics.oracle import official_scores, official_tokens, stanford_tokenizer

pytestmark = pytest.mark.slow
STORED = Path(__file__).parent / "official.json"


def test_known_scores_of_the_official_scorers(abstract_scenes: tuple[dict, dict]):
    tokenize = stanford_tokenizer()
    scores = score_captions(
        *abstract_scenes,
        tokenize,
        Bootstrap(0),
    )
    assert {score.name: f"{score.value:.6f}" for score in scores} == {
        "Bleu_1": "0.833688",
        "Bleu_2": "0.697768",
        "Bleu_3": "0.573835",
        "Bleu_4": "0.462659",
        "ROUGE_L": "0.642443",
        "CIDEr": "0.655244",
    }


def test_tokens_are_those_of_the_official_wrapper(golden_metrics: Path):
    tokenize = stanford_tokenizer()
    captions = [
        record["caption"]
        for record in json.loads((golden_metrics / "abstract48S.json").read_text())
    ]
    captions = [*captions[:3000], "café ☃, 5 p.m.", "", "in the U.S.", "a\nb 😀", "?!", "at last"]
    assert tokenize(captions) == official_tokens(captions)


def test_stored_tokens_and_scores_are_the_official_ones():
    tokenize = stanford_tokenizer()
    stored = json.loads(STORED.read_text(encoding="utf-8"))
    tokens = stored["tokens"]
    assert tokenize(list(stored["predictions"].values())) == list(tokens["predictions"].values())
    texts = [text for found in stored["references"].values() for text in found]
    assert tokenize(texts) == [text for found in tokens["references"].values() for text in found]
    official = official_scores(tokens["predictions"], tokens["references"])
    for name, (value, samples) in official.items():
        assert stored["scores"][name]["value"] == pytest.approx(value, abs=1e-12)
        assert list(stored["scores"][name]["samples"].values()) == pytest.approx(samples, abs=1e-12)


def test_scores_of_made_tokens_are_the_official_ones_sample_by_sample():
    generator = random.Random(5)
    vocabulary = ["the", "dog", "cat", "runs", "on", "red", "é", "5", "u.s.", "n't", *"abcdefghij"]

    def made() -> str:
        return " ".join(generator.choices(vocabulary, k=generator.randint(0, 14)))

    predictions = {key: made() for key in range(1000)}
    references = {key: [made() for _ in range(generator.randint(1, 6))] for key in predictions}
    official = official_scores(predictions, references)
    for score in score_captions(predictions, references, already_tokens, Bootstrap(0)):
        value, samples = official[score.name]
        assert score.value == pytest.approx(value, abs=1e-9)
        assert list(score.samples.values()) == pytest.approx(samples, abs=1e-9)
