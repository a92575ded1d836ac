"""The turns of a dialogue, cleaned: media at their places, nothing empty, user and assistant in turn.

Places. `<image>` and `<video>` in a turn stand for the media of the record, in order; the medium comes exactly there,
and the white space around it goes. A record whose turns have no place shows all its media before its first question,
as LLaVA does. With videos alone, `<image>` stands for them too. More or fewer places than media refuse the record. In
a record without media, a placeholder on its own line at an edge of a question is a place whose medium is not named,
so the record is refused; elsewhere it is a word (ShareGPT speaks of HTML). Where the form is given and not found out,
it is a word in every place of ShareGPT, and a place in every question of LLaVA.

Turns. The rules apply in this order, and what they take away is counted in the sample's `removed_turns`:

| what                                  | what happens                                                         |
|---------------------------------------|----------------------------------------------------------------------|
| system turns at the start             | joined and kept; anywhere else the record is refused                 |
| turns of the assistant at the start   | removed (`assistant_first`): they answer nothing that is known       |
| two turns of one role in a row        | joined by a line feed                                                |
| a question or an answer that is blank | removed together with its answer or question (`empty`)               |
| a question at the end                 | removed (`unanswered`): no answer to learn                           |

A record that would lose a medium by this is refused, and one without an answer left.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from pipelines.core.pipeline import Reason, Reasons, Rejected
from pipelines.corpora.instruct.forms import Dialogue, Medium, Role
from pipelines.corpora.instruct.markup import is_html, plain_text

TURN_REASONS: Reasons = {
    "placeholder_without_medium": Reason(
        "A turn has a placeholder for an image or a video that the record does not name."
    ),
    "medium_without_placeholder": Reason(
        "The turns have placeholders for some of the images or videos of the record, not for all."
    ),
    "medium_in_removed_turn": Reason(
        "An image or a video is in a turn without text, without an answer, or before the first question."
    ),
    "system_in_middle": Reason("A system turn is between turns of user and assistant."),
    "no_answer": Reason("No question with an answer remains."),
    "text_too_long": Reason("The texts of the dialogue have more characters than allowed."),
}
"""Why a dialogue cannot be used."""

Part = str | int
"""A text, or the number of a medium."""

_PLACE = re.compile(r"<(image|video)>")
_EDGE = re.compile(r"\A\s*<(?:image|video)>\s*(?:\n|\Z)|(?:\A|\n)\s*<(?:image|video)>\s*\Z")


@dataclass(frozen=True)
class CleanTurn:
    """What one side says, texts and media in order."""

    role: Role
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """Its texts, joined."""
        return "\n".join(part for part in self.parts if isinstance(part, str))

    @property
    def media(self) -> tuple[int, ...]:
        """Its media."""
        return tuple(part for part in self.parts if isinstance(part, int))


@dataclass(frozen=True)
class CleanDialogue:
    """A dialogue that can be used: the system's own words, then questions and answers."""

    system: str
    turns: tuple[CleanTurn, ...]
    removed: Counter[str] = field(default_factory=Counter)
    """Turns taken away, by why."""


def clean(dialogue: Dialogue, strip_html: bool, max_characters: int) -> CleanDialogue:
    """The dialogue, cleaned; raises `Rejected` with a reason of `TURN_REASONS` where it cannot be used."""
    _check_length(dialogue, max_characters)
    texts = [
        plain_text(t.text) if strip_html and is_html(t.text) else t.text for t in dialogue.turns
    ]
    placed = _placed(dialogue, texts)
    pairs = zip(dialogue.turns, placed, strict=True)
    turns = [CleanTurn(turn.role, parts) for turn, parts in pairs]
    num_system = next((i for i, turn in enumerate(turns) if turn.role != "system"), len(turns))
    system = " ".join(turn.text for turn in turns[:num_system] if turn.text)
    if any(turn.role == "system" for turn in turns[num_system:]):
        raise Rejected("system_in_middle")
    removed: Counter[str] = Counter()
    kept = _answered(_in_turn(turns[num_system:], removed), removed)
    lost = {*range(len(dialogue.media))} - {n for turn in kept for n in turn.media}
    if not kept:
        raise Rejected("no_answer", _counts(removed))
    if lost:
        raise Rejected("medium_in_removed_turn", _counts(removed))
    return CleanDialogue(system, tuple(kept), +removed)


