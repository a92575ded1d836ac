"""The forms of instruction data: a record becomes a `Dialogue` of raw turns and the media that they are about.

| form          | record                                          | recognised by, the first that fits      |
|---------------|-------------------------------------------------|-----------------------------------------|
| videochat     | `video` or `image`, `QA: [{i, q, a}]`           | `QA`                                    |
| llava         | `id`, `image`, `conversations: [{from, value}]` | `conversations` and `image` or `images` |
| video_chatgpt | `id`, `video`, `conversations`                  | `conversations` and `video` or `videos` |
| sharegpt      | `id`, `conversations`                           | `conversations` alone                   |
| video_chatgpt | `video_id`, `q`, `a`                            | `q` and `a`                             |
| alpaca        | `instruction`, `input`, `output`                | `instruction` and `output`              |

A LLaVA record without the field of its image is read as ShareGPT, which differs in nothing else. Further fields are
ignored. Media may be one path or a list of paths; null and "" stand for none.

What the forms say of places:

- The raw rows of Video-ChatGPT have no place for the video. As in its training form, it comes after the question in
  even rows (counted from 0) and before it in odd ones.
- VideoChat's `i` of the first question follows the system message, as in its training code; another `i` further on
  comes before its question, and stands for the question where that is empty.
- `.pkl` files of Video-ChatGPT hold features of a video; the video itself is looked for under the same name with
  another suffix, and so is a bare `video_id`.

Sources: LLaVA (haotian-liu/LLaVA), Stanford Alpaca, FastChat, Ask-Anything (VideoChat), Video-ChatGPT.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

from pipelines.core.pipeline import Reason, Reasons, Rejected
from pipelines.corpora.json_record import RECORD_REASONS, checked, load_object, shown, value_of

Form = Literal["llava", "alpaca", "sharegpt", "videochat", "video_chatgpt"]
Role = Literal["system", "user", "assistant"]
MediumKind = Literal["image", "video"]

FORM_REASONS: Reasons = {
    **RECORD_REASONS,
    "unknown_form": Reason("The fields of the record match no form of instruction data."),
    "unknown_role": Reason("The role of a turn is not known as user, assistant or system."),
    "no_turns": Reason("The record has no turns."),
}
"""Why a record is no dialogue."""

ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "assistant": "assistant",
    "system": "system",
}
"""Who speaks, as the dumps name it."""
_MEDIA_FIELDS: tuple[tuple[MediumKind, str], ...] = (
    ("image", "image"),
    ("image", "images"),
    ("video", "video"),
    ("video", "videos"),
)
VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".flv", ".mpg", ".mpeg", ".gif")
NO_INPUT = ("<noinput>", "<no input>", "no input")
"""What Alpaca's rows write where there is no input."""


@dataclass(frozen=True)
class Medium:
    """An image or a video that a dialogue is about: a path, or a web address."""

    kind: MediumKind
    url: str


@dataclass(frozen=True)
class Turn:
    """What one side says, as written; placeholders still stand in it."""

    role: Role
    text: str


@dataclass(frozen=True)
class Dialogue:
    """A record of any form."""

    form: Form
    turns: tuple[Turn, ...]
    media: tuple[Medium, ...] = ()
    instruction: str = ""
    """What follows the system message (VideoChat)."""
    id: str | None = None
    is_form_given: bool = False
    """Rather than found out from the fields."""


def parse_dialogue(text: str, row: int, form: Form | None, video_suffix: str) -> Dialogue:
    """The dialogue that a record holds.

    Args:
        text: JSON.
        row: of the record in its file, from 0.
        form: None finds out by the fields of the record.
        video_suffix: of videos that are named without one, or by the file of their features.

    Raises:
        Rejected: with a reason of `FORM_REASONS`.
    """
    record = load_object(text)
    is_given = form is not None
    form = form or _form_of(record)
    if form == "alpaca":
        found = _alpaca(record)
    elif form == "videochat":
        found = _videochat(record)
    elif form == "video_chatgpt" and "conversations" not in record:
        found = _video_chatgpt(record, row, video_suffix)
    else:
        found = _conversation(record, form, video_suffix)
    if not found.turns:
        raise Rejected("no_turns")
    return replace(found, is_form_given=is_given)


