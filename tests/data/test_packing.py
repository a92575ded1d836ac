from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emu.config import EmuConfig, SequenceConfig, tiny_config
from emu.data.batches import collate, images_of
from emu.data.packing import collate_packed, efficiency, pack
from emu.data.sequence import SequenceMaker
from emu.models.emu import Emu
from emu.models.objective import Batch, Losses, Objective
from emu.tokenizer import EmuTokenizer
from tests.data.small_dataset import clip, document, pair, small_tokenizer, storyboard

LENGTHS = SequenceConfig(96, 128, 96, clip_length=128, storyboard_length=128)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> EmuTokenizer:
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer.model")


@pytest.fixture(scope="module")
def config(tokenizer: EmuTokenizer) -> EmuConfig:
    return tiny_config(tokenizer.num_pieces)


@given(lengths=st.lists(st.integers(1, 100), max_size=60), row_length=st.integers(100, 300))
@settings(max_examples=200, deadline=None)
def test_every_sequence_is_in_one_row_and_no_row_overflows(lengths: list[int], row_length: int):
    rows = pack(lengths, row_length)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in row) <= row_length for row in rows)
    assert pack(lengths, row_length) == rows
    assert all(rows)
    fills = [sum(lengths[index] for index in row) for row in rows]
    if rows:  # the fullest row got its last sequence when it was the emptiest
        assert max(fills) - min(fills) <= max(lengths)
    assert len(rows) <= max(1, 2 * sum(lengths) // row_length)


def test_a_sequence_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match="a sequence has 70 positions, a row 64"):
        pack([3, 70], 64)


@pytest.mark.parametrize("number", [32, 64, 256])
def test_a_mixed_stream_fills_rows_to_97_percent(number: int):
    """Pairs, documents of both types, clips and storyboards at the paper's lengths, in the rows of a GPU."""
    dice = Random(0)
    for _ in range(50):
        lengths = [
            dice.choice(
                (36 + dice.randint(5, 60), dice.randint(300, 1024), 512, 280 + dice.randint(5, 60))
            )
            for _ in range(number)
        ]
        rows = pack(lengths, 4096)
        assert efficiency(lengths, rows, 64) >= 0.97
        assert efficiency(lengths, rows) == 1


def test_rows_are_nearly_equal():
    lengths = [700, 600, 500, 300, 200, 100, 90, 10]
    rows = pack(lengths, 1300)
    assert rows == [[0, 3, 4, 6], [1, 2, 5, 7]]  # 1,290 and 1,210 positions
    assert efficiency(lengths, rows, 64) == 2500 / (1344 + 1216)


def mixed(
    tokenizer: EmuTokenizer, config: EmuConfig
) -> list[tuple]:  # of sequences and their pixels
    maker = SequenceMaker(LENGTHS, config, tokenizer, 0)
    samples = [pair(1), document(2, 3), clip(3), storyboard(4), document(5, 0), pair(6), clip(7)]
    made = [maker.make(sample, 0) for sample in samples]
    return [(s, images_of(s, config.vision.image_size, None)) for s in made]


def test_no_image_block_is_cut_and_images_stay_in_reading_order(
    tokenizer: EmuTokenizer, config: EmuConfig
):
    made = mixed(tokenizer, config)
    batch = collate_packed(made, config.special.pad, False, multiple=64)
    documents = batch.documents
    assert documents is not None and batch.num_sequences == len(made)
    assert batch.input_ids_BL.shape[1] % 64 == 0
    assert documents.longest // 2 < max(documents.lengths) <= documents.longest
    ids = batch.input_ids_BL.flatten().split(list(documents.lengths))
    real = [part for part in ids if part[0] != config.special.pad]
    assert all(torch.equal(part, s.ids_L) for part, (s, _) in zip(real, made, strict=True))
    assert batch.pixels_NCHW is not None
    assert torch.equal(batch.pixels_NCHW, torch.cat([images for _, images in made]))
    starts = documents.bounds_N[:-1].long()
    assert (documents.positions_BL.flatten()[starts] == 0).all()
    assert (batch.labels_BL.flatten()[starts] == -100).all()


def losses_of(model: Emu, batch: Batch) -> tuple[Losses, dict[str, torch.Tensor]]:
    model.zero_grad()
    losses = Objective(model.config.objective)(model(batch, with_logits=False), batch)
    losses.total.backward()
    gradients = {n: w.grad.clone() for n, w in model.named_parameters() if w.grad is not None}
    return losses, gradients


@pytest.mark.parametrize(("recompute", "multiple"), [(False, 1), (True, 1), (False, 64)])
def test_packed_losses_and_gradients_are_those_of_padded_batches(
    tokenizer: EmuTokenizer, config: EmuConfig, recompute: bool, multiple: int
):
    model = Emu(config)
    model.init_weights(3)
    model.train()
    if recompute:
        model.recompute_activations()
    made = mixed(tokenizer, config)
    padded = collate([s for s, _ in made], [p for _, p in made], config.special.pad, False)
    packed = collate_packed(made, config.special.pad, False, multiple)
    (wanted, wanted_grads), (found, grads) = losses_of(model, padded), losses_of(model, packed)
    assert (found.num_text, found.num_visual) == (wanted.num_text, wanted.num_visual)
    torch.testing.assert_close(found.text, wanted.text, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.visual, wanted.visual, rtol=1e-6, atol=0)
    assert set(grads) == set(wanted_grads)
    for name, gradient in grads.items():
        scale = float(wanted_grads[name].abs().max())
        torch.testing.assert_close(gradient, wanted_grads[name], rtol=0, atol=2e-5 * scale + 1e-9)


def test_no_document_sees_another(tokenizer: EmuTokenizer, config: EmuConfig):
    model = Emu(config)
    model.init_weights(3)
    model.eval()
    made = [row for row in mixed(tokenizer, config) if not len(row[1])]
    [(words, none)] = made
    other = replace(words, ids_L=words.ids_L.flip(0))
    length = len(words.ids_L)
    outputs = [
        model(collate_packed([first, (words, none)], config.special.pad, False)).hidden_BLD
        for first in ((words, none), (other, none))
    ]
    assert not torch.equal(outputs[0][:, :length], outputs[1][:, :length])
    assert torch.equal(outputs[0][:, length:], outputs[1][:, length:])


def test_rows_of_one_sequence_give_the_states_of_a_padded_batch(
    tokenizer: EmuTokenizer, config: EmuConfig, tmp_path: Path
):
    model = Emu(config)
    model.init_weights(3)
    model.eval()
    made = mixed(tokenizer, config)[:1]
    alone = collate([made[0][0]], [made[0][1]], config.special.pad, False)
    packed = collate_packed(made, config.special.pad, False, multiple=120)
    with torch.no_grad():
        wanted, found = model(alone).hidden_BLD, model(packed).hidden_BLD
    torch.testing.assert_close(found[:, : wanted.shape[1]], wanted, rtol=1e-5, atol=1e-5)
