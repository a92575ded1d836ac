"""The synthetic world as instruction data: dialogues about rendered scenes in every form, with their faults and counts.

DIR/dialogues/llava.json, alpaca.json, sharegpt.jsonl, …   a file for each form
DIR/images/NAME                                            the media folder: images, and clips as mp4
DIR/truth.jsonl                                            a line for each record: what a build makes of it
DIR/summary.json                                           configuration and exact counts

Faulty records cycle through `FAULTS`; each says what a correct build does with it.
"""

from __future__ import annotations

import dataclasses
import html
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.miniworld.clips import SyntheticClip, clip_frames, encode_clip, sample_clip
from pipelines.miniworld.config import MiniworldConfig
from pipelines.miniworld.folder import read_world_summary, write_world_folder
from pipelines.miniworld.language import Question, describe, questions
from pipelines.miniworld.render import encode, sample_file_form
from pipelines.miniworld.scene import Scene, pick, sample_scene

VERSION = 1
"""Incremented when the same configuration gives other bytes than before."""

Record = dict[str, Any]


@dataclass(frozen=True)
class DialoguesSummary:
    """Exact counts of a world: what a correct build must find in it.

    Attributes:
        num_records: records of all files.
        num_records_by_form: the same by form.
        num_kept: records that become dialogues.
        num_dropped: the others, by the reason of the ledger.
        num_media_kept: images and clips of those that are kept.
        num_images_kept: images, and eight frames for each clip.
    """

    config: MiniworldConfig
    num_records: int
    num_records_by_form: dict[str, int]
    num_kept: int
    num_dropped: dict[str, int]
    num_media_kept: int
    num_images_kept: int
    version: int = VERSION


@dataclass(frozen=True)
class Fault:
    """What is wrong with a record: the change, and the reason for which it is dropped; None if it is kept."""

    spoil: Callable[[Record], Record | str]
    reason: str | None


def write_dialogues(config: MiniworldConfig, directory: Path | str) -> DialoguesSummary:
    """Write the world of `config` into `directory` and return its counts; the same bytes each time.

    `num_documents` is the number of records over all forms. An existing world of the same configuration is left as it
    is.

    Raises:
        FileExistsError: `directory` or `DIR.partial` contains something else; nothing is deleted then.
    """
    write_world_folder(directory, "instruct", VERSION, config, lambda part: _write(config, part))
    found, counts = read_world_summary(directory, VERSION)
    return DialoguesSummary(config=found, **counts)


write_world = write_dialogues
BUILD = "emu build instruct --dialogues '{out}/dialogues/*' --media '{out}/images'"


def llava(name: str, image: str, asked: tuple[Question, ...], rng: np.random.Generator) -> Record:
    """A record of LLaVA's form; the image before or after the first question, or without a place."""
    turns = _conversation(asked)
    place = int(rng.integers(3))
    text = turns[0]["value"]
    turns[0]["value"] = (f"<image>\n{text}", f"{text}\n<image>", text)[place]
    return {"id": name, "image": image, "conversations": turns}


def videochat(image: str, asked: tuple[Question, ...]) -> Record:
    """A record of VideoChat's form, about an image."""
    pairs = [{"i": "", "q": one.question, "a": one.answer} for one in asked]
    return {"image": image, "QA": pairs}


def video_chatgpt(name: str, asked: tuple[Question, ...], index: int) -> Record:
    """A record of Video-ChatGPT's training form; the place after the question in even rows, before it in odd ones."""
    turns = _conversation(asked)
    text = turns[0]["value"]
    turns[0]["value"] = f"{text}\n<video>" if index % 2 == 0 else f"<video>\n{text}"
    return {"id": name, "video": f"{name}.pkl", "conversations": turns}


def clip_questions(clip: SyntheticClip) -> tuple[Question, ...]:
    """What a clip of one moving shape shows."""
    (thing,) = clip.scene.things
    return (
        Question("direction", f"Which way does the {thing.shape} move?", clip.direction),
        Question("colour", f"What colour is the {thing.shape}?", thing.colour),
    )


def alpaca(scene: Scene, rng: np.random.Generator) -> Record:
    """A record of Alpaca's form: a question about a scene that is given in words."""
    asked = pick(rng, questions(scene, rng))
    given = describe(scene, rng)
    return {"instruction": asked.question, "input": given, "output": asked.answer}


def sharegpt(name: str, scene: Scene, rng: np.random.Generator) -> Record:
    """A record of ShareGPT's form; some answers are HTML, as in raw dumps."""
    turns = _conversation(questions(scene, rng)[:3])
    turns[0]["value"] = f"{describe(scene, rng)} {turns[0]['value']}"
    if rng.random() < 0.5:
        turns[1]["value"] = f'<div class="markdown"><p>{html.escape(turns[1]["value"])}</p></div>'
    return {"id": name, "conversations": turns}


def _conversation(asked: tuple[Question, ...]) -> list[dict[str, str]]:
    turns = []
    for one in asked:
        turns.append({"from": "human", "value": one.question})
        turns.append({"from": "gpt", "value": one.answer})
    return turns


FORMS = ("llava", "alpaca", "sharegpt", "videochat", "video_chatgpt", "video_chatgpt_raw")
FILES = {"sharegpt": "sharegpt.jsonl"} | {f: f"{f}.json" for f in FORMS if f != "sharegpt"}
NUM_FRAMES = 8
"""Of a clip, with the default of the builds."""


def _doubled(record: Record) -> str:
    text = json.dumps(record)
    return text[:-1] + f', "{next(iter(record))}": 1' + "}"


