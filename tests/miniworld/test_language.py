"""Texts agree with the scene: captions are parsed back, answers recomputed from the things."""

import re

import numpy as np
import pytest

from pipelines.miniworld import language
from pipelines.miniworld.scene import BACKGROUNDS, COLOURS, SHAPES, Scene, Thing, sample_scene


def sample_scenes(num_scenes: int = 600) -> list[Scene]:
    rng = np.random.default_rng(11)
    return [sample_scene(rng) for _ in range(num_scenes)]


def thing(shape: str, colour: str, x: float, y: float, size: str = "small") -> Thing:
    return Thing(shape, colour, size, x, y, radius=0.1, turn_deg=0.0)


GROUP = re.compile(
    rf"\b(an?|two|three|four|five|six) (small|large) ({'|'.join(COLOURS)}) "
    rf"({'|'.join(SHAPES)})(e?s)?\b"
)


def test_captions_can_be_read_back_into_the_scene():
    for scene in sample_scenes():
        caption = language.caption(scene)
        counts = {"a": 1, "an": 1} | {word: n for n, word in enumerate(language.NUMBERS)}
        read = [
            (counts[number], shape, colour, size)
            for number, size, colour, shape, _ in GROUP.findall(caption)
        ]
        assert read == [(g.count, g.shape, g.colour, g.size) for g in scene.groups]
        assert caption.endswith(f" {scene.background} background")


@pytest.mark.parametrize(
    ("second", "word"),
    [
        ((0.8, 0.5), "left of"),
        ((0.2, 0.5), "right of"),
        ((0.5, 0.8), "above"),
        ((0.5, 0.2), "below"),
        ((0.8, 0.8), "and"),
    ],
)
def test_relations_give_the_direction_of_the_first_thing(second: tuple[float, float], word: str):
    scene = Scene("mint", 1.0, (thing("star", "red", 0.5, 0.5), thing("heart", "pink", *second)))
    expected = f"a small red star {word} a small pink heart on a mint background"
    assert language.caption(scene) == expected


def test_relations_measure_pixels_and_not_fractions_of_the_image():
    things = (thing("star", "red", 0.3, 0.2), thing("heart", "pink", 0.6, 0.6))
    assert language.relation(Scene("mint", 1.0, things)) == "and"
    assert language.relation(Scene("mint", 1.5, things)) == "and"
    assert language.relation(Scene("mint", 2 / 3, things)) == "above"


@pytest.mark.parametrize(
    ("x", "y", "phrase"),
    [
        (0.27, 0.27, "in the top left"),
        (0.5, 0.73, "at the bottom"),
        (0.73, 0.5, "at the right"),
        (0.5, 0.5, "in the middle"),
    ],
)
def test_positions_of_a_single_thing(x: float, y: float, phrase: str):
    scene = Scene("silver", 1.0, (thing("cross", "orange", x, y, "large"),))
    assert language.caption(scene) == f"a large orange cross {phrase} on a silver background"


def test_plurals_and_numbers():
    scene = Scene("sky", 1.0, tuple(thing("cross", "blue", x, 0.5) for x in (0.2, 0.5, 0.8)))
    assert language.caption(scene) == "three small blue crosses on a sky background"


def answer_from_scene(scene: Scene, question: str) -> str:
    """The answer computed from the words of the question, not by the grammar."""
    words = question.lower().rstrip("?").split()
    shape = next((s for s in SHAPES if s in words or language.plural(s) in words), None)
    matching = [t for t in scene.things if t.shape == shape]
    if words[-1] == "background":
        return scene.background
    if words[0] == "how":
        return language.NUMBERS[sum(t.colour == words[2] for t in matching)]
    if words[0] == "where":
        return language.position_phrase(matching[0])
    if words[:2] == ["is", "there"]:
        assert words[2] == ("an" if shape == "arrow" else "a")
        return "yes" if matching else "no"
    if words[-1] == "large":
        return matching[0].size
    assert words[:2] == ["what", "colour"]
    (colour,) = {t.colour for t in matching}
    return colour


def test_every_answer_is_right():
    rng = np.random.default_rng(1)
    asked: dict[str, set[str]] = {}
    for scene in sample_scenes():
        questions = language.questions(scene, rng)
        assert len({q.question for q in questions}) == len(questions)
        for question in questions:
            assert question.answer == answer_from_scene(scene, question.question)
            asked.setdefault(question.kind, set()).add(question.answer)
    assert asked["exists"] == {"yes", "no"}
    assert asked["count"] == {"zero", "one", "two", "three", "four", "five"}
    assert asked["colour"] == set(COLOURS)
    assert asked["size"] == {"small", "large"}
    assert asked["background"] == set(BACKGROUNDS)
    assert len(asked["place"]) == 9


def test_no_question_asks_for_the_colour_of_shapes_of_two_colours():
    scene = Scene("sand", 1.0, (thing("star", "red", 0.2, 0.5), thing("star", "blue", 0.8, 0.5)))
    kinds = [q.kind for q in language.questions(scene, np.random.default_rng(0))]
    assert "colour" not in kinds and "count" in kinds


def test_the_vocabulary_is_small():
    rng = np.random.default_rng(2)
    texts = list(language.FILLERS)
    for scene in sample_scenes(1500):
        texts.append(language.describe(scene, rng))
        texts.extend(language.answered(q) for q in language.questions(scene, rng))
    words = {word for text in texts for word in re.findall(r"[a-z]+", text.lower())}
    assert 150 < len(words) < 300


def test_fillers_describe_no_scene():
    attributes = {*COLOURS, *SHAPES, *BACKGROUNDS, *map(language.plural, SHAPES), "large", "small"}
    for filler in language.FILLERS:
        assert not language.content_words(filler) & attributes


def test_sentences_are_sentences():
    rng = np.random.default_rng(3)
    for scene in sample_scenes(100):
        sentence = language.describe(scene, rng)
        assert sentence[0].isupper() and sentence.endswith(".")
        assert language.caption(scene)[1:] in sentence
