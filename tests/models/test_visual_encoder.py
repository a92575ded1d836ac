import pytest
import torch
from open_clip.timm_model import TimmModel
from timm.models import register_model
from timm.models.eva import Eva

from emu.config import VisionConfig
from emu.models.visual import VisualEncoder

SMALL = VisionConfig(28, 7, width=36, layers=2, heads=3, mlp_hidden=157, embed_dim=10)


@register_model
def eva_small_for_tests(pretrained: bool = False, **options: object) -> Eva:
    """The design of eva_giant_patch14_224 at small size, for open_clip to build by name."""
    options.pop("pretrained_cfg", None), options.pop("pretrained_cfg_overlay", None)
    options.pop("cache_dir", None)
    ratio = 157.5 / 36
    sizes = {"img_size": 28, "patch_size": 7, "embed_dim": 36, "depth": 2, "num_heads": 3}
    return Eva(mlp_ratio=ratio, **sizes, **options)


@pytest.fixture(scope="module")
def tower() -> TimmModel:
    torch.manual_seed(0)
    tower = TimmModel("eva_small_for_tests", embed_dim=10, pool="token", proj="").eval()
    with torch.no_grad():
        for weight in tower.parameters():  # biases and norms too, so that each one matters
            weight.add_(torch.randn_like(weight) * 0.1)
    return tower


@torch.no_grad()
def test_open_clip_weights_give_open_clip_features(tower: TimmModel) -> None:
    encoder = VisualEncoder(SMALL).eval()
    encoder.load_open_clip(tower.state_dict())
    pixels = torch.randn(2, 3, 28, 28)
    patches = encoder(pixels)
    assert patches.shape == (2, SMALL.num_tokens, 36)
    torch.testing.assert_close(encoder.trunk.norm(patches), tower.trunk.forward_features(pixels))
    torch.testing.assert_close(encoder.pool(patches), tower(pixels))


def test_weights_that_do_not_fit_are_named(tower: TimmModel) -> None:
    weights = dict(tower.state_dict())
    weights["extra"] = weights.pop("trunk.cls_token")
    weights["trunk.head.bias"] = torch.zeros(11)
    with pytest.raises(ValueError) as error:
        VisualEncoder(SMALL).load_open_clip(weights)
    for words in (
        "missing trunk.cls_token",
        "unexpected extra",
        "trunk.head.bias has shape (11,), needs (10,)",
    ):
        assert words in str(error.value)


@pytest.mark.parametrize("width", range(8, 400, 8))
def test_hidden_width_is_exact(width: int) -> None:
    config = VisionConfig(8, 8, width=width, layers=1, heads=1, mlp_hidden=width * 4 + 3)
    with torch.device("meta"):
        encoder = VisualEncoder(config)
    assert encoder.get_parameter("trunk.blocks.0.mlp.fc1.bias").shape == (width * 4 + 3,)


def test_wrong_images_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"shape \(1, 3, 30, 28\), the tower takes \(B, 3, 28, 28\)"
    ):
        VisualEncoder(SMALL)(torch.zeros(1, 3, 30, 28))


def test_recomputation_gives_the_same_gradients() -> None:
    torch.manual_seed(0)
    encoder = VisualEncoder(SMALL).train()
    pixels = torch.randn(2, 3, 28, 28)
    gradients = []
    for recompute in (False, True):
        encoder.recompute_blocks = recompute
        encoder.zero_grad()
        encoder(pixels).square().mean().backward()
        gradients.append([w.grad.clone() for w in encoder.parameters() if w.grad is not None])
    assert len(gradients[0]) == len(list(encoder.parameters())) - 4  # frozen: norm and head
    torch.testing.assert_close(gradients[0], gradients[1])
