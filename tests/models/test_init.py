"""Initial weights, and that those of the tiny recipe let the embeddings of images differ."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from emu.config import EmuConfig, InitConfig, tiny_config
from emu.models.emu import WHITE, Emu
from emu.models.visual import CLIP_MEAN, CLIP_STD
from emu.train.start import start_tower

TINY = tiny_config(300)


def initialised(config: EmuConfig) -> Emu:
    model = Emu(config)
    model.init_weights(seed=4)
    return model.eval()


def test_white_is_white_under_clips_normalisation() -> None:
    white = [(1 - mean) / std for mean, std in zip(CLIP_MEAN, CLIP_STD, strict=True)]
    assert pytest.approx(white, abs=1e-4) == WHITE


def test_the_chosen_deviations_are_used() -> None:
    config = replace(TINY, init=InitConfig(0.3, 0.08, 0.06, 0.05, query_gain=5.0))
    state = initialised(config).state_dict()
    plain = initialised(replace(TINY, init=InitConfig())).state_dict()

    def std(name: str) -> float:
        return state[name].std().item()

    assert std("language.lm.model.embed_tokens.weight") == pytest.approx(0.3, rel=0.1)
    assert std("language.lm.model.layers.1.mlp.up_proj.weight") == pytest.approx(0.08, rel=0.1)
    assert std("language.lm.lm_head.weight") == pytest.approx(0.02, rel=0.1)
    assert std("visual.trunk.blocks.1.attn.qkv.weight") == pytest.approx(0.06, rel=0.1)
    assert std("visual.trunk.pos_embed") == pytest.approx(0.05, rel=0.1)
    assert std("visual.trunk.patch_embed.proj.weight") == pytest.approx(0.02, rel=0.1)
    for block in ("0", "1"):
        name = f"former.blocks.{block}.cross_attention.q.weight"
        torch.testing.assert_close(state[name], 5 * plain[name])
        name = f"former.blocks.{block}.self_attention.q.weight"
        torch.testing.assert_close(state[name], plain[name])


def test_the_ground_is_taken_from_a_white_patch() -> None:
    side, size = TINY.vision.image_size, TINY.vision.patch_size
    white = torch.tensor(WHITE)[:, None, None].expand(1, 3, side, side)
    for ground in (0.0, 0.75, 1.0):
        trunk = initialised(replace(TINY, init=InitConfig(ground=ground))).visual.trunk
        without = torch.nn.functional.conv2d(
            white, trunk.patch_embed.proj.weight, stride=size
        ).flatten(2)
        tokens = trunk.patch_embed(white).transpose(1, 2)
        torch.testing.assert_close(tokens, (1 - ground) * without, atol=1e-5, rtol=1e-4)


def test_the_tower_alone_draws_the_same() -> None:
    alone, whole = start_tower(TINY, 4, None).state_dict(), initialised(TINY).visual.state_dict()
    assert all(torch.equal(alone[name], whole[name]) for name in whole)


def test_tiny_embeddings_differ_between_images() -> None:
    """Pale pages with one coloured square each: at large models' deviations they all look alike."""

    def share_between(init: InitConfig) -> float:
        embeddings_NQD = initialised(replace(TINY, init=init)).encode_images(pale_pages())
        return float(embeddings_NQD.var(dim=0).mean() / embeddings_NQD.square().mean())

    with torch.no_grad():
        plain, chosen = share_between(InitConfig()), share_between(TINY.init)
    assert plain < 0.1 and chosen > 0.2, (plain, chosen)


def pale_pages(number: int = 24) -> Tensor:
    """Normalised images: a pale background, and on it a square of a tenth of its area."""
    generator = torch.Generator().manual_seed(0)
    side = TINY.vision.image_size
    levels = (0.82 + 0.16 * torch.rand(number, 3, 1, 1, generator=generator)).repeat(
        1, 1, side, side
    )
    for page in levels:
        x, y = torch.randint(0, side - 20, (2,), generator=generator).tolist()
        page[:, y : y + 20, x : x + 20] = torch.rand(3, 1, 1, generator=generator)
    mean, std = torch.tensor(CLIP_MEAN)[:, None, None], torch.tensor(CLIP_STD)[:, None, None]
    return (levels - mean) / std


@pytest.mark.parametrize(
    ("values", "message"),
    [({"ground": 1.5}, "ground is 1.5"), ({"query_gain": 0.0}, "query_gain is 0.0")],
)
def test_bad_choices_are_named(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InitConfig(**values)
