"""The tokenizer in Python against Stanford's program, if Java and pycocoevalcap are installed."""

import csv
import json
from pathlib import Path

import pytest

from emu.eval.metrics.ptb import PUNCTUATION, PtbTokenizer
from tests.metrics.oracle import official_tokens, stanford_tokenizer
from tests.metrics.ptb_probe import differences, made_captions

pytestmark = pytest.mark.slow
LINE_ENDS = "\n\r\x0b\x0c\u2028\u2029"


def test_captions_of_abstract_scenes_have_stanfords_tokens(golden_metrics: Path):
    for name in ("abstract48S.json", "abstract_candsB.json"):
        captions = [record["caption"] for record in json.loads((golden_metrics / name).read_text())]
        assert differences(captions, stanford_tokenizer()) == []


def test_captions_of_photos_have_stanfords_tokens(sample_data: Path):
    path = sample_data / "flickr8k" / "captions.csv"
    if not path.is_file():
        pytest.skip("no captions.csv of Flickr8k in shared/sample_data")
    with path.open(encoding="utf-8", newline="") as rows:
        captions = [row["caption"] for row in csv.DictReader(rows)]
    assert len(captions) > 3000
    assert differences(captions, stanford_tokenizer()) == []


@pytest.mark.parametrize("seed", [11, 12])
def test_generated_captions_differ_only_in_capital_sigmas(seed: int):
    found = differences(made_captions(seed, 100_000), stanford_tokenizer())
    assert len(found) <= 3
    assert [one for one in found if "\u03a3" not in one[0]] == []


@pytest.mark.parametrize(
    "form",
    ["ab{0}cd 5{0}6 {0}x x{0}", "{0}{0} a.{0} etc. {0}b '{0}x", '@{0}b #{0} b-{0} "{0} -{0}.'],
)
def test_every_character_of_the_basic_multilingual_plane_has_stanfords_tokens(form: str):
    codes = (code for code in range(1, 0x10000) if not 0xD800 <= code < 0xE000)
    characters = [chr(code) for code in codes if chr(code) not in LINE_ENDS]
    characters += [chr(code) for code in range(0x10000, 0x110000, 509)]
    assert differences([form.format(one) for one in characters], stanford_tokenizer()) == []


def test_tokens_and_punctuation_are_those_of_the_official_wrapper():
    captions = [caption for caption in made_captions(5, 3000) if not set(caption) & {"\r", "\x0b"}]
    assert PtbTokenizer()(captions) == official_tokens(captions)
    assert stanford_tokenizer().punctuation == PUNCTUATION
