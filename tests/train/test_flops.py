from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from emu.config import AdapterConfig, EmuConfig, SequenceConfig, tiny_config
from emu.data.batches import collate, images_of
from emu.data.packing import collate_packed
from emu.data.sequence import SequenceMaker
from emu.models.emu import Emu
from emu.models.objective import IGNORED, Batch, Objective, regression_positions
from emu.tokenizer import EmuTokenizer
from emu.train.flops import BatchSize, known_peak_tflops, step_cost
from emu.train.start import train_adapter_alone
from tests.data.small_dataset import clip, dialogue, document, pair, small_tokenizer, storyboard

KINDS = {
    "pairs": [pair(1), pair(2), pair(3)],
    "documents": [document(1, 3), document(2, 2)],
    "text": [document(3, 0)],
    "clips": [clip(1), clip(2)],
    "storyboards": [storyboard(1), storyboard(2)],
}
LENGTHS = SequenceConfig(96, 128, 96, clip_length=128, storyboard_length=128, dialogue_length=256)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> EmuTokenizer:
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer.model")


@pytest.fixture(scope="module")
def config(tokenizer: EmuTokenizer) -> EmuConfig:
    return tiny_config(tokenizer.num_pieces)


def batch_of(kind: str, tokenizer: EmuTokenizer, config: EmuConfig, is_packed: bool) -> Batch:
    maker = SequenceMaker(LENGTHS, config, tokenizer, 0)
    sequences = [maker.make(sample, 0) for sample in KINDS[kind]]
    images = [images_of(sequence, config.vision.image_size, None) for sequence in sequences]
    if not is_packed:
        return collate(sequences, images, config.special.pad, False)
    made = list(zip(sequences, images, strict=True))
    return collate_packed(made, config.special.pad, False)


def size_of(batch: Batch, config: EmuConfig) -> BatchSize:
    """As the counter sees it: of padded rows the real positions, but the attention over whole rows."""
    rows, length = batch.input_ids_BL.shape
    lengths = [length] * rows if batch.documents is None else batch.documents.lengths
    is_padded = batch.documents is None
    positions = int(batch.attention_mask_BL.sum()) if is_padded else sum(lengths)
    predictors, _ = regression_positions(batch.input_ids_BL, config.special, config.objective)
    return BatchSize(
        positions,
        sum(n * n for n in lengths),
        batch.num_images,
        int((batch.labels_BL[:, 1:] != IGNORED).sum()),
        int(predictors.sum()),
    )


def counted(model: Emu, batch: Batch) -> int:
    with FlopCounterMode(display=False) as counter:
        output = model(batch, with_logits=False)
        Objective(model.config.objective)(output, batch).total.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("state", ["trained", "frozen", "cached", "recomputed", "padded"])
def test_the_count_is_that_of_torch(
    kind: str, state: str, tokenizer: EmuTokenizer, config: EmuConfig
):
    model = Emu(config)
    model.init_weights(0)
    model.train()
    batch = batch_of(kind, tokenizer, config, is_packed=state != "padded")
    if state in ("frozen", "cached"):
        model.visual.requires_grad_(False)
    if state == "cached" and batch.pixels_NCHW is not None:
        with torch.no_grad():
            patches = model.visual(batch.pixels_NCHW)
        batch = replace(batch, pixels_NCHW=None, patches_NPV=patches)
    if state == "recomputed":
        model.recompute_activations()
    cost = step_cost(config, state == "frozen", state == "cached", state == "recomputed")
    assert cost.executed(size_of(batch, config)) == pytest.approx(counted(model, batch), rel=1e-3)


TALKS = {
    "text": [dialogue(1, 0), dialogue(2, 0)],
    "images": [dialogue(1, 1), dialogue(2, 3)],
    "videos": [dialogue(1, 8, is_video=True), dialogue(2, 0)],
}


@pytest.mark.parametrize("kind", list(TALKS))
@pytest.mark.parametrize(
    ("state", "targets"),
    [
        ("pixels", ("q_proj", "k_proj", "v_proj", "o_proj")),
        ("cached", ("q_proj", "v_proj")),
        ("recomputed", ("q_proj", "k_proj", "v_proj", "o_proj")),
        ("pixels", ("o_proj",)),
    ],
)
def test_the_count_of_instruction_tuning_is_that_of_torch(
    kind: str, state: str, targets: tuple[Any, ...], tokenizer: EmuTokenizer
):
    adapter = AdapterConfig(rank=4, targets=targets)
    config = tiny_config(tokenizer.num_pieces, instruct=True)
    objective = replace(config.objective, visual_weight=0.0)
    config = replace(config, adapter=adapter, objective=objective)
    model = Emu(config)
    model.init_weights(0)
    train_adapter_alone(model.train())
    speaking = EmuTokenizer(tokenizer.model_bytes, instruct=True)
    maker = SequenceMaker(LENGTHS, config, speaking, 0)
    sequences = [maker.make(sample, 0) for sample in TALKS[kind]]
    images = [images_of(sequence, config.vision.image_size, None) for sequence in sequences]
    made = list(zip(sequences, images, strict=True))
    batch = collate_packed(made, config.special.pad, are_patches=False)
    if state == "cached" and batch.pixels_NCHW is not None:
        with torch.no_grad():
            patches = model.visual(batch.pixels_NCHW)
        batch = replace(batch, pixels_NCHW=None, patches_NPV=patches)
    if state == "recomputed":
        model.recompute_activations()
    cost = step_cost(config, True, state == "cached", state == "recomputed")
    assert cost.executed(size_of(batch, config)) == pytest.approx(counted(model, batch), rel=1e-3)


def test_the_14b_model_costs_six_operations_per_weight_and_position():
    from emu.config import emu_14b_config

    cost = step_cost(emu_14b_config())
    language = cost.model(BatchSize(positions=1))
    assert language == pytest.approx(6 * 12.688e9, rel=1e-3)  # the layers of LLaMA-13B
    assert cost.forward.images == pytest.approx(
        2 * 257 * 1.0e9, rel=0.12
    )  # the tower and the former


def test_known_cards():
    assert known_peak_tflops("NVIDIA H100 80GB HBM3") == 989.5
    assert known_peak_tflops("AMD EPYC") is None
