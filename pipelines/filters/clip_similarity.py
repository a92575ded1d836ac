"""Filter: samples whose images resemble their text, by CLIP: for corpora that bring no similarity of their own."""

from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.columns import images_of, texts_of, verdicts
from pipelines.core.pipeline import Construct, Filter, Reason, Resources
from pipelines.filters.files import InputFile
from pipelines.filters.image_rule import Images
from pipelines.images.clip import ClipModel, ClipWeights

REASONS = {
    "clip_similarity_low": Reason(
        "The CLIP similarity of its images and texts is below the minimum."
    )
}


def clip_similarity(
    min: float = 0.28,
    model: InputFile = "ViT-L-14",
    pretrained: InputFile = "",
    images: Images = "any",
    batch_size: int = 64,
    gpus: float = 0.0,
    workers: int | None = None,
    max_drop: float = 0.9,
) -> Filter:
    """Samples with an image (or all, `images=all`) whose cosine similarity to the best matching text is at least
    `min`.

    `pretrained` is a file of weights or a tag of open_clip; `gpus` and `workers` are what one worker takes and how many
    there are at most. A sample without images or without text is kept. 0.28 is LAION-2B's threshold for ViT-B-32,
    0.26 the one for other languages; it depends on the model.
    """
    if not -1 <= min <= 1:
        raise ValueError(f"clip_similarity: min is {min}, give a cosine from -1 to 1 (not percent)")
    weights = ClipWeights(model, pretrained or None).checked("clip_similarity")
    return Filter(
        "clip_similarity",
        Construct(ClipSimilarity, (weights, min, images, batch_size)),
        REASONS,
        max_drop,
        Resources(num_gpus=gpus, concurrency=workers),
    )


class ClipSimilarity:
    """The test, with its model loaded."""

    def __init__(self, weights: ClipWeights, min: float, images: Images, batch_size: int) -> None:
        self.clip = ClipModel(weights, batch_size)
        self.min, self.images = min, images

    def __call__(self, table: pa.Table) -> pa.Array:
        """The reason of each record, with the similarities of its images."""
        images, texts = images_of(table), [[t for t in own if t.strip()] for own in texts_of(table)]
        images = [own if said else [] for own, said in zip(images, texts, strict=True)]
        pixels = self.clip.encode_images([image for own in images for image in own])
        words = sorted({t for own, said in zip(images, texts, strict=True) if own for t in said})
        vectors = dict(zip(words, self.clip.encode_texts(words), strict=True))
        found, position = [], 0
        for own, said in zip(images, texts, strict=True):
            mine = pixels[position : position + len(own)]
            position += len(own)
            found.append(self._verdict(mine, [vectors[t] for t in said] if own else []))
        return verdicts(found)

    def _verdict(self, images: np.ndarray, texts: list[Any]) -> tuple[str, str | None] | None:
        if not len(images):
            return None
        best = (images @ np.stack(texts).T).max(axis=1)
        is_kept = (best >= self.min).all() if self.images == "all" else (best >= self.min).any()
        shown = ", ".join(f"{value:.3f}" for value in best[:8])
        return None if is_kept else ("clip_similarity_low", f"{shown} of {self.min:g}")
