"""Senses and similarities against NLTK's reader, where NLTK and WordNet 3.0 are installed."""

import random
from pathlib import Path

import pytest

from emu.eval.metrics.wordnet import load_wordnet

pytestmark = pytest.mark.slow


def test_similarity_is_nltks_on_pairs_of_words():
    pytest.importorskip("nltk", reason="needs NLTK")
    from nltk.corpus import wordnet as reference

    try:
        reference.ensure_loaded()
        folder = Path(str(reference.root))
        ours = load_wordnet(folder)
    except (LookupError, OSError) as missing:
        pytest.skip(f"needs WordNet where NLTK finds it: {str(missing)[:100]}")
    if reference.get_version() != "3.0":
        pytest.skip(f"needs WordNet 3.0, found {reference.get_version()}")
    generator = random.Random(0)
    words = [
        word
        for pos in "nvar"
        for word in generator.sample(sorted(reference.all_lemma_names(pos)), 1500)
    ] + ["walked", "running", "men", "dogs", "better", "geese", "is", "was", "happier"] * 20
    # base forms that only repeated endings lead to are not NLTK's any more
    words = [word for word in words if _same_first_sense(ours, reference, word)]
    assert len(words) > 6000
    for _ in range(10_000):
        names = generator.choice(words), generator.choice(words)
        theirs = reference.synsets(names[0])[0].wup_similarity(reference.synsets(names[1])[0])
        first, second = ours.first_sense(names[0]), ours.first_sense(names[1])
        assert first is not None and second is not None
        assert ours.similarity(first, second, "nltk-3.8.1") == theirs, names


def _same_first_sense(ours, reference, word: str) -> bool:
    sense, synset = ours.first_sense(word), reference.synsets(word)[0]
    return (sense.pos, sense.offset) == (synset.pos().replace("s", "a"), synset.offset())
