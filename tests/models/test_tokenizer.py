import json
from pathlib import Path

import pytest

from emu.config import image_block
from emu.tokenizer import EmuTokenizer, train_tokenizer

TEXTS = [
    "a red circle above a blue square.",
    "there are three small triangles and 2 large stars.",
    "the green square is left of the circle.",
] * 20


def check(cases: list[dict], tokenizers: dict[str, EmuTokenizer]) -> None:
    wrong = [
        (case["variant"], case["text"])
        for case in cases
        if tokenizers[case["variant"]].encode(case["text"]) != case["ids"]
    ]
    assert wrong == []


def both(path: Path) -> dict[str, EmuTokenizer]:
    return {name: EmuTokenizer.load(path, name == "instruct") for name in ("pretrain", "instruct")}


@pytest.fixture(scope="module")
def small(golden: Path) -> dict[str, EmuTokenizer]:
    return both(golden / "emu1_small" / "tokenizer")


def test_released_ids_of_the_small_vocabulary(golden: Path, small: dict[str, EmuTokenizer]) -> None:
    record = json.loads((golden / "tokenization.json").read_text())
    assert len(record["cases"]) == 56
    assert {name: len(t) for name, t in small.items()} == {"pretrain": 404, "instruct": 406}
    check(record["cases"], small)


def test_released_ids_of_the_llama_vocabulary(shared: Path) -> None:
    if not (shared / "golden" / "llama_tokenizer").is_dir():
        pytest.skip("no LLaMA vocabulary beside the repository")
    cases = json.loads((shared / "golden" / "tokenization.json").read_text())["cases"]
    cases = [case for case in cases if case["tokenizer"] == "llama"]
    assert len(cases) == 56
    check(cases, both(shared / "golden" / "llama_tokenizer"))


def test_released_texts_of_generated_ids(golden: Path, small: dict[str, EmuTokenizer]) -> None:
    record = json.loads((golden / "emu1_small" / "meta.json").read_text())
    compared = 0
    for name, tokenizer in small.items():
        for way, texts in record[name]["generated"].items():
            ids = record[name]["generated_ids"][way]
            assert [tokenizer.decode(row) for row in ids] == texts
            compared += len(texts)
    assert compared == 14


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> EmuTokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_tokenizer(TEXTS, 400, path)
    return EmuTokenizer.load(path, instruct=True)


@pytest.mark.parametrize("text", ["a red circle", "émigré 日本語 😀", "tabs\tand\nlines", "007"])
def test_text_comes_back(trained: EmuTokenizer, text: str) -> None:
    ids = trained.encode(text, eos=True)
    assert (ids[0], ids[-1]) == (1, 2)
    assert trained.decode(ids) == text


def test_special_tokens_come_back_when_kept(trained: EmuTokenizer) -> None:
    ids = trained.encode("a square " + image_block(2) + "[USER]: what?", bos=False)
    assert trained.decode(ids) == "a square : what?"  # a fresh word mark after each special token
    kept = trained.decode(ids, skip_special=False)
    assert kept == "a square [IMG] <image> <image> [/IMG] [USER] : what?"


def test_space_beside_a_special_token_does_not_count(trained: EmuTokenizer) -> None:
    """Checked on a vocabulary that keeps every space, as LLaMA's does."""
    assert trained.encode("a  star") != trained.encode("a star")
    tight = trained.encode("a star[IMG]a star[/IMG]")
    assert trained.encode("a star [IMG]a star[/IMG]") == tight
    assert trained.encode("a star[IMG]  a star[/IMG]") == tight
    assert trained.encode("a star[IMG]a star\n[/IMG] ") == tight
    assert trained.encode(" a star[IMG]a star[/IMG]") != tight  # no special token before it


def test_the_same_texts_give_the_same_tokenizer(tmp_path: Path) -> None:
    for name in ("one", "two"):
        train_tokenizer(TEXTS, 330, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    tokenizer = EmuTokenizer.load(tmp_path / "one")
    assert tokenizer.num_pieces <= 330
    assert tokenizer.special.pad == tokenizer.num_pieces


def test_save_and_load(trained: EmuTokenizer, tmp_path: Path) -> None:
    trained.save(tmp_path / "tokenizer.model")
    again = EmuTokenizer.load(tmp_path, instruct=True)
    assert again.encode("a [IMG] star") == trained.encode("a [IMG] star")


def test_bad_arguments_are_named(trained: EmuTokenizer, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no tokenizer at .*tokenizer\.model"):
        EmuTokenizer.load(tmp_path)
    with pytest.raises(ValueError, match="token id 9999 is outside"):
        trained.decode([9999])
    with pytest.raises(ValueError, match="vocab_size is 200, give more than 260"):
        train_tokenizer(TEXTS, 200, tmp_path / "x")
