"""CLIP through open_clip: unit vectors of images and texts, on the worker's GPU if it has one.

A model is named as open_clip names it, with weights from a local file or a pretrained tag (found in open_clip's
cache, or
downloaded by it); or it is a folder with `open_clip_config.json` and weights, as open_clip saves models for the Hub.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class ClipWeights:
    """Which CLIP: a model of open_clip and its weights."""

    model: str = "ViT-L-14"
    """Name of a model of open_clip, or a folder of its form."""
    pretrained: str | None = None
    """A file of weights or a pretrained tag; null only for a folder, which has its own."""
    gpus: float = 0.0
    """GPUs that a worker takes, also parts of one; 0 computes on the CPU."""

    @classmethod
    def parsed(cls, text: str, gpus: float = 0.0) -> "ClipWeights":
        """From `MODEL:PRETRAINED` or a folder."""
        model, _, pretrained = (text, "", "") if Path(text).is_dir() else text.partition(":")
        return cls(model, pretrained or None, gpus).checked("clip")

    def checked(self, who: str) -> "ClipWeights":
        """With absolute paths; raises `ValueError` naming `who` where no weights are named or a file is absent."""
        if Path(self.model).is_dir():
            return replace(self, model=str(Path(self.model).absolute()))
        if not self.pretrained:
            raise ValueError(
                f"{who}: no weights for {self.model}: give pretrained=FILE or a tag of open_clip (such as openai), "
                "or a folder with open_clip_config.json as model"
            )
        if Path(self.pretrained).is_file():
            return replace(self, pretrained=str(Path(self.pretrained).absolute()))
        if "/" in self.pretrained or "." in self.pretrained:
            raise ValueError(f"{who}: pretrained is {self.pretrained!r}, but there is no such file")
        return self


class ClipModel:
    """The model, ready to encode; made once on a worker.

    Raises:
        ValueError: open_clip knows no such model or tag, or cannot load its weights.
    """

    def __init__(self, weights: ClipWeights, batch_size: int = 64) -> None:
        import open_clip
        import torch

        self.batch_size = batch_size
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        name = f"local-dir:{weights.model}" if Path(weights.model).is_dir() else weights.model
        try:
            made: Any = open_clip.create_model_and_transforms(
                name, pretrained=weights.pretrained, device=self.device
            )
            self.model, _, self.preprocess = made
            self.tokenizer: Any = open_clip.get_tokenizer(name)
        except (RuntimeError, OSError, KeyError) as error:
            raise ValueError(
                f"open_clip cannot load {weights.model} ({weights.pretrained or 'its own weights'}): {error}"
            ) from error
        self.model.eval()

    def encode_images(self, images: Sequence[bytes]) -> np.ndarray:
        """Unit vectors `[images, D]` in float32 of encoded images."""
        return self._encoded(images, self._pixels, self.model.encode_image)

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors `[texts, D]` in float32; what is behind the context length of the model is cut off."""
        return self._encoded(texts, self.tokenizer, self.model.encode_text)

    def similarities(self, images: Sequence[bytes], texts: Sequence[str]) -> np.ndarray:
        """Cosine similarity `[images, texts]`, as MMC4 gives it for a document."""
        return self.encode_images(images) @ self.encode_texts(texts).T

    def _pixels(self, images: Sequence[bytes]) -> Any:
        import torch

        return torch.stack([self._preprocessed(image) for image in images])

    def _preprocessed(self, image: bytes) -> Any:
        with Image.open(io.BytesIO(image)) as opened:
            return self.preprocess(opened.convert("RGB"))

    def _encoded(self, values: Sequence[Any], prepare: Any, encode: Any) -> np.ndarray:
        import torch

        parts = []
        with torch.inference_mode():
            for start in range(0, len(values), self.batch_size):
                batch = prepare(list(values[start : start + self.batch_size])).to(self.device)
                vectors = encode(batch).float()
                parts.append(torch.nn.functional.normalize(vectors, dim=-1).cpu().numpy())
        return np.concatenate(parts) if parts else np.zeros((0, 1), np.float32)