def _check_length(dialogue: Dialogue, max_characters: int) -> None:
    length = len(dialogue.instruction) + sum(len(turn.text) for turn in dialogue.turns)
    if length > max_characters:
        raise Rejected("text_too_long", f"{length:,} characters, the limit is {max_characters:,}")


def _placed(dialogue: Dialogue, texts: Sequence[str]) -> list[tuple[Part, ...]]:
    """The parts of each turn."""
    if not dialogue.media:
        place = _place_without_medium(dialogue)
        for turn, text in zip(dialogue.turns, texts, strict=True):
            if place and turn.role == "user" and place.search(text):
                raise Rejected(
                    "placeholder_without_medium", "the record names no image and no video"
                )
        return [_parts([text]) for text in texts]
    split = [_PLACE.split(text) for text in texts]  # text, kind, text, kind, …, text
    kinds = [kind for pieces in split for kind in pieces[1::2]]
    numbers = iter(_numbers(kinds, dialogue.media))
    found = [
        _parts([next(numbers) if i % 2 else piece for i, piece in enumerate(pieces)])
        for pieces in split
    ]
    if not kinds:
        first = next((i for i, turn in enumerate(dialogue.turns) if turn.role == "user"), 0)
        found[first] = (*range(len(dialogue.media)), *found[first])
    return found


def _place_without_medium(dialogue: Dialogue) -> re.Pattern[str] | None:
    """What in a question is a place, where the record names no medium; None if nothing is."""
    if dialogue.form == "alpaca" or (dialogue.form == "sharegpt" and dialogue.is_form_given):
        return None
    return _EDGE if dialogue.form == "sharegpt" else _PLACE


def _parts(pieces: Sequence[Part]) -> tuple[Part, ...]:
    stripped = [piece.strip() if isinstance(piece, str) else piece for piece in pieces]
    return tuple(piece for piece in stripped if piece != "")


def _numbers(kinds: Sequence[str], media: Sequence[Medium]) -> list[int]:
    """The medium of each place."""
    if kinds and {medium.kind for medium in media} == {"video"} and set(kinds) == {"image"}:
        kinds = ["video"] * len(kinds)
    wanted = Counter(kinds)
    given = Counter(medium.kind for medium in media)
    detail = f"{_counts(wanted)} in the turns, {_counts(given)} in the record"
    if wanted - given:
        raise Rejected("placeholder_without_medium", detail)
    if kinds and given - wanted:
        raise Rejected("medium_without_placeholder", detail)
    queues = {
        kind: iter([n for n, medium in enumerate(media) if medium.kind == kind]) for kind in given
    }
    return [next(queues["image" if kind == "image" else "video"]) for kind in kinds]


def _in_turn(turns: Sequence[CleanTurn], removed: Counter[str]) -> list[CleanTurn]:
    """User and assistant in turn, the user first."""
    first = next((i for i, turn in enumerate(turns) if turn.role == "user"), len(turns))
    removed["assistant_first"] += first
    found: list[CleanTurn] = []
    for turn in turns[first:]:
        if found and found[-1].role == turn.role:
            found[-1] = CleanTurn(turn.role, (*found[-1].parts, *turn.parts))
        else:
            found.append(turn)
    return found


def _answered(turns: Sequence[CleanTurn], removed: Counter[str]) -> list[CleanTurn]:
    """The questions with their answers."""
    kept: list[CleanTurn] = []
    for question, answer in zip(turns[::2], turns[1::2], strict=False):
        if question.parts and answer.parts:
            kept += [question, answer]
        else:
            removed["empty"] += 2
    removed["unanswered"] += len(turns) % 2
    return kept


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{n} {word}" for word, n in sorted(counts.items()) if n) or "none"
