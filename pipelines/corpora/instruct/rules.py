"""Instruction data: dialogues with roles, from their records to samples.

Stages, each from shard to shard:

| stage    | steps                                                                                            |
|----------|--------------------------------------------------------------------------------------------------|
| parse    | a record of any form (`forms`) becomes cleaned turns (`turns`) and one link per image or video     |
| fetch    | images and videos are fetched, or read from the media folder; a dialogue that lacks one is dropped |
| assemble | the system message is put in front, media to their places, and the dialogue becomes a sample      |

The sample: segments with the roles `system`, `user` and `assistant`; the segments of one role in a row are one turn. A
system turn of the record stays as it is; else a dialogue about one image or one video begins with the paper's system
message (`schemas.dialogue`). Its `meta`:

| field          | meaning                                                                            |
|----------------|------------------------------------------------------------------------------------|
| form, id       | the form of the record (`forms`), and its id if it has one                         |
| source, record | name of the input file, without its folder, and place of the record in it          |
| image_slot     | for each image segment in order: the number of its link; frames of a video share it |
| image_url      | for each link: where it was fetched from, or its path in the media folder           |
| clips          | for each video: the number of its link, its decoder, its duration_s                 |
| removed_turns  | turns that cleaning took away, by why                                              |
| scores         | num_turns, and removed_turns over all                                              |
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field

from pipelines.core.pipeline import (
    RECORD_FIELDS,
    Filter,
    Pipeline,
    Reason,
    Reasons,
    Source,
    Stage,
)
from pipelines.corpora.build import Build
from pipelines.corpora.instruct.forms import FORM_REASONS, Dialogue, Form, parse_dialogue
from pipelines.corpora.instruct.media import CLIP_FIELDS, MediaContent
from pipelines.corpora.instruct.paper_filter import PAPER_FILTER_REASONS, check_against_paper
from pipelines.corpora.instruct.turns import TURN_REASONS, CleanDialogue, CleanTurn, clean
from pipelines.images.normalise import ImageConfig
from pipelines.publish.card import Card
from pipelines.publish.report import Report
from pipelines.readers.json_array import ArraySource
from pipelines.transforms.samples import assembled_table, origin, parsed_table
from pipelines.videos.frames import FrameConfig
from pipelines.videos.process import DecodeLimits
from schemas.dialogue import system_message
from schemas.sample import Link, Segment, canonical_json
from schemas.validation import Checked

CORPUS = "instruct"
READER = ArraySource
"""Reads the input files: JSON arrays, or one record per line."""
REPORT = Report(
    title="Instruction dataset",
    record_word="dialogue",
    score_titles={"num_turns": "Turns per dialogue", "removed_turns": "Turns removed by cleaning"},
)
CARD = Card(
    title=REPORT.title,
    about="Dialogues with roles: questions and answers, images and frames of videos at the their places.",
    sources=(
        "https://huggingface.co/datasets/liuhaotian/LLaVA-Instruct-150K",
        "https://github.com/tatsu-lab/stanford_alpaca",
        "https://github.com/lm-sys/FastChat",
        "https://github.com/OpenGVLab/Ask-Anything",
        "https://github.com/mbzuai-oryx/Video-ChatGPT",
    ),
    licence="LLaVA's and Alpaca's dialogues are under CC BY-NC 4.0; the media belong to their owners.",
    record_word="dialogue",
)


@dataclass(frozen=True)
class Rules(Checked):
    """What an instruction dataset is made by, apart from its inputs: part of its fingerprint, without `limits`."""

    form: Literal["auto"] | Form = "auto"
    strip_html: bool = True
    system_messages: bool = True
    paper_filter: bool = False
    max_characters: Annotated[int, Field(ge=1, description="characters per dialogue")] = 200_000
    video_suffix: str = ".mp4"
    frames: FrameConfig = field(default_factory=FrameConfig)
    limits: DecodeLimits = field(default_factory=DecodeLimits)
    image: ImageConfig = field(default_factory=ImageConfig)


def pipeline(build: Build[Source], rules: Rules) -> Pipeline:
    """The pipeline from records, the JSON of each in the column `line`, to published dialogues."""
    content = MediaContent(rules.image, rules.frames, rules.limits)
    made_by = {name: value for name, value in asdict(rules).items() if name != "limits"}
    stages = (
        Stage("parse", (ParseDialogues(rules),)),
        build.fetch_stage(content, all_media_arrived()),
        Stage("assemble", (assemble_dialogues,)),
    )
    return build.pipeline(CORPUS, stages, made_by, REPORT, CARD)


TURN_TYPE = pa.struct(
    [
        pa.field("role", pa.string()),
        pa.field("parts", pa.list_(pa.struct([("text", pa.large_string()), ("slot", pa.int32())]))),
    ]
)
"""A cleaned turn: texts, and the slots of the links of its media."""
DIALOGUE_FIELDS = (
    pa.field("turns", pa.list_(TURN_TYPE)),
    pa.field("about", pa.string()),
)
PARSED = pa.schema([*RECORD_FIELDS, *DIALOGUE_FIELDS])


@dataclass(frozen=True)
class ParseDialogues:
    """Transform: the column `line` becomes `turns`, `about` (the first of the meta) and `links`."""

    rules: Rules
    reasons: ClassVar[Reasons] = {**FORM_REASONS, **TURN_REASONS, **PAPER_FILTER_REASONS}

    def __call__(self, table: pa.Table) -> pa.Table:
        """The dialogues; a record that holds none carries the reason."""
        return parsed_table(table, PARSED, self._parse)

    def _parse(self, row: dict[str, Any]) -> dict[str, Any]:
        form = None if self.rules.form == "auto" else self.rules.form
        raw = parse_dialogue(row["line"], row["record"] - 1, form, self.rules.video_suffix)
        found = clean(raw, self.rules.strip_html, self.rules.max_characters)
        if self.rules.paper_filter:
            check_against_paper(raw, found.turns)
        about = {
            "form": raw.form,
            "id": raw.id,
            **origin(row),
            "removed_turns": dict(found.removed),
        }
        links = [Link(slot, medium.url).as_row() for slot, medium in enumerate(raw.media)]
        turns = [_turn_row(turn) for turn in self._turns(raw, found)]
        return {"turns": turns, "about": canonical_json(about), "links": links}

    def _turns(self, raw: Dialogue, found: CleanDialogue) -> Iterator[CleanTurn]:
        """The turns, with the system's in front."""
        kinds = [medium.kind for medium in raw.media]
        system = found.system
        if not system and self.rules.system_messages:
            system = system_message(kinds.count("image"), kinds.count("video")) or ""
        system = f"{system} {raw.instruction}".strip()
        if system:
            yield CleanTurn("system", (system,))
        yield from found.turns


