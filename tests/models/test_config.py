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
        ({"visoin": {}}, r"config has the unknown key 'visoin'; did you mean 'vision'"),
        (
            {"vision": {"wdith": 3}},
            r"config.vision has the unknown key 'wdith'; did you mean 'width'",
        ),
        ({"vision": {"width": "many"}}, r"config.vision.width is 'many', give a whole number"),
        ({"vision": {"width": True}}, r"config.vision.width is True, give a whole number"),
        ({"vision": {"width": 1400}}, r"width is 1400, give a multiple of heads = 16"),
        (
            {"vision": {"patch_size": 0}},
            r"config.vision.patch_size is 0, give a whole number of at least 1",
        ),
        ({"vision": None}, r"config.vision is None, give an object"),
        ({"former": {"dropout": 1.0}}, r"config.former.dropout is 1.0, give .* below 1"),
        ({"language": {"hidden_size": 30, "num_heads": 4}}, r"hidden_size is 30"),
        (
            {"objective": {"visual_weight": -1}},
            r"config.objective.visual_weight is -1, give a number of at least 0",
        ),
        ({"init": {"ground": 1.5}}, r"config.init.ground is 1.5, give a number from 0 to 1"),
        ({"adapter": {"targets": ["w"]}}, r"config.adapter.targets.0 is 'w', give one of 'q_proj'"),
        ({"adapter": {"targets": []}}, r"config.adapter.targets is .*at least 1"),
        ({"decoder": {"unet_channels": 4}}, r"config.decoder.unet_channels is 4, give a list"),
        ({"decoder": {"image_size": 100}}, r"image_size is 100, give a multiple of 8"),
        ({"instruct": 1}, r"config.instruct is 1, give true or false"),
    ],
)
def test_a_wrong_document_is_refused_by_name(change: dict, message: str) -> None:
    document = json.loads(emu_14b_config(instruct=True).to_json())
    for name, value in change.items():
        if isinstance(value, dict) and name in document:
            document[name] |= value
        else:
            document[name] = value
    with pytest.raises(ValueError, match=message):
        EmuConfig.from_json(json.dumps(document))


def test_text_that_is_no_json_is_refused() -> None:
    with pytest.raises(ValueError, match="not JSON"):
        EmuConfig.from_json("{")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ((), r"config lacks the keys vision, former, language; give them, they are never guessed"),
        (
            ("vision",),
            r"config.vision lacks the keys image_size, patch_size, width, layers",
        ),
        (("former",), r"config.former lacks the keys d_model"),
        (("language",), r"config.language lacks the keys .*rms_norm_eps;"),
        (("adapter",), r"config.adapter lacks the keys rank, alpha, dropout, targets;"),
        (("decoder",), r"config.decoder lacks the keys image_size"),
    ],
)
def test_sizes_are_never_guessed(path: tuple[str, ...], message: str) -> None:
    document = json.loads(emu_14b_config(instruct=True).to_json())
    for name in path:
        document[name] = {}
    with pytest.raises(ValueError, match=message):
        EmuConfig.from_json(json.dumps(document if path else {}))


def test_one_absent_size_is_named() -> None:
    document = json.loads(EmuConfig().to_json())
    del document["language"]["num_heads"]
    with pytest.raises(ValueError, match=r"config.language lacks the keys num_heads;"):
        EmuConfig.from_json(json.dumps(document))


def test_choices_with_a_plain_default_may_be_absent() -> None:
    document = json.loads(EmuConfig().to_json())
    for name in ("objective", "instruct", "adapter", "decoder", "init"):
        del document[name]
    assert EmuConfig.from_json(json.dumps(document)) == EmuConfig()
    document["objective"] = {"visual_weight": 0.5}
    loaded = EmuConfig.from_json(json.dumps(document)).objective
    assert loaded == ObjectiveConfig(visual_weight=0.5)


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
