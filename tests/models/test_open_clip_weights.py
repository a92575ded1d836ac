"""CLIP checkpoints of open_clip and EVA into the tower, by file and by tag."""

from pathlib import Path

import pytest
import torch
from open_clip import CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP
from safetensors.torch import save_file

from emu.models.visual import VisualEncoder
from emu.train.start import start_model, start_tower
from emu.weights.open_clip import MODELS, open_clip_tags, open_clip_tower
from emu.weights.store import weights_hash
from jobs.cli import parse
from jobs.train_emu import TrainEmu, plan_of, recipe_defaults
from tests.models.test_visual_encoder import SMALL, eva_small_for_tests
from tests.train.plans import mini_plan

TAG = "laion400m_s11b_b41k"


@pytest.fixture(scope="module")
def clip() -> CustomTextCLIP:
    """A whole CLIP of open_clip's own making, its tower of the design of EVA01-g-14."""
    torch.manual_seed(1)
    vision = CLIPVisionCfg(
        image_size=28,
        timm_model_name=eva_small_for_tests.__name__,
        timm_pool="token",
        timm_proj="",
    )
    text = CLIPTextCfg(context_length=5, vocab_size=11, width=8, heads=2, layers=1)
    clip = CustomTextCLIP(10, vision, text).eval()
    with torch.no_grad():
        for weight in clip.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return clip


@torch.no_grad()
def check_features(weights: str | Path, clip: CustomTextCLIP, cache_dir: str | None = None) -> None:
    encoder = VisualEncoder(SMALL).eval()
    encoder.load_open_clip(open_clip_tower(weights, cache_dir))
    pixels = torch.randn(2, 3, 28, 28)
    torch.testing.assert_close(encoder.pool(encoder(pixels)), clip.encode_image(pixels))


def test_a_checkpoint_of_open_clip(clip: CustomTextCLIP, tmp_path: Path) -> None:
    torch.save(clip.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    check_features(tmp_path / "open_clip_pytorch_model.bin", clip)
    save_file(clip.visual.state_dict(), tmp_path / "tower.safetensors")
    check_features(tmp_path / "tower.safetensors", clip)


def test_a_checkpoint_of_eva(clip: CustomTextCLIP, tmp_path: Path) -> None:
    """EVA's own file calls the tower `visual`, without open_clip's `trunk`; the released Emu does, too."""
    state = {name.replace("visual.trunk.", "visual."): t for name, t in clip.state_dict().items()}
    torch.save({"module": state}, tmp_path / "EVA01_CLIP_g_14.pt")
    check_features(tmp_path / "EVA01_CLIP_g_14.pt", clip)


def test_a_tag_is_read_from_the_cache_of_open_clip(clip: CustomTextCLIP, tmp_path: Path) -> None:
    assert open_clip_tags()[TAG] == "EVA01-g-14"
    repository = tmp_path / "models--timm--eva_giant_patch14_clip_224.laion400m_s11b_b41k"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    save_file(clip.state_dict(), snapshot / "open_clip_model.safetensors")
    check_features(TAG, clip, str(tmp_path))


def test_our_tower_goes_back_into_open_clip(clip: CustomTextCLIP) -> None:
    ours = VisualEncoder(SMALL)
    ours.load_open_clip(clip.visual.state_dict())
    state = {f"visual.{name}": tensor for name, tensor in ours.state_dict().items()}
    assert set(state) == {name for name in clip.state_dict() if name.startswith("visual.")}
    clip.load_state_dict(clip.state_dict() | state)


def test_what_cannot_be_had_is_said(clip: CustomTextCLIP, tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"no weights at 'laion3b', .*tags are \['laion400m"
    ):
        open_clip_tower("laion3b")
    with pytest.raises(FileNotFoundError, match=f"{TAG} is neither in its cache .* HF_HUB_OFFLINE"):
        open_clip_tower(TAG, str(tmp_path))
    torch.save(clip.text.state_dict(), tmp_path / "text.pt")
    with pytest.raises(ValueError, match=r"holds no EVA tower .*its keys are positional_embedding"):
        open_clip_tower(tmp_path / "text.pt")
    state = clip.state_dict()
    del state["visual.trunk.blocks.1.attn.q_bias"]
    torch.save(state, tmp_path / "less.pt")
    with pytest.raises(ValueError, match=r"missing trunk\.blocks\.1\.attn\.q_bias"):
        VisualEncoder(SMALL).load_open_clip(open_clip_tower(tmp_path / "less.pt"))


def test_a_run_starts_from_a_tower(tmp_path: Path) -> None:
    """As jobs/train_emu.py --vision-weights does it, on one process; features need the same tower."""
    plan = mini_plan(tmp_path)
    torch.manual_seed(2)
    given = VisualEncoder(plan.model.vision)
    save_file(given.state_dict(), tmp_path / "tower.safetensors")
    weights = str(tmp_path / "tower.safetensors")
    cpu = torch.device("cpu")
    model = start_model(plan.model, plan.train, None, cpu, weights)
    initial = start_model(plan.model, plan.train, None, cpu)
    assert weights_hash(model.visual) == weights_hash(given) != weights_hash(initial.visual)
    assert weights_hash(model.former) == weights_hash(initial.former)
    tower = start_tower(plan.model, plan.train.seed, None, weights)
    assert weights_hash(tower) == weights_hash(given)
    options = ["--data", plan.data, "--out", plan.out, "--vision-weights", weights]
    made = plan_of(parse(TrainEmu, options, recipe_defaults)[0])
    assert made.vision_weights == weights
    with pytest.raises(ValueError, match="has a visual encoder; give one of the two"):
        start_model(plan.model, plan.train, "some/model", cpu, weights)


def test_the_real_tower_has_the_real_names() -> None:
    """open_clip's EVA01-g-14 at its full size, without values."""
    import open_clip
    from open_clip.timm_model import TimmModel

    from emu.config import VisionConfig

    for model in MODELS:
        config = open_clip.get_model_config(model)
        assert (
            config is not None
            and config["vision_cfg"]["timm_model_name"] == "eva_giant_patch14_224"
        )
        with torch.device("meta"):
            theirs = TimmModel("eva_giant_patch14_224", config["embed_dim"], pool="token", proj="")
            ours = VisualEncoder(VisionConfig())
        shapes = {name: tensor.shape for name, tensor in theirs.state_dict().items()}
        assert shapes == {name: tensor.shape for name, tensor in ours.state_dict().items()}
