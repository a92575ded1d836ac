"""Which encoder features are computed with: its weights, its embedding, its tokens, on models of open_clip's making."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from emu.config import tiny_config
from emu.models.emu import Emu
from emu.train.feature_encoders import EncoderSpec, FeatureSizes
from emu.train.start import start_tower
from emu.weights.store import save_model, weights_hash
from jobs.precompute_features import main
from pipelines.core.storage import Storage, read_arrow
from schemas.manifest import manifest_from_json
from tests.data.small_dataset import pair, square_image, write_dataset

NAME = "ViT-small-for-tests"
CONFIG = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 60, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[open_clip.CLIP, Path]:
    """A model of open_clip's list, and a checkpoint of it."""
    folder = tmp_path_factory.mktemp("clip")
    (folder / f"{NAME}.json").write_text(json.dumps(CONFIG))
    open_clip.add_model_config(folder / f"{NAME}.json")
    torch.manual_seed(3)
    model = open_clip.create_model(NAME)
    assert isinstance(model, open_clip.CLIP)
    file = folder / "open_clip_model.safetensors"
    save_file(model.state_dict(), file)
    described = {"model_cfg": CONFIG, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    return model.eval(), file


def wide_image() -> bytes:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 70, 3), np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_a_model_of_open_clip_by_name_and_file(clip: tuple[open_clip.CLIP, Path]):
    """The embedding is `encode_image` of the image as open_clip prepares it; the tokens are those before its norm."""
    model, file = clip
    encoder = EncoderSpec(f"{NAME}:{file}").make()
    assert encoder.weights_sha256 == weights_hash(model.visual)
    pooled, tokens = encoder.encode([encoder.prepare(wide_image())])
    _, _, prepare = open_clip.create_model_and_transforms(NAME)
    assert not isinstance(prepare, tuple)
    pixels = prepare(Image.open(io.BytesIO(wide_image())))
    with torch.no_grad():
        wanted = model.encode_image(torch.stack([torch.as_tensor(pixels)])).numpy()
        assert tokens is not None and tokens.shape == (1, 17, 64)
        visual: Any = model.visual
        normed = visual.ln_post(torch.from_numpy(tokens))[:, 0] @ visual.proj
    np.testing.assert_allclose(pooled, wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(normed.numpy(), wanted, rtol=1e-4, atol=1e-5)


def test_a_folder_of_open_clip_keeps_its_preprocessing(clip: tuple[open_clip.CLIP, Path]):
    named, foldered = (
        EncoderSpec(f"{NAME}:{clip[1]}").make(),
        EncoderSpec(f"local-dir:{clip[1].parent}").make(with_tokens=False),
    )
    assert named.weights_sha256 == foldered.weights_sha256
    assert '"mean":[0.5,0.5,0.5]' in foldered.preprocessing != named.preprocessing
    assert foldered.encode([foldered.prepare(wide_image())])[1] is None


def test_sizes_are_known_without_weights(clip: tuple[open_clip.CLIP, Path]):
    assert EncoderSpec(f"{NAME}:{clip[1]}").sizes() == FeatureSizes(12, 17, 64)
    assert EncoderSpec("laion400m_s11b_b41k").sizes() == FeatureSizes(1024, 257, 1408)
    assert EncoderSpec("EVA01-g-14:/some/file.pt").sizes() == FeatureSizes(1024, 257, 1408)
    assert EncoderSpec("RN50-quickgelu:openai").sizes() == FeatureSizes(1024, 0, 0)


def test_the_encoder_of_a_model_folder(tmp_path: Path):
    config = tiny_config(300)
    model = Emu(config)
    model.init_weights(5)
    save_model(tmp_path, model)
    encoder = EncoderSpec(str(tmp_path)).make()
    assert encoder.weights_sha256 == weights_hash(start_tower(config, 5, None))
    pixels = [encoder.prepare(square_image(n)) for n in range(2)]
    pooled, tokens = encoder.encode(pixels)
    wanted = model.eval().visual(torch.stack(pixels))
    assert tokens is not None
    np.testing.assert_allclose(tokens, wanted.detach().numpy(), rtol=1e-5, atol=1e-5)
    embedded = model.visual.pool(wanted).detach().numpy()
    np.testing.assert_allclose(pooled, embedded, rtol=1e-4, atol=1e-5)


def test_a_worker_with_other_weights_is_refused():
    with pytest.raises(ValueError, match=r"'tiny, seed 0' has weights .* on this worker, 000000"):
        EncoderSpec().make(weights_sha256="0" * 64)


def test_half_precision_is_near(clip: tuple[open_clip.CLIP, Path]):
    whole = EncoderSpec(f"{NAME}:{clip[1]}").make()
    half = EncoderSpec(f"{NAME}:{clip[1]}", precision="bfloat16").make()
    images = [whole.prepare(wide_image())]
    (wanted, _), (found, tokens) = whole.encode(images), half.encode(images)
    assert tokens is not None and tokens.dtype == found.dtype == np.float32
    assert 0 < np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()


def test_the_job_with_a_checkpoint_of_open_clip(
    clip: tuple[open_clip.CLIP, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    data = write_dataset(tmp_path / "pairs", [pair(number) for number in range(4)], 3)
    options = ["--data", str(data), "--num-workers", "0", "--model", f"{NAME}:{clip[1]}"]
    assert main([*options, "--patches", "int8"]) == 0
    assert "4 images, 17 tokens of width 64 each, int8; embedding of width 12" in (
        capsys.readouterr().out
    )
    features = manifest_from_json((data / "manifest.json").read_text()).features or {}
    assert features["weights_sha256"] == weights_hash(clip[0].visual)
    assert features["preprocessing"].startswith("open_clip: ")
    table = read_arrow(Storage(str(data)), "features/pairs-000000.arrow")
    assert table.num_rows == 3 and table.column_names == [
        "key",
        "segment",
        "pooled",
        "tokens",
        "scales",
    ]
    assert main([*options, "--patches", "none"]) == 2
    assert "requested are those of" in capsys.readouterr().err
