"""Filter: samples by what a small model on top of CLIP says of their images: aesthetic, NSFW, watermark.

The model is a file of weights of linear layers, one after the other, on the unit vectors of CLIP: LAION's aesthetic
predictors (`sac+logos+ava1-l14-linearMSE.pth`, `sa_0_4_vit_l_14_linear.pth`) have this form, and so has any
classifier that is trained in this way.
"""

import re
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from pipelines.columns import images_of, verdicts
from pipelines.core.pipeline import Construct, Filter, Reason, Resources
from pipelines.filters.files import InputFile, resolved
from pipelines.filters.image_rule import Images
from pipelines.images.clip import ClipModel, ClipWeights

REASONS = {
    "image_score_too_low": Reason("The score of its images is below the minimum."),
    "image_score_too_high": Reason("The score of its images is above the maximum."),
}
Activation = Literal["none", "relu"]
Output = Literal["none", "sigmoid"]


def image_score(
    weights: InputFile = "",
    min: float | None = None,
    max: float | None = None,
    model: InputFile = "ViT-L-14",
    pretrained: InputFile = "openai",
    activation: Activation = "none",
    output: Output = "none",
    images: Images = "all",
    batch_size: int = 64,
    gpus: float = 0.0,
    workers: int | None = None,
    max_drop: float = 0.9,
) -> Filter:
    """Samples whose images (all, or one of them with `images=any`) score from `min` to `max` by the layers in
    `weights`.

    `model` and `pretrained` name the CLIP that the layers were trained on, `activation` what is between them, `output`
    what follows the last. A sample without images is kept.
    """
    if min is None and max is None:
        raise ValueError("image_score: give min (aesthetic: min=5) or max (NSFW: max=0.5)")
    path = resolved("image_score: weights", weights)
    clip = ClipWeights(model, pretrained or None).checked("image_score")
    bounds = (-np.inf if min is None else min, np.inf if max is None else max)
    return Filter(
        "image_score",
        Construct(ImageScore, (path, bounds, clip, activation, output, images, batch_size)),
        REASONS,
        max_drop,
        Resources(num_gpus=gpus, concurrency=workers),
    )


class ImageScore:
    """The test, with CLIP and the layers loaded."""

    def __init__(
        self,
        weights: str,
        bounds: tuple[float, float],
        clip: ClipWeights,
        activation: Activation,
        output: Output,
        images: Images,
        batch_size: int,
    ) -> None:
        self.layers = load_layers(weights)
        self.clip = ClipModel(clip, batch_size)
        self.bounds, self.images = bounds, images
        self.activation, self.output = activation, output

    def __call__(self, table: pa.Table) -> pa.Array:
        """The reason of each record, with the scores of its images."""
        images = images_of(table)
        scores = self.scores(self.clip.encode_images([image for own in images for image in own]))
        ends = np.cumsum([len(own) for own in images]) if images else []
        return verdicts(
            [
                self._verdict(scores[end - len(own) : end])
                for own, end in zip(images, ends, strict=True)
            ]
        )

    def scores(self, vectors: np.ndarray) -> np.ndarray:
        """The score of each vector."""
        if not len(vectors):
            return np.zeros(0)
        for number, (weight, bias) in enumerate(self.layers):
            if number and self.activation == "relu":
                vectors = np.maximum(vectors, 0)
            vectors = vectors @ weight.T + bias
        found = vectors[:, 0].astype(np.float64)
        return 1 / (1 + np.exp(-found)) if self.output == "sigmoid" else found

    def _verdict(self, scores: np.ndarray) -> tuple[str, str | None] | None:
        if not len(scores):
            return None
        low, high = scores < self.bounds[0], scores > self.bounds[1]
        is_bad = low | high
        if not (is_bad.any() if self.images == "all" else is_bad.all()):
            return None
        word = "image_score_too_low" if low.any() else "image_score_too_high"
        return word, ", ".join(f"{score:.3f}" for score in scores[:8])


def load_layers(path: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weight `[out, in]` and bias `[out]` of each linear layer in a file of PyTorch or safetensors, in order."""
    tensors = _tensors(path)
    names = sorted((n for n, t in tensors.items() if t.ndim == 2), key=_natural)
    layers = []
    for name in names:
        weight = tensors[name]
        bias = tensors.get(re.sub("weight$", "bias", name))
        layers.append((weight, np.zeros(len(weight), np.float32) if bias is None else bias))
    widths = [(w.shape[1], w.shape[0]) for w, _ in layers]
    is_chain = all(a[1] == b[0] for a, b in pairwise(widths))
    if not layers or not is_chain or widths[-1][1] != 1:
        raise ValueError(
            f"{path}: layers of widths {widths}: not linear layers, one after the other, that end in one number"
        )
    return layers


def _tensors(path: str) -> dict[str, Any]:
    if Path(path).suffix == ".safetensors":
        from safetensors.numpy import load_file

        return dict(load_file(path))
    import torch

    loaded = torch.load(path, map_location="cpu", weights_only=True)
    loaded = loaded.get("state_dict", loaded)
    return {name: tensor.float().numpy() for name, tensor in loaded.items()}


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(p) if p.isdigit() else 0, p) for p in re.split(r"(\d+)", name)]
