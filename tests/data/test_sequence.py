from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emu.config import EmuConfig, SequenceConfig, tiny_config
from emu.data.sequence import SequenceError, SequenceMaker
from emu.tokenizer import IMAGE_BLOCK, EmuTokenizer
from schemas.sample import Sample, Segment
from tests.data.small_dataset import (
    clip,
    document,
    image_segment,
    pair,
    small_tokenizer,
    storyboard,
    timed_image,
)

SHORT = SequenceConfig(pair_length=128, window_length=128, sampled_length=96)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> EmuTokenizer:
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer.model")


@pytest.fixture(scope="module")
def model(tokenizer: EmuTokenizer) -> EmuConfig:
    return tiny_config(tokenizer.num_pieces)


def maker_of(
    tokenizer: EmuTokenizer, model: EmuConfig, config: SequenceConfig = SHORT, seed: int = 0
) -> SequenceMaker:
    return SequenceMaker(config, model, tokenizer, seed)


def shape(ids: list[int], model: EmuConfig) -> str:
    """The sequence as a word: B for a block, t for a run of text, < and > for its ends."""
    special, queries = model.special, model.former.num_queries
    word, index = "", 0
    while index < len(ids):
        if ids[index] == special.image_start:
            block = ids[index : index + queries + 2]
            assert block[1:] == [special.image] * queries + [special.image_end]
            word, index = word + "B", index + queries + 2
            continue
        assert ids[index] not in (special.image, special.image_end, special.pad)
        letter = {special.bos: "<", special.eos: ">"}.get(ids[index], "t")
        word += letter if word[-1:] != "t" or letter != "t" else ""
        index += 1
    return word


def test_a_pair_has_both_orders_with_equal_probability(tokenizer: EmuTokenizer, model: EmuConfig):
    maker = maker_of(tokenizer, model)
    seen = Counter(shape(maker.make(pair(1), e).ids_L.tolist(), model) for e in range(400))
    assert set(seen) == {"<Bt>", "<tB>"}
    assert 150 < seen["<Bt>"] < 250


def test_the_ids_are_those_of_the_released_segmentation(tokenizer: EmuTokenizer, model: EmuConfig):
    block, text = IMAGE_BLOCK(model.former.num_queries), pair(1).text
    wanted = {
        tuple(tokenizer.encode(block + text, eos=True)),
        tuple(tokenizer.encode(text + block, eos=True)),
    }
    maker = maker_of(tokenizer, model)
    assert {tuple(maker.make(pair(1), e).ids_L.tolist()) for e in range(20)} == wanted


def test_labels_leave_out_images_and_nothing_else(tokenizer: EmuTokenizer, model: EmuConfig):
    sequence = maker_of(tokenizer, model).make(document(3), 0)
    special = model.special
    hidden = {special.image, special.image_start, special.image_end}
    for token, label in zip(sequence.ids_L.tolist(), sequence.labels_L.tolist(), strict=True):
        assert label == (-100 if token in hidden else token)
    assert sequence.labels_L[-1] == special.eos


def test_random_choices_follow_from_seed_epoch_and_key(tokenizer: EmuTokenizer, model: EmuConfig):
    def sampled(seed: int, epoch: int) -> list[list[int]]:
        maker = maker_of(tokenizer, model, seed=seed)
        return [maker.make(document(n), epoch).ids_L.tolist() for n in range(8)]

    assert sampled(0, 0) == sampled(0, 0)
    assert sampled(0, 0) != sampled(0, 1) and sampled(0, 0) != sampled(1, 0)


@given(
    num_images=st.integers(0, 9),
    num_sentences=st.integers(1, 30),
    epoch=st.integers(0, 1000),
    probability=st.sampled_from([0.0, 1.0]),
    length=st.integers(12, 160),
)
@settings(max_examples=150, deadline=None)
def test_lengths_blocks_and_images_hold_for_any_document(
    tokenizer: EmuTokenizer,
    model: EmuConfig,
    num_images: int,
    num_sentences: int,
    epoch: int,
    probability: float,
    length: int,
):
    config = SequenceConfig(
        128, window_length=length, sampled_length=length, window_probability=probability
    )
    sample = document(7, num_images, num_sentences)
    sequence = maker_of(tokenizer, model, config).make(sample, epoch)
    ids = sequence.ids_L.tolist()
    word = shape(ids, model)
    assert len(ids) <= length and word[0] == "<" and word[-1] == ">"
    assert word.count("B") == len(sequence.slots) <= 5
    segments = [slot.segment for slot in sequence.slots]
    assert segments == sorted(set(segments))
    assert all(sample.segments[slot.segment].image == slot.image for slot in sequence.slots)


def test_a_window_is_used_in_full_and_starts_anywhere(tokenizer: EmuTokenizer, model: EmuConfig):
    config = SequenceConfig(128, window_length=64, sampled_length=64, window_probability=1.0)
    maker = maker_of(tokenizer, model, config)
    sequences = [maker.make(document(1, 2, 40), epoch) for epoch in range(60)]
    block = model.former.num_queries + 2
    assert all(64 - block < len(s.ids_L) <= 64 for s in sequences)
    assert len({tuple(s.ids_L[:6].tolist()) for s in sequences}) > 30


