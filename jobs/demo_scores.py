"""The demo's exam: what the served model said and generated for new scenes, scored, beside chance, and as a page."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from pipelines.miniworld.language import Question, caption, grid_position
from pipelines.miniworld.pairs import Pair
from pipelines.miniworld.reading import Reading
from pipelines.miniworld.scene import BACKGROUNDS, COLOURS, SHAPES, Scene

TEMPLATE = Path(__file__).with_name("demo_replies.html.jinja")
PLACES = (
    *("top left", "top", "top right", "left", "middle", "right"),
    *("bottom left", "bottom", "bottom right"),
)
CHOICES: dict[str, Sequence[str]] = {
    "background": tuple(BACKGROUNDS),
    "colour": tuple(COLOURS),
    "size": ("small", "large"),
    "place": PLACES,
    "shape": SHAPES,
}
"""The attributes of a scene of one thing, each with its values; all are equally frequent."""
LEARNED, PARTLY = (
    0.9,
    1.5,
)  # an attribute is learned from this share on; partly from this multiple of chance


@dataclass(frozen=True)
class Reply:
    """What the model replied to one held-out scene."""

    pair: Pair
    image: bytes
    """The image that it was shown (PNG)."""
    caption: str
    question: Question
    answer: str
    generated: bytes
    """The image that it generated from the true caption (PNG)."""
    reading: Reading
    """What the rule-based reader finds in it."""


@dataclass(frozen=True)
class Score:
    """A share of correct replies beside that of guessing."""

    name: str
    num_correct: int
    total: int
    chance: float

    @property
    def share(self) -> float:
        """From 0 to 1."""
        return self.num_correct / self.total

    def __str__(self) -> str:
        return f"{self.name} {self.share:.0%} (chance {self.chance:.1%})"


@dataclass(frozen=True)
class Scores:
    """Captions, answers and generated images, each by attribute or kind; the first of each is the whole."""

    captions: tuple[Score, ...]
    answers: tuple[Score, ...]
    images: tuple[Score, ...]


def attributes(scene: Scene) -> dict[str, str]:
    """The attributes of a scene of one thing."""
    thing = scene.things[0]
    return {
        "background": scene.background,
        "colour": thing.colour,
        "size": thing.size,
        "place": grid_position(thing),
        "shape": thing.shape,
    }


def read_caption(text: str) -> dict[str, str]:
    """The attributes that a caption names; one that is absent or named twice is left out.

    "A small red circle in the top left on a mint background" names all five.
    """
    words = text.lower().replace(".", " ").replace(",", " ").split()
    found: dict[str, str] = {}
    for name, values in CHOICES.items():
        if name == "place":
            sides = [word for word in words if word in ("top", "bottom", "left", "right", "middle")]
            if " ".join(sides) in PLACES:
                found[name] = " ".join(sides)
        else:
            named = [word for word in words if word in values]
            if len(named) == 1:
                found[name] = named[0]
    return found


def is_right_answer(answer: str, question: Question) -> bool:
    """Whether an answer is the right one, up to case and a final full stop."""
    return answer.strip().rstrip(".").lower() == question.answer.lower()


def score(replies: Sequence[Reply]) -> Scores:
    """The scores of all replies."""
    truths = [attributes(each.pair.scene) for each in replies]
    said = [read_caption(each.caption) for each in replies]
    seen = [_read_attributes(each.reading) for each in replies]
    return Scores(
        captions=_by_attribute("caption fully correct", said, truths),
        answers=_answers(replies),
        images=_by_attribute("image fully as prompted", seen, truths),
    )


def _by_attribute(
    whole: str, found: Sequence[Mapping[str, str]], truths: Sequence[Mapping[str, str]]
) -> tuple[Score, ...]:
    pairs = list(zip(found, truths, strict=True))
    chances = {name: 1 / len(values) for name, values in CHOICES.items()}
    all_chance = 1.0
    for chance in chances.values():
        all_chance *= chance
    num_whole = sum(dict(one) == dict(truth) for one, truth in pairs)
    parts = [
        Score(name, sum(one.get(name) == truth[name] for one, truth in pairs), len(pairs), chance)
        for name, chance in chances.items()
    ]
    return (Score(whole, num_whole, len(pairs), all_chance), *parts)


def _answers(replies: Sequence[Reply]) -> tuple[Score, ...]:
    """Chance is the most frequent answer of each kind of question."""
    kinds: dict[str, list[Reply]] = {}
    for each in replies:
        kinds.setdefault(each.question.kind, []).append(each)
    parts = []
    for kind, asked in sorted(kinds.items()):
        num_correct = sum(is_right_answer(each.answer, each.question) for each in asked)
        [(_, commonest)] = Counter(each.question.answer for each in asked).most_common(1)
        parts.append(Score(kind, num_correct, len(asked), commonest / len(asked)))
    total = sum(part.total for part in parts)
    guessed = sum(part.chance * part.total for part in parts) / total
    whole = Score("answer correct", sum(part.num_correct for part in parts), total, guessed)
    return (whole, *parts)


def _read_attributes(reading: Reading) -> dict[str, str]:
    values = {name: getattr(reading, name) for name in CHOICES}
    return {name: value for name, value in values.items() if value is not None}


def verdict(scores: Scores) -> str:
    """One line: what was learned and what was not."""
    parts = []
    for what, group in (
        ("Captions", scores.captions),
        ("Answers", scores.answers),
        ("Generated images", scores.images),
    ):
        learned = [each.name for each in group[1:] if each.share >= LEARNED]
        partly = [
            each.name
            for each in group[1:]
            if each.share < LEARNED and each.share >= PARTLY * each.chance
        ]
        rest = [each.name for each in group[1:] if each.name not in (*learned, *partly)]
        said = [
            f"{label} {', '.join(names)}"
            for label, names in (
                ("learned:", learned),
                ("partly learned:", partly),
                ("not learned:", rest),
            )
            if names
        ]
        parts.append(f"{what}: {'; '.join(said)}.")
    return " ".join(parts)


def write_page(replies: Sequence[Reply], scores: Scores, out: Path, remark: str = "") -> Path:
    """Writes a self-contained page of all replies, failures included; returns its path."""
    out.mkdir(parents=True, exist_ok=True)
    templates = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    templates.filters["data_url"] = data_url
    template = templates.from_string(TEMPLATE.read_text("utf-8"))
    page = out / "replies.html"
    cards = [_card(each) for each in replies]
    page.write_text(
        template.render(cards=cards, scores=scores, verdict=verdict(scores), remark=remark), "utf-8"
    )
    return page


@dataclass(frozen=True)
class Card:
    """A reply as the page shows it."""

    reply: Reply
    true_caption: str
    is_caption_right: bool
    is_answer_right: bool
    wrong_in_image: str
    """The attributes in which the generated image differs from its prompt, with what was found; empty if none."""


def _card(reply: Reply) -> Card:
    truth, seen = attributes(reply.pair.scene), _read_attributes(reply.reading)
    wrong = [f"{name} {seen.get(name, '?')}" for name in CHOICES if seen.get(name) != truth[name]]
    return Card(
        reply,
        caption(reply.pair.scene),
        read_caption(reply.caption) == truth,
        is_right_answer(reply.answer, reply.question),
        ", ".join(wrong),
    )


def data_url(png: bytes) -> str:
    """A PNG file as a data URL."""
    return "data:image/png;base64," + base64.b64encode(png).decode()
