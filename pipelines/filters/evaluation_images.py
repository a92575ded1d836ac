"""Filter: samples that show an image of an evaluation set, also scaled, encoded again or adjusted."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from pipelines.columns import images_of, verdicts
from pipelines.core.pipeline import Construct, Filter, Reason
from pipelines.filters.files import InputFile, lines_of, resolved
from pipelines.images.perceptual_hash import (
    NUM_BITS,
    as_array,
    distances,
    hash_from_hex,
    perceptual_hash,
)

REASONS = {
    "evaluation_image": Reason("One of its images equals or nearly equals an evaluation image.")
}
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def evaluation_images(file: InputFile = "", radius: int = 4, max_drop: float = 0.9) -> Filter:
    """Samples without an image whose perceptual hash lies within `radius` bits (0 to 32) of one of an evaluation set.

    `file` is a folder of images (jpg, png, webp; with its subfolders), or a list of hashes, one of 16 hexadecimal
    digits on a line, as ImageHash prints them.
    """
    if not 0 <= radius <= NUM_BITS // 2:
        raise ValueError(
            f"evaluation_images: radius is {radius}, give a number of bits from 0 to 32"
        )
    path = resolved("evaluation_images", file)
    if not Path(path).is_dir():
        EvaluationImages(path, radius)  # a wrong line is found before the build
    return Filter(
        "evaluation_images", Construct(EvaluationImages, (path, radius)), REASONS, max_drop
    )


class EvaluationImages:
    """The test, with the hashes in memory: 8 bytes each."""

    def __init__(self, file: str, radius: int) -> None:
        self.radius = radius
        hashes = _of_folder(Path(file)) if Path(file).is_dir() else _of_list(file)
        if not hashes:
            raise ValueError(f"{file}: no image and no hash in it")
        self.hashes = np.unique(as_array(hashes))

    def __call__(self, table: pa.Table) -> pa.Array:
        """The reason of each record, with the hash of its image and the distance."""
        return verdicts([self._verdict(images) for images in images_of(table)])

    def _verdict(self, images: list[bytes]) -> tuple[str, str | None] | None:
        for number, image in enumerate(images):
            own = perceptual_hash(image)
            found = distances(own, self.hashes)
            nearest = int(found.argmin())
            if found[nearest] <= self.radius:
                detail = f"image {number}, {own:016x}: {found[nearest]} bits from {int(self.hashes[nearest]):016x}"
                return "evaluation_image", detail
        return None


def _of_folder(folder: Path) -> list[int]:
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    return [perceptual_hash(path.read_bytes()) for path in files]


def _of_list(file: str) -> list[int]:
    found = []
    for number, line in lines_of(file):
        try:
            found.append(hash_from_hex(line.split()[0]))
        except ValueError as error:
            raise ValueError(f"{file}, line {number}: {error}") from None
    return found
