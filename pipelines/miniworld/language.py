"""What can be said about a scene: captions, sentences, questions with their answers, and chatter.

The grammar is small and regular on purpose (a few hundred distinct words), so that a model of a few
million parameters learns it in minutes. Every caption names background, counts, sizes, colours and
shapes, and says where things are when that can be said without doubt.
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
"""Frames that turn a caption into a sentence."""

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
"""Sentences that speak of no scene, as pages have them between their pictures."""

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
        things = f"{phrases[0]} {place_phrase(scene.things[0])}"
    elif len(scene.things) == 2 and len(groups) == 2:
        things = f" {relation(scene)} ".join(phrases)
    else:
        things = " and ".join(phrases)
    return f"{things} on {_article(scene.background)} {scene.background} background"


def describe(scene: Scene, rng: np.random.Generator) -> str:
    """A whole sentence that describes the scene."""
    sentence = pick(rng, DESCRIPTIONS).format(caption=caption(scene))
    return sentence[0].upper() + sentence[1:]


def answered(question: Question) -> str:
    """The question with its answer, as a page would put it."""
    return f"{question.question} {question.answer[0].upper()}{question.answer[1:]}."


def content_words(text: str) -> frozenset[str]:
    """The words that carry attributes: counts, sizes, colours, shapes, places; singular and plural apart."""
    words = text.lower().replace(".", " ").replace("?", " ").replace(",", " ").split()
    return frozenset(words) - frozenset(_NOT_CONTENT.split())


def group_phrase(group: Group) -> str:
    """ "three small red circles", "a large orange star"."""
    if group.count == 1:
        return f"{_article(group.size)} {group.size} {group.colour} {group.shape}"
    return f"{NUMBERS[group.count]} {group.size} {group.colour} {plural(group.shape)}"


def place(thing: Thing) -> str:
    """The cell of a 3x3 grid that the centre lies in: "top left", "middle", "right"."""
    column = "left" if thing.x < 0.385 else "right" if thing.x > 0.615 else ""
    row = "top" if thing.y < 0.385 else "bottom" if thing.y > 0.615 else ""
    return f"{row} {column}".strip() or "middle"


def place_phrase(thing: Thing) -> str:
    """The place with its preposition: "in the top left", "at the bottom", "in the middle"."""
    where = place(thing)
    preposition = "at" if where in ("top", "bottom", "left", "right") else "in"
    return f"{preposition} the {where}"


def relation(scene: Scene) -> str:
    """How the first of two things lies to the second; "and" where no direction clearly leads."""
    first, second = scene.things
    width, height = scene.extent
    dx, dy = (second.x - first.x) * width, (second.y - first.y) * height
    if abs(dx) > 1.5 * abs(dy):
        return "left of" if dx > 0 else "right of"
    if abs(dy) > 1.5 * abs(dx):
        return "above" if dy > 0 else "below"
    return "and"


def plural(shape: str) -> str:
    """The shape's word for several: "crosses", "squares"."""
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"


def questions(scene: Scene, rng: np.random.Generator) -> tuple[Question, ...]:
    """All questions of the grammar that have exactly one right answer here, positive and negative."""
    background = Question("background", "What colour is the background?", scene.background)
    return (*_count(scene, rng), *_colour(scene), *_size(scene), *_exists(scene, rng), background)


def _count(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """Counts by colour and shape for what is there, and for one look that is not."""
    counts: dict[tuple[str, str], int] = {}
    for thing in scene.things:
        look = (thing.colour, thing.shape)
        counts[look] = counts.get(look, 0) + 1
    absent = [(c, s) for c in COLOURS for s in SHAPES if (c, s) not in counts]
    counts[pick(rng, absent)] = 0
    return [
        Question("count", f"How many {colour} {plural(shape)} are there?", NUMBERS[count])
        for (colour, shape), count in counts.items()
    ]


def _colour(scene: Scene) -> list[Question]:
    """The colour of each shape that has one colour only."""
    colours: dict[str, list[str]] = {}
    for thing in scene.things:
        colours.setdefault(thing.shape, []).append(thing.colour)
    return [
        Question("colour", f"What colour {_noun(shape, len(found))}?", found[0])
        for shape, found in colours.items()
        if len(set(found)) == 1
    ]


def _size(scene: Scene) -> list[Question]:
    """The size, and for a lone thing the place."""
    if len(scene.things) != 1:
        return []
    thing = scene.things[0]
    return [
        Question("size", f"Is the {thing.shape} small or large?", thing.size),
        Question("place", f"Where is the {thing.shape}?", place_phrase(thing)),
    ]


def _exists(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """One shape that is there and one that is not."""
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
