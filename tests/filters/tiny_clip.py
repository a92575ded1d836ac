"""A tiny CLIP of random weights in open_clip's own form, and rendered images."""

import json
from pathlib import Path

import numpy as np

from pipelines.miniworld.pairs import jpeg
from pipelines.miniworld.scene import Scene, sample_scene

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def tiny_clip(folder: Path) -> Path:
    """A folder that open_clip loads without a network."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    folder.mkdir()
    torch.manual_seed(0)
    model = open_clip.CLIP(**CONFIG)
    save_file(
        {k: v.contiguous() for k, v in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    preprocess = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    document = {"model_cfg": CONFIG, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(document))
    return folder


def scene(number: int) -> Scene:
    return sample_scene(np.random.default_rng(number), max_things=3, aspects=(1.0,))


def scene_jpeg(number: int, side: int = 96) -> bytes:
    """A rendered scene as a JPEG file."""
    return jpeg(scene(number), side)
