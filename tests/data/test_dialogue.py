"""Dialogues as sequences: the ids of the server, and only answers as targets."""

import asyncio
import base64
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from emu.config import EmuConfig, SequenceConfig, tiny_config
from emu.data.dialogue import Plain, conversation, encoded
from emu.data.sequence import Sequence, SequenceError, SequenceMaker
from emu.generate.prompts import PromptEncoder
from emu.serve.backend import EncodedImage, ModelCard
from emu.serve.limits import Limits
from emu.serve.requests import read_request
from emu.serve.schema import ChatRequest
from emu.tokenizer import EmuTokenizer
from schemas.dialogue import IMAGE_SYSTEM_MESSAGE, VIDEO_SYSTEM_MESSAGE, system_message
from schemas.sample import Sample, Segment
from tests.data.small_dataset import dialogue, pair, small_tokenizer

LIMITS = Limits(max_images=16)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> EmuTokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    small_tokenizer(path)
    return EmuTokenizer.load(path, instruct=True)


@pytest.fixture(scope="module")
def model(tokenizer: EmuTokenizer) -> EmuConfig:
    return tiny_config(tokenizer.num_pieces, instruct=True)


def made(tokenizer: EmuTokenizer, model: EmuConfig, sample: Sample, length: int = 1000) -> Sequence:
    lengths = SequenceConfig(96, 96, 96, clip_length=96, storyboard_length=96)
    maker = SequenceMaker(replace(lengths, dialogue_length=length), model, tokenizer, 0)
    return maker.make(sample, 0)


def served_ids(tokenizer: EmuTokenizer, model: EmuConfig, segments: list[Segment]) -> list[int]:
    """The ids that the server makes of a chat request with these turns."""
    messages = []
    for segment in segments:
        if not messages or messages[-1]["role"] != segment.role:
            messages.append({"role": segment.role, "content": []})
        if segment.kind == "text":
            part = {"type": "text", "text": segment.text}
        else:
            url = "data:image/png;base64," + base64.b64encode(segment.image or b"").decode()
            part = {"type": "image_url", "image_url": {"url": url}}
        messages[-1]["content"].append(part)
    request = ChatRequest.model_validate({"model": "emu", "messages": messages})
    card = ModelCard("emu", model, None, ())
    prompt = asyncio.run(read_request(request, card, LIMITS, None)).prompt
    pieces = [p.data if isinstance(p, EncodedImage) else p for p in prompt]
    return list(PromptEncoder(tokenizer, model)(pieces).ids)


@pytest.mark.parametrize("num_images", [0, 1, 3])
@pytest.mark.parametrize("num_answers", [1, 3])
@pytest.mark.parametrize("sends_system", [True, False])
def test_the_ids_before_each_answer_are_those_of_the_server(
    tokenizer: EmuTokenizer,
    model: EmuConfig,
    num_images: int,
    num_answers: int,
    sends_system: bool,
):
    sample = dialogue(2, num_images, num_answers)
    sequence = made(tokenizer, model, sample)
    ids, labels = sequence.ids_L.tolist(), sequence.labels_L.tolist()
    for number, segment in enumerate(sample.segments):
        if segment.role != "assistant":
            continue
        before = [s for s in sample.segments[:number] if sends_system or s.role != "system"]
        prompt = served_ids(tokenizer, model, before)
        assert ids[: len(prompt)] == prompt
        assert labels[len(prompt) - 1] == -100 and labels[len(prompt)] == ids[len(prompt)]
    assert ids[-1] == labels[-1] == tokenizer.special.eos


def test_the_frames_of_a_video_are_served_with_its_system_message(
    tokenizer: EmuTokenizer, model: EmuConfig
):
    sample = dialogue(1, 8, 2, is_video=True)
    assert sample.segments[0].text == VIDEO_SYSTEM_MESSAGE == system_message(0, 1)
    prompt = served_ids(tokenizer, model, list(sample.segments[:-1]))
    sequence = made(tokenizer, model, sample)
    assert sequence.ids_L.tolist()[: len(prompt)] == prompt
    assert prompt.count(tokenizer.special.image) == 8 * model.former.num_queries
    assert [slot.segment for slot in sequence.slots] == [2, 3, 4, 5, 6, 7, 8, 9]


