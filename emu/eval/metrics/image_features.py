"""Features of images for FID, KID and CLIP scores, from weights that the user provides."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emu.eval.metrics.metric import (
    Bootstrap,
    Key,
    Score,
    aligned_keys,
    mean_score,
    optional_module,
)

if TYPE_CHECKING:
    import torch
    from PIL import Image

Floats = NDArray[np.float64]
_INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
# What PyTorch raises for truncated files, other formats and weights of other networks.
_UNREADABLE = (pickle.UnpicklingError, RuntimeError, EOFError)


def inception_features(weights: Path, device: str = "cpu") -> Callable[[NDArray[np.uint8]], Floats]:
    """A function from images [N, 3, H, W], uint8, to the 2,048 pooled features [N, 2048] that FID is defined on.

    The network is torch-fidelity's, which resizes images to 299 pixels; `weights` is a file in its format.

    Raises ModuleNotFoundError without the extra `fid` and FileNotFoundError without the weights, each with a hint, and
    ValueError for a file with other contents.
    """
    import torch

    library = optional_module(
        "torch_fidelity.feature_extractor_inceptionv3", "fid", "features for FID need"
    )
    if not Path(weights).is_file():
        raise FileNotFoundError(
            f"no Inception weights at {weights}; FID needs torch-fidelity's file {_INCEPTION_FILE} "
            "(see docs/metrics.md); other Inception weights give other numbers"
        )
    # the library unpickles the file without checks; refuse anything but tensors first
    try:
        torch.load(weights, map_location="cpu", weights_only=True)
        network = library.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(weights))
    except _UNREADABLE as error:
        raise ValueError(
            f"{weights} does not contain the weights of torch-fidelity's Inception network; FID needs its file "
            f"{_INCEPTION_FILE}"
        ) from error
    network = network.to(device)

    def features(images: NDArray[np.uint8]) -> Floats:
        if images.ndim != 4 or images.shape[1] != 3 or images.dtype != np.uint8:
            raise ValueError(
                f"images are {images.dtype} {images.shape}; they must be uint8 [N, 3, H, W]"
            )
        with torch.inference_mode():
            (pooled,) = network(torch.from_numpy(images).to(device))
        return pooled.double().cpu().numpy()

    return features


@dataclass(frozen=True)
class ClipEncoder:
    """Embeddings of images and texts, of length 1, by a model of open_clip."""

    model: Any
    preprocess: Callable[[Image.Image], torch.Tensor]
    tokenizer: Callable[[Sequence[str]], torch.Tensor]
    device: str = "cpu"

    @classmethod
    def load(cls, name: str, weights: Path, device: str = "cpu") -> ClipEncoder:
        """Loads the open_clip model `name` with the weights of a file.

        Raises FileNotFoundError without the file, ValueError for an unknown name and for other contents.
        """
        import open_clip

        if name not in open_clip.list_models():
            raise ValueError(f"open_clip has no model {name!r}; open_clip.list_models() lists all")
        if not Path(weights).is_file():
            raise FileNotFoundError(
                f"no weights at {weights} for the CLIP model {name!r} (see docs/metrics.md)"
            )
        try:
            model, _, preprocess = open_clip.create_model_and_transforms(
                name, pretrained=str(weights), device=device
            )
        except _UNREADABLE as error:
            raise ValueError(f"{weights} does not contain the weights of {name!r}") from error
        return cls(model.eval(), preprocess, open_clip.get_tokenizer(name), device)  # pyright: ignore[reportArgumentType]

    def images(self, images: Sequence[Image.Image]) -> Floats:
        """Embeddings [N, D] of images."""
        import torch

        pixels = torch.stack([self.preprocess(image) for image in images]).to(self.device)
        with torch.inference_mode():
            return _unit(self.model.encode_image(pixels).double().cpu().numpy())

    def texts(self, texts: Sequence[str]) -> Floats:
        """Embeddings [N, D] of texts."""
        import torch

        with torch.inference_mode():
            return _unit(
                self.model.encode_text(self.tokenizer(list(texts)).to(self.device))
                .double()
                .cpu()
                .numpy()
            )


@dataclass(frozen=True)
class ClipScore:
    """Mean over ids of `weight * max(0, cosine)` of two embeddings, each [D].

    Weight 1 gives CLIP-T (image and text) or CLIP-I (two images), 2.5 gives CLIPScore (Hessel et al., 2021).
    """

    weight: float = 1.0
    bootstrap: Bootstrap = field(default_factory=Bootstrap)

    def __call__(
        self, predictions: Mapping[Key, ArrayLike], references: Mapping[Key, ArrayLike]
    ) -> Score:
        """The score; raises ValueError for ids that differ and embeddings of different shapes."""
        keys = aligned_keys(predictions, references)
        widths = {np.shape(side[key]) for side in (predictions, references) for key in keys}
        if len(widths) > 1 or len(next(iter(widths))) != 1:
            raise ValueError(
                f"embeddings have the shapes {sorted(widths)}; all must be [D] with the same D"
            )
        sides = [
            _unit(np.asarray([side[key] for key in keys], np.float64))
            for side in (predictions, references)
        ]
        values = self.weight * np.maximum((sides[0] * sides[1]).sum(1), 0)
        return mean_score(
            "CLIP score", dict(zip(keys, values.tolist(), strict=True)), self.bootstrap
        )


def _unit(rows: Floats) -> Floats:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if not np.isfinite(lengths).all() or (lengths == 0).any():
        raise ValueError("an embedding is zero or not finite, so it has no direction")
    return rows / lengths