def assemble_dialogues(table: pa.Table) -> pa.Table:
    """Transform: `turns`, `about` and `media` become the `segments` and `meta` of a sample."""
    return assembled_table(table, "media", _assembled)


def _assembled(row: dict[str, Any]) -> dict[str, Any]:
    frames = {value["slot"]: value["frames"] for value in row["media"]}
    segments, slots = [], []
    for turn in row["turns"]:
        for part in turn["parts"]:
            if part["slot"] is None:
                segments.append(Segment.of_text(part["text"], role=turn["role"]))
                continue
            segments += [_image(frame, turn["role"]) for frame in frames[part["slot"]]]
            slots += [part["slot"]] * len(frames[part["slot"]])
    about = json.loads(row["about"])
    num_turns = sum(turn["role"] != "system" for turn in row["turns"])
    meta = {
        **about,
        "image_slot": slots,
        "image_url": [link["url"] for link in row["links"]],
        "clips": _clips(row["media"]),
        "scores": {"num_turns": num_turns, "removed_turns": sum(about["removed_turns"].values())},
    }
    return row | {
        "segments": [segment.as_row() for segment in segments],
        "meta": canonical_json(meta),
    }


def _clips(media: list[dict[str, Any]]) -> list[dict[str, Any]]:
    names = ("slot", *(f.name for f in CLIP_FIELDS))
    return [{n: value[n] for n in names} for value in media if value["decoder"] is not None]


def _turn_row(turn: CleanTurn) -> dict[str, Any]:
    """A turn as a value of `TURN_TYPE`; texts that follow each other are one."""
    rows: list[dict[str, Any]] = []
    for part in turn.parts:
        if isinstance(part, int):
            rows.append({"text": None, "slot": part})
        elif rows and rows[-1]["slot"] is None:
            rows[-1]["text"] += f"\n{part}"
        else:
            rows.append({"text": part, "slot": None})
    return {"role": turn.role, "parts": rows}


def _image(frame: Mapping[str, Any], role: str) -> Segment:
    sizes: Sequence[Any] = (frame["format"], frame["width"], frame["height"])
    return Segment.of_image(frame["data"], *sizes, time_s=frame["time_s"], role=role)


def all_media_arrived() -> Filter:
    """A filter that keeps dialogues of which every image and video arrived."""

    def test(table: pa.Table) -> pa.Array:
        lost = [any(k["reason"] for k in links) for links in table["links"].to_pylist()]
        return pa.array(["medium_lost" if is_lost else None for is_lost in lost], pa.string())

    reason = Reason(
        "An image or a video of the dialogue is missing or damaged; see the reasons of its links."
    )
    return Filter("all_media_arrived", test, {"medium_lost": reason})