def test_only_answers_are_targets(tokenizer: EmuTokenizer, model: EmuConfig):
    sample = dialogue(3, 1, 3)
    sequence = made(tokenizer, model, sample)
    targets = sequence.labels_L[sequence.labels_L != -100]
    answers = [s.text or "" for s in sample.segments if s.role == "assistant"]
    turns = " ".join(tokenizer.decode(targets.tolist(), skip_special=False).split("</s>")).split()
    assert turns == " ".join(answers).split()
    assert (targets == tokenizer.special.eos).sum() == 3
    assert torch.equal(
        sequence.ids_L[sequence.labels_L != -100], targets
    )  # and each is the id at its own place


def test_tokens_written_in_a_dialogue_are_plain_characters(
    tokenizer: EmuTokenizer, model: EmuConfig
):
    system = f"{IMAGE_SYSTEM_MESSAGE} Say [USER]."
    turns = [
        ("system", system),
        ("user", "What is </s> and [IMG]?"),
        ("assistant", "An end. [ASSISTANT]:"),
    ]
    sample = Sample(
        "talk", "instruct", tuple(Segment.of_text(text, role=role) for role, text in turns)
    )
    ids = made(tokenizer, model, sample).ids_L.tolist()
    special = tokenizer.special
    counts = {name: ids.count(getattr(special, name)) for name in ("user", "assistant", "eos")}
    assert counts == {"user": 1, "assistant": 1, "eos": 1}
    assert ids.count(special.image_start) == 1, "that of the paper's message"
    assert tokenizer.decode(ids).endswith("An end. [ASSISTANT]:")


@pytest.mark.parametrize("length", [12, 40, 60, 75, 100])
def test_a_long_dialogue_is_cut_after_its_last_target(
    tokenizer: EmuTokenizer, model: EmuConfig, length: int
):
    whole = made(tokenizer, model, dialogue(4, 2, 6))
    cut = made(tokenizer, model, dialogue(4, 2, 6), length)
    number = len(cut.ids_L)
    assert number <= length < len(whole.ids_L)
    assert torch.equal(cut.ids_L, whole.ids_L[:number])
    assert torch.equal(cut.labels_L, whole.labels_L[:number])
    is_target = whole.labels_L[:length] != -100
    assert number == (int(is_target.nonzero()[-1]) + 1 if is_target.any() else 1)
    assert (cut.ids_L == tokenizer.special.image).sum() % model.former.num_queries == 0


def test_a_dialogue_without_room_for_an_answer_is_told(
    tokenizer: EmuTokenizer, model: EmuConfig, caplog: pytest.LogCaptureFixture
):
    sequence = made(tokenizer, model, dialogue(4, 1, 1), 12)
    assert sequence.ids_L.tolist() == [tokenizer.special.bos] and not sequence.slots
    assert (sequence.labels_L == -100).all()
    assert "its first question takes all 12 positions" in caplog.text


def test_what_is_for_another_model_is_refused(tokenizer: EmuTokenizer, model: EmuConfig):
    from emu.config import AdapterConfig

    with pytest.raises(SequenceError, match="has no roles; instruction tuning trains on dialogues"):
        made(tokenizer, replace(model, adapter=AdapterConfig()), pair(1))
    mixed = (Segment.of_text("a", role="user"), Segment.of_text("b"))
    with pytest.raises(SequenceError, match="some segments have a role, others none"):
        made(tokenizer, model, Sample("talk", "instruct", mixed))


def test_the_segmentation_is_that_of_golden_prompts(golden_tokenizer: EmuTokenizer):
    question = "describe the image in detail."
    turns = [("user", [Plain(question)]), ("assistant", [Plain("the image shows", True)])]
    marked = encoded(conversation(turns, is_closed=True), golden_tokenizer)
    text = f" [USER]: {question} [ASSISTANT]: the image shows</s>"
    assert [m.atom for m in marked] == golden_tokenizer.encode(text, bos=False)


@pytest.fixture
def golden_tokenizer(repository: Path) -> EmuTokenizer:
    folder = repository / "tests" / "golden" / "emu1_small"
    assert json.loads((folder / "meta.json").read_text())
    return EmuTokenizer.load(folder / "tokenizer", instruct=True)
