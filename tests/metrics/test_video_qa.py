"""NExT-QA multiple choice, one-word answers, and WUPS on a small synthetic WordNet."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from emu.eval.metrics.files import predicted_values
from emu.eval.metrics.lemmas import (
    nltk_folders,
    nltk_lemmas,
    rule_lemmas,
    rule_tags,
    split_words,
    tagged_lemmas,
)
from emu.eval.metrics.metric import Bootstrap
from emu.eval.metrics.video_qa import ChoiceReference, NextQaChoice, WordAccuracy, WordReference
from emu.eval.metrics.wordnet import WordNet, find_wordnet, load_wordnet
from emu.eval.metrics.wups import OpenReference, Wups, open_references
from tests.metrics.small_wordnet import write_wordnet

NO_INTERVAL = Bootstrap(0)


@pytest.fixture(scope="module")
def wordnet(tmp_path_factory: pytest.TempPathFactory) -> WordNet:
    return WordNet.load(write_wordnet(tmp_path_factory.mktemp("wordnet")))


def similarity(wordnet: WordNet, first: str, second: str, rule: str = "nltk-3.3") -> float | None:
    senses = wordnet.first_sense(first), wordnet.first_sense(second)
    assert senses[0] is not None and senses[1] is not None
    return wordnet.similarity(senses[0], senses[1], rule)  # type: ignore[arg-type]


def test_choices_by_type_count_previous_as_next():
    references = {
        "a": ChoiceReference(0, "CW"),
        "b": ChoiceReference(1, "TP"),
        "c": ChoiceReference(2, "TN"),
    }
    score = NextQaChoice(NO_INTERVAL)({"a": 0, "b": 1, "c": 3}, references)
    assert score.value == pytest.approx(200 / 3)
    assert score.groups == {"C": 100, "T": 50, "CW": 100, "TN": 50}


def test_known_scores_of_nextqa_choices(golden_metrics: Path):
    rows = list(csv.DictReader((golden_metrics / "nextqa_mc_val.csv").open()))
    references = {
        f"{row['video']}_{row['qid']}": ChoiceReference(int(row["answer"]), row["type"])
        for row in rows
    }
    answers = json.loads((golden_metrics / "nextqa_mc_val_predictions.json").read_text())
    score = NextQaChoice(NO_INTERVAL)(
        {key: value["prediction"] for key, value in answers.items()}, references
    )
    found = [f"{value:.2f}" for value in (score.value, *(score.groups[kind] for kind in "CTD"))]
    assert found == ["49.74", "46.26", "50.74", "59.33"]


def test_one_word_answers_ignore_case_and_a_final_period():
    references = {
        1: WordReference("dog", "what is it?"),
        2: WordReference("man", "who runs"),
        3: WordReference("two", "How many"),
        4: WordReference("no", "is it red"),
    }
    score = WordAccuracy(bootstrap=NO_INTERVAL)(
        {1: " Dog.", 2: "woman", 3: "2", 4: "the no"}, references
    )
    assert score.groups == {"what": 100, "who": 0, "how": 0, "other": 0}
    loose = WordAccuracy("vqa", NO_INTERVAL)(
        {1: " Dog.", 2: "woman", 3: "2", 4: "the no"}, references
    )
    assert loose.groups == {"what": 100, "who": 0, "how": 100, "other": 100}


def test_bad_choices_are_named():
    reference = {"a": ChoiceReference(0, "XX")}
    with pytest.raises(ValueError, match="1 question types are none of CW"):
        NextQaChoice(NO_INTERVAL)({"a": 0}, reference)
    with pytest.raises(ValueError, match="predictions: 1 values are not int: 'a': True"):
        NextQaChoice(NO_INTERVAL)({"a": True}, {"a": ChoiceReference(1, "CW")})


def test_similarity_is_twice_the_depth_over_both_paths(wordnet: WordNet):
    # entity > animal > dog, cat; depths count from 1
    assert similarity(wordnet, "dog", "cat") == pytest.approx(2 * 2 / (3 + 3))
    assert similarity(wordnet, "dog", "animal") == pytest.approx(2 * 2 / (3 + 2))
    assert similarity(wordnet, "dog", "dog") == 1


def test_only_a_verb_as_first_word_has_the_artificial_root(wordnet: WordNet):
    # walk > move; the root above move makes 1 of depth; dog is 3 below it, walk 2
    assert similarity(wordnet, "walk", "dog") == pytest.approx(2 / (3 + 4))
    assert similarity(wordnet, "dog", "walk") is None
    assert similarity(wordnet, "dog", "walk", "nltk-3.8.1") == pytest.approx(2 / (4 + 3))
    assert similarity(wordnet, "red", "dog") is None
    assert similarity(wordnet, "red", "dog", "nltk-3.8.1") == pytest.approx(2 / (2 + 4))


def test_equally_deep_hypernyms_are_ordered_by_name(wordnet: WordNet):
    # two verbs without a common hypernym meet in the root, and so do a top verb and its child in NLTK's order
    assert similarity(wordnet, "walk", "sleep") == pytest.approx(2 / (3 + 2))
    assert similarity(wordnet, "move", "walk") == pytest.approx(2 * 1 / (1 + 2))
    assert similarity(wordnet, "walk", "move") == pytest.approx(2 / (3 + 2))


def test_inflected_words_are_found(wordnet: WordNet):
    assert wordnet.base_forms("dogs", "n") == ["dog"]
    assert wordnet.base_forms("geese", "n") == ["goose"]
    assert wordnet.base_forms("walking", "v") == ["walk"]
    assert wordnet.first_sense("nothing") is None


def test_wups_takes_the_smaller_product_of_best_similarities(wordnet: WordNet):
    metric = Wups(wordnet, rule_lemmas(wordnet), {"the"}, bootstrap=NO_INTERVAL)
    assert metric.answer_similarity(["dog"], ["dog"]) == 1
    assert metric.answer_similarity(["dog", "xyz"], ["cat"]) == pytest.approx(4 / 6)
    assert metric.answer_similarity(["dog"], ["xyz"]) == 0
    assert metric.answer_similarity([], ["dog"]) == 0
    strict = Wups(wordnet, rule_lemmas(wordnet), {"the"}, threshold=0.9)
    assert strict.answer_similarity(["dog"], ["cat"]) == pytest.approx(0.4 / 6)


def test_wups_of_questions_by_type_is_exact_for_counts_and_yes_no(wordnet: WordNet):
    metric = Wups(wordnet, rule_lemmas(wordnet), {"the"}, bootstrap=NO_INTERVAL)
    references = {
        1: OpenReference(["the dogs"], "CW"),
        2: OpenReference(["dog"], "DC"),
        3: OpenReference(["cat", "goose"], "TP"),
    }
    score = metric({1: "Dog", 2: "cat", 3: "goose"}, references)
    assert score.samples == {1: 1, 2: 0, 3: 1}
    assert score.groups == {"C": 100, "D": 0, "T": 100, "CW": 100, "DC": 0, "TPN": 100}


def test_lemmas_follow_the_tags_of_the_words(wordnet: WordNet):
    tags = {"dogs": "NNS", "walking": "VBG", "Geese": "NNS", "walks": "IN", "blurred": "VBN"}
    lemmatize = tagged_lemmas(wordnet, lambda words: [tags.get(word, "NN") for word in words])
    # "walks" has no useful tag, so it counts as a noun; it is kept, since it has senses, if only as a verb
    assert lemmatize("dogs walking Geese walks") == ["dog", "walk", "goose", "walks"]
    # a word without a sense is replaced by its stem if that has one
    assert lemmatize("catness blurred") == ["cat", "blurred"]


def test_rules_tag_by_the_words_senses_neighbours_and_endings(wordnet: WordNet):
    tag = rule_tags(wordnet)
    assert tag(["walk", "to", "the", "red", "dogs"]) == ["VB", "TO", "DT", "JJ", "NN"]
    # "jump" is a noun and a verb of as many senses
    assert [tag([word, "jump"])[1] for word in ("a", "to", "They", "His")] == [
        "NN",
        "VB",
        "VB",
        "NN",
    ]
    assert tag(["a", "jumping", "12", "xyz", "fast"]) == ["DT", "VBG", "CD", "NN", "RB"]
    assert tag([]) == []
    assert rule_lemmas(wordnet)("Dogs walking to the geese") == [
        "dog",
        "walk",
        "to",
        "the",
        "goose",
    ]


def test_nltks_tagger_gives_the_lemmas_if_its_data_is_found(
    wordnet: WordNet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
):
    import nltk

    folder = tmp_path / "taggers" / "averaged_perceptron_tagger_eng"
    folder.parent.mkdir()
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    nltk.tag._get_tagger.cache_clear()
    request.addfinalizer(nltk.tag._get_tagger.cache_clear)
    with pytest.raises(FileNotFoundError, match="averaged_perceptron_tagger_eng"):
        nltk_lemmas(wordnet)
    small = nltk.tag.perceptron.PerceptronTagger(load=False)
    # after "a" a noun, else a verb
    pairs = [[("walks", "VBZ"), ("a", "DT"), ("walks", "NNS")]] * 20
    small.train(pairs)
    small.save_to_json("eng", str(folder))
    lemmatize = nltk_lemmas(wordnet)
    assert lemmatize("walks a walks") == ["walk", "a", "walks"]


def test_words_keep_their_hyphens_and_apostrophes():
    assert split_words("to  hi-five him, don't ...") == [
        "to",
        "hi-five",
        "him",
        ",",
        "don't",
        *"...",
    ]
    assert split_words(" - \n") == ["-"]


def test_a_folder_without_wordnet_is_an_error_with_a_hint(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"WordNet 3\.0 is not in .* wordnet-base"):
        load_wordnet(tmp_path)


def test_another_version_of_wordnet_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"has WordNet 3\.1; .*WordNet 3\.0"):
        load_wordnet(write_wordnet(tmp_path, "3.1"))


def test_wordnet_as_nltk_downloads_it_is_found_and_read(tmp_path: Path):
    folder = tmp_path / "corpora" / "wordnet"
    folder.mkdir(parents=True)
    write_wordnet(folder)
    packed = Path(shutil.make_archive(str(folder), "zip", folder.parent, "wordnet"))
    shutil.rmtree(folder)
    senses = load_wordnet(packed)
    assert senses.base_forms("geese", "n") == ["goose"] and senses.first_sense("walk") is not None
    if not Path("/usr/share/wordnet").exists():
        assert find_wordnet([str(tmp_path / "none"), str(tmp_path)]) == packed
    packed.write_bytes(packed.read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"is not a complete \.zip file"):
        WordNet.load(packed)


KNOWN_WUPS = {
    "all": 21.48, "C": 14.76, "T": 14.90, "D": 46.60, "CW": 13.56, "CH": 18.14, "TPN": 11.53, "TC": 19.73,
    "DB": 57.76, "DC": 38.02, "DL": 43.71, "DO": 44.95,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("tagger", ["nltk", "rules"])
def test_known_scores_of_nextoe(golden_metrics: Path, tagger: str):
    try:
        database = load_wordnet(find_wordnet(nltk_folders()))
        lemmatize = (nltk_lemmas if tagger == "nltk" else rule_lemmas)(database)
    except FileNotFoundError as missing:
        pytest.skip(str(missing))
    predictions = predicted_values(golden_metrics / "nextoe_val_predictions.json", "prediction")
    references = open_references(golden_metrics / "nextoe_val.csv")
    stop_words = frozenset((golden_metrics / "nextoe_stopwords.txt").read_text().split())
    score = Wups(database, lemmatize, stop_words, bootstrap=NO_INTERVAL)(predictions, references)
    found = {"all": score.value, **score.groups}
    if tagger == "nltk":
        assert {kind: round(value, 2) for kind, value in found.items()} == KNOWN_WUPS
    else:
        assert found == pytest.approx(KNOWN_WUPS, abs=0.5)
        assert score.value == pytest.approx(KNOWN_WUPS["all"], abs=0.05)
        assert (found["DB"], found["DC"]) == (
            pytest.approx(57.7617, abs=1e-4),
            pytest.approx(38.0208, abs=1e-4),
        )