def _first_answer(record: Record) -> Record:
    """Without the first answer, or with a blank one: that question is lost, and the record if it was the only one."""
    return record | {"conversations": [record["conversations"][0] | {"value": " "}]}


def _led_by_answer(record: Record) -> Record:
    greeting = {"from": "gpt", "value": "Hello! What would you like to know?"}
    return record | {"conversations": [greeting, *record["conversations"]]}


def _extra_place(record: Record) -> Record:
    more = {"from": "human", "value": "<image> and <image>\nAnd these?"}
    last = {"from": "gpt", "value": "I cannot see them."}
    return record | {"conversations": [*record["conversations"], more, last]}


FAULTS: Mapping[str, tuple[Fault, ...]] = {
    "llava": (
        Fault(lambda r: r | {"image": "missing.jpg"}, "medium_lost"),
        Fault(lambda r: r | {"image": "../outside.jpg"}, "medium_lost"),
        Fault(_extra_place, "placeholder_without_medium"),
        Fault(_first_answer, "no_answer"),
    ),
    "alpaca": (
        Fault(lambda r: {k: v for k, v in r.items() if k != "output"}, "unknown_form"),
        Fault(lambda r: r | {"output": ""}, "no_answer"),
        Fault(_doubled, "doubled_field"),
    ),
    "sharegpt": (
        Fault(_led_by_answer, None),
        Fault(lambda r: r | {"conversations": []}, "no_turns"),
        Fault(lambda r: json.dumps(r)[:-2], "malformed_json"),
    ),
    "videochat": (
        Fault(lambda r: r | {"QA": "none"}, "wrong_type"),
        Fault(lambda r: json.dumps([r]), "not_an_object"),
    ),
    "video_chatgpt": (
        Fault(lambda r: r | {"video": "missing.pkl"}, "medium_lost"),
        Fault(lambda r: r | {"video": []}, "placeholder_without_medium"),
    ),
    "video_chatgpt_raw": (
        Fault(lambda r: {k: v for k, v in r.items() if k != "video_id"}, "missing_field"),
        Fault(lambda r: r | {"a": ""}, "no_answer"),
    ),
}


def _write(config: MiniworldConfig, directory: Path) -> DialoguesSummary:
    (directory / "dialogues").mkdir()
    (directory / "images").mkdir()
    forms: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    texts: dict[str, list[str]] = {form: [] for form in FORMS}
    faults: Counter[str] = Counter()
    num_media = num_images = 0
    with (directory / "truth.jsonl").open("w") as truth:
        for index in range(config.num_documents):
            form = FORMS[index % len(FORMS)]
            record, image = _record(config, index, form, directory / "images")
            reason = None
            forms[form] += 1
            if int(forms[form] * config.bad_share + 1e-9) > faults[form]:
                fault = FAULTS[form][faults[form] % len(FAULTS[form])]
                record, reason = fault.spoil(record), fault.reason
                faults[form] += 1
            texts[form].append(record if isinstance(record, str) else json.dumps(record, indent=1))
            dropped.update([reason] if reason else [])
            if image is not None and reason is None:
                num_media += 1
                num_images += NUM_FRAMES if image.endswith(".mp4") else 1
            row = {"form": form, "number": forms[form], "image": image, "reason": reason}
            truth.write(json.dumps(row) + "\n")
    for form, records in texts.items():
        (directory / "dialogues" / FILES[form]).write_text(_joined(form, records))
    num_records = config.num_documents
    kept = num_records - dropped.total()
    by_form, by_reason = dict(sorted(forms.items())), dict(sorted(dropped.items()))
    counts = (by_form, kept, by_reason, num_media, num_images)
    return DialoguesSummary(config, num_records, *counts)


def _joined(form: str, records: list[str]) -> str:
    if form == "sharegpt":
        return "".join(record.replace("\n", " ") + "\n" for record in records)
    return "[\n" + ",\n".join(records) + "\n]\n"


def _record(
    config: MiniworldConfig, index: int, form: str, images: Path
) -> tuple[Record, str | None]:
    """A record without a fault, and the name of its image or clip, which is written."""
    rng = np.random.default_rng([config.seed, index])
    scene = sample_scene(rng, config.max_things)
    name = f"scene-{index:06d}"
    if form == "alpaca":
        return alpaca(scene, rng), None
    if form == "sharegpt":
        return sharegpt(name, scene, rng), None
    number = index // len(FORMS)
    if form.startswith("video_chatgpt") or (form == "videochat" and number % 2):
        return _clip_record(config, index, form, images)
    file_form = sample_file_form(rng)
    image = f"{name}.{file_form.format}"
    (images / image).write_bytes(encode(scene, file_form))
    asked = questions(scene, rng)[:3]
    record = llava(name, image, asked, rng) if form == "llava" else videochat(image, asked)
    return record, image


def _clip_record(
    config: MiniworldConfig, index: int, form: str, folder: Path
) -> tuple[Record, str]:
    clip = sample_clip(dataclasses.replace(config, bad_share=0.0), index)
    name = f"v_{index:06d}"
    (folder / f"{name}.mp4").write_bytes(encode_clip(clip_frames(clip), clip.rate))
    asked = clip_questions(clip)
    if form == "videochat":
        pairs = [{"i": "", "q": one.question, "a": one.answer} for one in asked]
        return {"video": f"{name}.mp4", "QA": pairs}, f"{name}.mp4"
    if form == "video_chatgpt":
        return video_chatgpt(name, asked, index // len(FORMS)), f"{name}.mp4"
    return {"video_id": name, "q": asked[0].question, "a": asked[0].answer}, f"{name}.mp4"