def test_sampled_images_keep_their_sentences(tokenizer: EmuTokenizer, model: EmuConfig):
    config = SequenceConfig(128, 128, sampled_length=1000, max_images=2, window_probability=0.0)
    maker = maker_of(tokenizer, model, config)
    sampled: Counter[tuple[int, ...]] = Counter()
    shapes: Counter[str] = Counter()
    for epoch in range(300):
        sequence = maker.make(document(5, 4, 9), epoch)
        text = tokenizer.decode(sequence.ids_L.tolist())
        for slot in sequence.slots:  # segment 1 is the image of sentence 1, 4 that of 3, 7 of 5 ...
            sentence = {1: 1, 4: 3, 7: 5, 10: 7}[slot.segment]
            assert f"Sentence {sentence} of" in text
        assert text.count("Sentence") == 2
        sampled[tuple(slot.segment for slot in sequence.slots)] += 1
        shapes[shape(sequence.ids_L.tolist(), model)] += 1
    assert len(sampled) == 6 and min(sampled.values()) > 25  # every pair of the four images
    assert set(shapes) == {"<BtBt>", "<BtB>", "<tBBt>", "<tBtB>"}


def test_images_that_share_a_sentence_keep_their_order(tokenizer: EmuTokenizer, model: EmuConfig):
    segments = (image_segment(0), image_segment(1), Segment.of_text("both"), image_segment(2))
    sample = Sample("shared", "mmc4", segments)
    for epoch in range(40):
        slots = maker_of(tokenizer, model).make(sample, epoch).slots
        assert sorted(slot.segment for slot in slots) == [0, 1, 3]
        assert slots[-1].segment == 3


def test_special_tokens_in_a_text_stay_text(tokenizer: EmuTokenizer, model: EmuConfig):
    trap = "see <image> and [IMG] or </s> [PAD]<s>"
    sample = Sample("trap", "pairs", (image_segment(0), Segment.of_text(trap)))
    sequence = maker_of(tokenizer, model).make(sample, 0)
    assert shape(sequence.ids_L.tolist(), model) in ("<Bt>", "<tB>")
    assert trap in tokenizer.decode(sequence.ids_L.tolist())


def test_a_long_caption_is_cut_and_the_image_stays(tokenizer: EmuTokenizer, model: EmuConfig):
    sample = Sample("long", "pairs", (image_segment(0), Segment.of_text("square " * 500)))
    for epoch in range(10):
        sequence = maker_of(tokenizer, model).make(sample, epoch)
        assert len(sequence.ids_L) == 128 and len(sequence.slots) == 1


def test_a_clip_has_its_frames_in_order_before_or_after_its_text(
    tokenizer: EmuTokenizer, model: EmuConfig
):
    maker = maker_of(tokenizer, model)
    shapes: Counter[str] = Counter()
    for epoch in range(100):
        sequence = maker.make(clip(1, 12), epoch)
        segments = [slot.segment for slot in sequence.slots]
        assert len(segments) == 8 and segments == sorted(set(segments))
        shapes[shape(sequence.ids_L.tolist(), model)] += 1
    assert set(shapes) == {"<BBBBBBBBt>", "<tBBBBBBBB>"} and min(shapes.values()) > 25


def test_of_a_clip_that_does_not_fit_the_text_goes_first(tokenizer: EmuTokenizer, model: EmuConfig):
    block = model.former.num_queries + 2
    config = SequenceConfig(128, 128, 96, clip_length=2 + 3 * block + 4, storyboard_length=128)
    sequence = maker_of(tokenizer, model, config).make(clip(1), 0)
    assert len(sequence.slots) == 3 and len(sequence.ids_L) == config.clip_length


def test_a_storyboard_is_in_order_of_time(tokenizer: EmuTokenizer, model: EmuConfig):
    maker = maker_of(tokenizer, model)
    board = storyboard(1)
    wanted = maker.make(board, 0)
    assert shape(wanted.ids_L.tolist(), model) == "<BtBtBtBt>"
    shuffled = Sample(board.key, board.corpus, board.segments[1::2] + board.segments[::2])
    assert torch.equal(maker.make(shuffled, 0).ids_L, wanted.ids_L)
    same_time = (Segment.of_text("now", time_s=1), timed_image(0, 1.0))
    first = maker.make(Sample("tie", "yt_storyboard", same_time), 0)
    assert shape(first.ids_L.tolist(), model) == "<Bt>"


def test_of_a_long_storyboard_a_window_is_used(tokenizer: EmuTokenizer, model: EmuConfig):
    maker = maker_of(tokenizer, model, replace(SHORT, storyboard_length=96))
    sequences = [maker.make(storyboard(1, 30), epoch) for epoch in range(40)]
    assert all(80 < len(s.ids_L) <= 96 for s in sequences)
    assert len({s.slots[0].segment for s in sequences}) > 8


def test_dialogues_are_refused_by_name(tokenizer: EmuTokenizer, model: EmuConfig):
    sample = Sample("talk", "instruct", (Segment.of_text("hello", role="user"),))
    with pytest.raises(SequenceError, match="'talk' of corpus 'instruct'"):
        maker_of(tokenizer, model).make(sample, 0)


def test_lengths_that_cannot_hold_an_image_are_refused(tokenizer: EmuTokenizer, model: EmuConfig):
    with pytest.raises(ValueError, match="window_length is 11; give 12"):
        maker_of(tokenizer, model, SequenceConfig(128, window_length=11, sampled_length=64))
    with pytest.raises(ValueError, match=r"pair_length is 2048; give 12 .* to 1024"):
        maker_of(tokenizer, model, SequenceConfig())
    with pytest.raises(ValueError, match="the tokenizer has"):
        maker_of(tokenizer, tiny_config(999))
