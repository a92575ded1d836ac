"""Text about a scene: captions, sentences, questions with their answers, and unrelated sentences.

The grammar is small and regular on purpose (a few hundred distinct words), so that a model of a few
million parameters learns it in minutes. Every caption names background, counts, sizes, colours and
shapes, and positions where they are unambiguous.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipelines.miniworld.scene import COLOURS, SHAPES, Group, Scene, Thing, pick

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")

DESCRIPTIONS: tuple[str, ...] = (
    "{caption}.",
    "here is {caption}.",
    "this picture shows {caption}.",
    "you can see {caption}.",
    "look at {caption}.",
    "today we painted {caption}.",
)
"""Templates that turn a caption into a sentence."""

FILLERS: tuple[str, ...] = (
    "Welcome back to our little gallery.",
    "Thanks for reading and see you next week.",
    "The children made these with paper and glue.",
    "Scroll down for more.",
    "All of them hang in the kitchen now.",
    "Click on a picture to see it bigger.",
    "We had a lot of fun with this one.",
    "It rained the whole day, so we stayed inside.",
    "Tell us which one you like best.",
    "The next one took a whole afternoon.",
    "Grandmother wants a copy of every page.",
    "Some were harder than they look.",
    "Everything was cut out by hand.",
    "You need scissors, paper and some patience.",
    "Let the glue dry before you go on.",
    "Please ask before you use our pictures.",
    "This page was last changed in spring.",
    "We will add more after the holidays.",
    "Share it with a friend.",
    "Nobody expected this.",
    "Here is another one from the same day.",
    "The teacher said it was very tidy.",
    "A good book of patterns helps a lot.",
    "Read the first part of this story here.",
)
"""Sentences about no scene, such as pages have between their images."""

_NOT_CONTENT = "a an and at on background of in the is are there how many what where colour or"


@dataclass(frozen=True)
class Question:
    """A question about a scene with its exact answer; `kind` names what it asks for."""

    kind: str
    question: str
    answer: str


def caption(scene: Scene) -> str:
    """A noun phrase for the whole scene: "a small red circle above a large blue star on a mint background"."""
    groups = scene.groups
    phrases = [group_phrase(group) for group in groups]
    if len(scene.things) == 1:
        things = f"{phrases[0]} {position_phrase(scene.things[0])}"
    elif len(scene.things) == 2 and len(groups) == 2:
        things = f" {relation(scene)} ".join(phrases)
    else:
        things = " and ".join(phrases)
    return f"{things} on {_article(scene.background)} {scene.background} background"


def describe(scene: Scene, rng: np.random.Generator) -> str:
    """A complete sentence that describes the scene."""
    sentence = pick(rng, DESCRIPTIONS).format(caption=caption(scene))
    return sentence[0].upper() + sentence[1:]


def answered(question: Question) -> str:
    """The question followed by its answer, as text of a page."""
    return f"{question.question} {question.answer[0].upper()}{question.answer[1:]}."


def content_words(text: str) -> frozenset[str]:
    """The words for counts, sizes, colours, shapes and positions; singular and plural differ."""
    words = text.lower().replace(".", " ").replace("?", " ").replace(",", " ").split()
    return frozenset(words) - frozenset(_NOT_CONTENT.split())


def group_phrase(group: Group) -> str:
    """ "three small red circles", "a large orange star"."""
    if group.count == 1:
        return f"{_article(group.size)} {group.size} {group.colour} {group.shape}"
    return f"{NUMBERS[group.count]} {group.size} {group.colour} {plural(group.shape)}"


def grid_position(thing: Thing) -> str:
    """The cell of a 3x3 grid that contains the centre: "top left", "middle", "right"."""
    column = "left" if thing.x < 0.385 else "right" if thing.x > 0.615 else ""
    row = "top" if thing.y < 0.385 else "bottom" if thing.y > 0.615 else ""
    return f"{row} {column}".strip() or "middle"


def position_phrase(thing: Thing) -> str:
    """The position with its preposition: "in the top left", "at the bottom", "in the middle"."""
    where = grid_position(thing)
    preposition = "at" if where in ("top", "bottom", "left", "right") else "in"
    return f"{preposition} the {where}"


def relation(scene: Scene) -> str:
    """The direction of the first of two things from the second; "and" where it is ambiguous."""
    first, second = scene.things
    width, height = scene.extent
    dx, dy = (second.x - first.x) * width, (second.y - first.y) * height
    if abs(dx) > 1.5 * abs(dy):
        return "left of" if dx > 0 else "right of"
    if abs(dy) > 1.5 * abs(dx):
        return "above" if dy > 0 else "below"
    return "and"


def plural(shape: str) -> str:
    """The plural of a shape: "crosses", "squares"."""
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"


def questions(scene: Scene, rng: np.random.Generator) -> tuple[Question, ...]:
    """All questions of the grammar that have exactly one right answer here, "no" and "zero" included."""
    background = Question("background", "What colour is the background?", scene.background)
    return (*_count(scene, rng), *_colour(scene), *_size(scene), *_exists(scene, rng), background)


def _count(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """Counts for each colour and shape in the scene, and for one combination that is not in it."""
    counts: dict[tuple[str, str], int] = {}
    for thing in scene.things:
        kind = (thing.colour, thing.shape)
        counts[kind] = counts.get(kind, 0) + 1
    absent = [(c, s) for c in COLOURS for s in SHAPES if (c, s) not in counts]
    counts[pick(rng, absent)] = 0
    return [
        Question("count", f"How many {colour} {plural(shape)} are there?", NUMBERS[count])
        for (colour, shape), count in counts.items()
    ]


def _colour(scene: Scene) -> list[Question]:
    """The colour of each shape that occurs in one colour only."""
    colours: dict[str, list[str]] = {}
    for thing in scene.things:
        colours.setdefault(thing.shape, []).append(thing.colour)
    return [
        Question("colour", f"What colour {_noun(shape, len(found))}?", found[0])
        for shape, found in colours.items()
        if len(set(found)) == 1
    ]


def _size(scene: Scene) -> list[Question]:
    """The size and the position of a single thing."""
    if len(scene.things) != 1:
        return []
    thing = scene.things[0]
    return [
        Question("size", f"Is the {thing.shape} small or large?", thing.size),
        Question("place", f"Where is the {thing.shape}?", position_phrase(thing)),
    ]


def _exists(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """One shape that is in the scene and one that is not."""
    present = sorted({thing.shape for thing in scene.things})
    absent = [shape for shape in SHAPES if shape not in present]
    asked = ((pick(rng, present), "yes"), (pick(rng, absent), "no"))
    return [
        Question("exists", f"Is there {_article(shape)} {shape}?", answer)
        for shape, answer in asked
    ]


def _noun(shape: str, count: int) -> str:
    return f"is the {shape}" if count == 1 else f"are the {plural(shape)}"


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"
