"""Proofs against the official scorers themselves, where Java and pycocoevalcap are installed."""

import csv
import json
import subprocess
from collections import deque
from collections.abc import Iterable
from pathlib import Path

import pytest

from emu.eval.metrics.captions import score_captions, tokenize_captions
from emu.eval.metrics.metric import Bootstrap
from emu.eval.metrics.ptb import tokenize
from emu.eval.metrics.ptb_rules import PATTERNS, PREDICATES, RULES
from emu.eval.metrics.regular import Automaton, Concatenation, Grammar
from tests.metrics.made_strings import made_strings
from tests.metrics.oracle import official_scores, official_tokens, require_java_tokenizer

pytestmark = pytest.mark.slow

# Prints the tables of the generated scanner inside the tokeniser.
DUMP = """
import java.io.*; import java.lang.reflect.*;
public class Dump { public static void main(String[] names) throws Exception {
  Class<?> scanner = Class.forName("edu.stanford.nlp.process.PTBLexer");
  for (String name : names) {
    Field field = scanner.getDeclaredField(name); field.setAccessible(true);
    Object table = field.get(null);
    try (PrintWriter out = new PrintWriter(name)) {
      for (int i = 0; i < Array.getLength(table); i++) {
        Object value = Array.get(table, i);
        out.println(value instanceof Character ? (int) (Character) value : ((Number) value).intValue());
      } } } } }
"""
TABLES = ["ZZ_LEXSTATE", "ZZ_CMAP", "ZZ_ACTION", "ZZ_ROWMAP", "ZZ_TRANS", "ZZ_ATTRIBUTE"]


def differences(captions: list[str]) -> list[tuple[str, str, str]]:
    pairs = zip(captions, tokenize(captions), official_tokens(captions), strict=True)
    return [(text, ours, theirs) for text, ours, theirs in pairs if ours != theirs]


def test_no_token_differs_on_real_captions(shared: Path):
    require_java_tokenizer()
    folder = shared / "golden" / "metrics"
    for name in ("abstract48S.json", "abstract_candsB.json"):
        captions = [record["caption"] for record in json.loads((folder / name).read_text())]
        assert differences(captions) == []
    with (shared / "sample_data" / "flickr8k" / "captions.csv").open() as rows:
        assert differences([row["caption"] for row in csv.DictReader(rows)]) == []


def test_no_token_differs_on_100_000_made_strings():
    require_java_tokenizer()
    assert differences(made_strings(100_000, seed=4)) == []


def test_stored_tokens_and_scores_are_those_of_the_official_scorers():
    require_java_tokenizer()
    stored = json.loads((Path(__file__).parent / "official.json").read_text(encoding="utf-8"))
    texts, tokens = zip(*stored["tokens"], strict=True)
    assert official_tokens(list(texts)) == list(tokens)
    captions = tokenize_captions(stored["predictions"], stored["references"])
    candidates = dict(zip(captions.keys, captions.candidates, strict=True))
    starts = captions.starts
    references = {
        key: captions.references[starts[i] : starts[i + 1]] for i, key in enumerate(captions.keys)
    }
    for name, (value, samples) in official_scores(candidates, references).items():
        assert stored["scores"][name]["value"] == pytest.approx(value, abs=1e-12)
        assert list(stored["scores"][name]["samples"].values()) == pytest.approx(samples, abs=1e-12)


def test_scores_of_made_captions_are_the_official_ones_sample_by_sample():
    require_java_tokenizer()
    strings = made_strings(6000, seed=5)
    predictions = dict(enumerate(strings[:1000]))
    references = {key: strings[1000 + 5 * key : 1005 + 5 * key] for key in predictions}
    # a candidate shares words with its references, as captions do
    predictions = {key: f"{text} {references[key][0][:40]}" for key, text in predictions.items()}
    captions = tokenize_captions(predictions, references)
    starts = captions.starts
    official = official_scores(
        dict(enumerate(captions.candidates)),
        {key: captions.references[starts[key] : starts[key + 1]] for key in range(1000)},
    )
    for score in score_captions(predictions, references, Bootstrap(0)):
        value, samples = official[score.name]
        assert score.value == pytest.approx(value, abs=1e-9)
        assert list(score.samples.values()) == pytest.approx(samples, abs=1e-9)


def test_the_automaton_is_the_scanners(tmp_path: Path):
    """Every reachable pair of states agrees on what matches, for every character: equality on all strings.

    The rules need not have the scanner's numbers, but one rule must always mean one action.
    """
    require_java_tokenizer()
    classes, actions, rows, transitions, attributes, starts = scanner_tables(tmp_path)
    grammar = Grammar(PATTERNS, PREDICATES)
    contexts = [
        grammar.parse(rule.context) if rule.context else Concatenation(()) for rule in RULES
    ]
    ours = Automaton(
        Concatenation((grammar.parse(rule.pattern), context))
        for rule, context in zip(RULES, contexts, strict=True)
    )
    characters = representatives(ours, classes)
    action_of_rule: dict[int, set[int]] = {}
    # the third start state is that of the tokeniser's default treebank rules
    seen, waiting = {(id(ours.start), starts[4])}, deque([(ours.start, starts[4])])
    while waiting:
        state, theirs = waiting.popleft()
        for character in characters:
            following = state[character]
            other = transitions[rows[theirs] + classes[ord(character)]]
            if attributes[theirs] & 8:  # nothing follows
                other = -1
            assert (following is ours.dead) == (other == -1), character
            if other == -1:
                continue
            assert (following.rule is not None) == bool(attributes[other] & 1), character
            if following.rule is not None:
                action_of_rule.setdefault(following.rule, set()).add(actions[other])
            if (id(following), other) not in seen:
                seen.add((id(following), other))
                waiting.append((following, other))
    brackets = next(index for index, rule in enumerate(RULES) if rule.action == "bracket")
    assert len(action_of_rule.pop(brackets)) == 6
    assert all(len(found) == 1 for found in action_of_rule.values())
    assert len(action_of_rule) == len(RULES) - 1


def representatives(automaton: Automaton, classes: list[int]) -> Iterable[str]:
    """A character for each way that the characters up to U+FFFF differ, to us or to the scanner."""
    found: dict[tuple[int, int], str] = {}
    for code, kind in enumerate(classes):
        found.setdefault((kind, automaton.mask(chr(code))), chr(code))
    return found.values()


def scanner_tables(folder: Path) -> list[list[int]]:
    import pycocoevalcap

    jar = Path(pycocoevalcap.__path__[0]) / "tokenizer" / "stanford-corenlp-3.4.1.jar"
    (folder / "Dump.java").write_text(DUMP)
    # a folder of its own: the source launcher needs the compiler of a JDK
    run = subprocess.run(
        ["java", "-cp", str(jar), "Dump.java", *TABLES],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode:
        pytest.skip(f"needs a JDK to read the scanner's tables: {run.stderr[:200]}")
    tables = {name: [int(line) for line in (folder / name).read_text().split()] for name in TABLES}
    return [
        tables[name]
        for name in ("ZZ_CMAP", "ZZ_ACTION", "ZZ_ROWMAP", "ZZ_TRANS", "ZZ_ATTRIBUTE", "ZZ_LEXSTATE")
    ]
