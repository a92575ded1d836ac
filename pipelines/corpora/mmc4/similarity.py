"""Similarities of images and sentences by CLIP, for documents that bring no `similarity_matrix`."""

from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.images.clip import ClipModel, ClipWeights

NOT_ARRIVED = -1.0
"""In the row of an image that did not arrive; it is not read."""


class FillSimilarity:
    """Transform: where `similarity` is empty, that of the images that arrived and all sentences; made on a worker."""

    def __init__(self, weights: ClipWeights) -> None:
        self.clip = ClipModel(weights)

    def __call__(self, table: pa.Table) -> pa.Table:
        """The documents, each with a matrix of images x sentences."""
        names = ("similarity", "texts", "links", "images")
        found = [self._matrix(row) for row in table.select(names).to_pylist()]
        position = table.schema.get_field_index("similarity")
        field = table.schema.field(position)
        return table.set_column(position, field, pa.array(found, field.type))

    def _matrix(self, row: dict[str, Any]) -> list[list[float]]:
        if row["similarity"] or not row["images"]:
            return row["similarity"] or []
        matrix = np.full((len(row["links"]), len(row["texts"])), NOT_ARRIVED)
        slots = [image["slot"] for image in row["images"]]
        matrix[slots] = self.clip.similarities([i["data"] for i in row["images"]], row["texts"])
        return matrix.tolist()
