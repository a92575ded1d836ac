"""Stanford's tokenizer: its errors if it cannot run, and that every caption keeps its own tokens."""

from pathlib import Path

import pytest

from emu.eval.metrics.metric import optional_module
from emu.eval.metrics.ptb import StanfordTokenizer
from tests.metrics.absent import hide_package
from tests.metrics.oracle import stanford_tokenizer

MISSING = r"the package pycocoevalcap; .*pip install 'emu-platform\[captions\]'"


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    hide_package("pycocoevalcap", monkeypatch)
    with pytest.raises(ModuleNotFoundError, match=MISSING):
        StanfordTokenizer.find()


def test_without_java_the_error_says_so(tmp_path: Path):
    pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer", reason="needs pycocoevalcap")
    with pytest.raises(FileNotFoundError, match=r"needs Java.*no-java.*--tokenizer python"):
        StanfordTokenizer.find(str(tmp_path / "no-java"))


def test_a_missing_dependency_of_the_package_is_another_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "half_installed.py").write_text("import not_there_at_all\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match=r"'not_there_at_all'$"):
        optional_module("half_installed", "captions", "a test needs")


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo gone >&2; exit 3", r"exit code 3: gone"),
        ("printf one", r"returned 1 lines for 2 captions"),
        ("printf 'a\\nb\\n'", r"returned 3 lines for 2 captions"),
        ("exec sleep 30", r"took longer than 0\.5 s for 3 bytes"),
    ],
)
def test_a_program_that_fails_is_an_error(tmp_path: Path, script: str, message: str):
    java = tmp_path / "java"
    java.write_text(f"#!/bin/sh\n{script}\n")
    java.chmod(0o755)
    with pytest.raises(ChildProcessError, match=message):
        StanfordTokenizer(java, tmp_path / "no.jar", frozenset(), time_limit_s=0.5)(["a", "b"])


def test_half_a_surrogate_pair_is_named_and_no_captions_need_no_program(tmp_path: Path):
    tokenize = StanfordTokenizer(tmp_path / "java", tmp_path / "no.jar", frozenset())
    with pytest.raises(ValueError, match=r"1 captions have half a surrogate pair.*ud800b"):
        tokenize(["a", "\ud800b"])
    assert tokenize([]) == []


@pytest.mark.slow
def test_every_caption_keeps_its_own_tokens_whatever_it_holds():
    tokenize = stanford_tokenizer()
    # every control character, every character that some standard defines as a line end, and unclosed markup
    characters = [chr(code) for code in (*range(0x20), 0x7F, 0x85, 0x2028, 0x2029, 0xFEFF)]
    captions = [f"A dog{one}runs{index}x." for index, one in enumerate(characters)]
    captions += ["", " ", "? !", '<a href="', "<!-- ", "'>", "\r\n", "end99x"]
    tokens = tokenize(captions)
    found = [text.split(" ")[-1] for text in tokens[: len(characters)]]
    assert found == [f"runs{index}x" for index in range(len(characters))]
    assert tokens[-1] == "end99x"
    assert tokens[len(characters) : len(characters) + 3] == ["", "", ""]
