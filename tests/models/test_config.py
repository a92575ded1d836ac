import dataclasses
import json

import pytest

from emu.config import (
    EmuConfig,
    ObjectiveConfig,
    VisionConfig,
    emu_14b_config,
    image_block,
    tiny_config,
)


@pytest.mark.parametrize(
    "config", [EmuConfig(), tiny_config(321, instruct=True), emu_14b_config(instruct=True)]
)
def test_json_and_back_is_the_same_configuration(config: EmuConfig) -> None:
    assert EmuConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"visoin": {}}, r"config has unknown keys \['visoin'\]"),
        ({"vision": {"wdith": 3}}, r"config.vision has unknown keys \['wdith'\]"),
        ({"vision": {"width": "many"}}, r"config.vision.width is 'many', give int"),
        ({"vision": {"width": True}}, r"config.vision.width is True, give int"),
        ({"vision": {"width": 1400}}, r"width is 1400, give a multiple of heads = 16"),
        ({"vision": {"patch_size": 0}}, r"patch_size is 0, give a number above 0"),
        ({"vision": None}, r"config.vision is NoneType, give an object"),
        ({"former": {"dropout": 1.0}}, r"dropout is 1.0"),
        ({"language": {"hidden_size": 30, "num_heads": 4}}, r"hidden_size is 30"),
        ({"objective": {"visual_weight": -1}}, r"visual_weight is -1"),
        ({"decoder": {"unet_channels": 4}}, r"config.decoder.unet_channels is 4, give a list"),
        ({"decoder": {"image_size": 100}}, r"image_size is 100, give a multiple of 8"),
        ({"instruct": 1}, r"config.instruct is 1, give bool"),
    ],
)
def test_a_wrong_document_is_refused_by_name(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EmuConfig.from_json(json.dumps(change))


def test_text_that_is_no_json_is_refused() -> None:
    with pytest.raises(ValueError, match="not JSON"):
        EmuConfig.from_json("{")


def test_absent_keys_take_the_paper_sizes() -> None:
    assert EmuConfig.from_json("{}") == EmuConfig()


def test_special_ids_of_the_released_models() -> None:
    special = emu_14b_config().special
    assert (special.unk, special.bos, special.eos) == (0, 1, 2)
    assert (special.pad, special.image_start, special.image_end) == (32000, 32001, 32002)
    assert (special.image, special.user, special.assistant) == (32003, None, None)
    instruct = emu_14b_config(instruct=True)
    assert (instruct.special.user, instruct.special.assistant) == (32004, 32005)
    assert (emu_14b_config().num_embeddings, instruct.num_embeddings) == (32004, 32006)


def test_an_image_is_34_tokens_of_text() -> None:
    assert image_block(2) == "[IMG]<image><image>[/IMG]"
    assert EmuConfig().former.num_queries == 32
    assert VisionConfig().num_patches == 256
    assert VisionConfig().num_tokens == 257


def test_configurations_do_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ObjectiveConfig().visual_weight = 2.0  # type: ignore[misc]