def _form_of(record: dict[str, Any]) -> Form:
    if "QA" in record:
        return "videochat"
    if "conversations" in record:
        kinds = {kind for kind, name in _MEDIA_FIELDS if name in record}
        return "llava" if "image" in kinds else "video_chatgpt" if kinds else "sharegpt"
    if {"q", "a"} <= record.keys():
        return "video_chatgpt"
    if {"instruction", "output"} <= record.keys():
        return "alpaca"
    names = ", ".join(shown(name) for name in sorted(record)[:8])
    raise Rejected("unknown_form", f"its fields are {names}" if record else "it has no field")


def _alpaca(record: dict[str, Any]) -> Dialogue:
    question = value_of(record, "instruction", str)
    given = checked(record.get("input") or "", str, "input")
    if given.strip() and given.strip().lower().rstrip(".") not in NO_INPUT:
        question = f"{question}\n{given}"
    turns = (Turn("user", question), Turn("assistant", value_of(record, "output", str)))
    return Dialogue("alpaca", turns, id=_id(record))


def _conversation(record: dict[str, Any], form: Form, video_suffix: str) -> Dialogue:
    turns = []
    for number, entry in enumerate(value_of(record, "conversations", list)):
        where = f"conversations[{number}]"
        turn = checked(entry, dict, where)
        name = value_of(turn, "from", str, where)
        if name.lower() not in ROLES:
            raise Rejected("unknown_role", f"{where}.from is {shown(name)}")
        has_text = turn.get("value", "") is not None  # dumps write null for an empty answer
        turns.append(
            Turn(ROLES[name.lower()], value_of(turn, "value", str, where) if has_text else "")
        )
    media = tuple(
        Medium(kind, _video_url(url, video_suffix) if kind == "video" else url)
        for kind, url in _named_media(record)
    )
    return Dialogue(form, tuple(turns), media, id=_id(record))


def _videochat(record: dict[str, Any]) -> Dialogue:
    turns: list[Turn] = []
    first = last = ""
    for number, entry in enumerate(value_of(record, "QA", list)):
        where = f"QA[{number}]"
        pair = checked(entry, dict, where)
        instruction = checked(pair.get("i") or "", str, f"{where}.i").strip()
        question = value_of(pair, "q", str, where).strip()
        if number == 0:
            first = last = instruction
        if instruction and (instruction != last or not question):
            question = f"{instruction}\n{question}".strip()
        last = instruction or last
        turns += [Turn("user", question), Turn("assistant", value_of(pair, "a", str, where))]
    if turns and turns[0].text == first:  # it asks the first question: say it once
        first = ""
    media = tuple(Medium(kind, url) for kind, url in _named_media(record))
    return Dialogue("videochat", tuple(turns), media, first, _id(record))


def _video_chatgpt(record: dict[str, Any], row: int, video_suffix: str) -> Dialogue:
    name = value_of(record, "video_id", str)
    question, answer = value_of(record, "q", str), value_of(record, "a", str)
    text = f"{question}\n<video>" if row % 2 == 0 else f"<video>\n{question}"
    url = name if name.lower().endswith(VIDEO_SUFFIXES) else _video_url(f"{name}.pkl", video_suffix)
    turns = (Turn("user", text), Turn("assistant", answer))
    return Dialogue("video_chatgpt", turns, (Medium("video", url),), id=name)


def _named_media(record: dict[str, Any]) -> list[tuple[MediumKind, str]]:
    """The media that a record names, images before videos."""
    found: list[tuple[MediumKind, str]] = []
    for kind, name in _MEDIA_FIELDS:
        value = record.get(name)
        values = value if isinstance(value, list) else [] if value is None else [value]
        urls = [checked(v, str, f"{name}[{i}]") for i, v in enumerate(values)]
        found.extend((kind, url) for url in urls if url.strip())
    return found


def _video_url(url: str, suffix: str) -> str:
    return url.removesuffix(".pkl") + suffix if url.endswith(".pkl") else url


def _id(record: dict[str, Any]) -> str | None:
    value = record.get("id")
    if isinstance(value, int):
        return str(value)
    return None if value is None else checked(value, str, "id")
