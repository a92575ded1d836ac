"""Documents without a similarity matrix: dropped, or matched by a CLIP model."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.optimize import linear_sum_assignment

from pipelines.corpora.mmc4 import rules as mmc4
from pipelines.images.clip import ClipModel, ClipWeights
from pipelines.miniworld.server import ImageServer
from tests.filters.tiny_clip import tiny_clip
from tests.mmc4.pages import build, page, samples, write_images, write_pages


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ImageServer]:
    with ImageServer(write_images(tmp_path / "images")) as running:
        yield running


def test_clip_stands_in_for_the_matrix(tmp_path: Path, server: ImageServer) -> None:
    texts, images = ["A red wall.", " ", "Blue sky.", "Grass."], ["red", "not_found/green", "blue"]
    whole = page(["One."], ["red"], [[0.9]])
    bare = page(texts, images, [[0.5] * 4] * 3)
    del bare["similarity_matrix"]
    source = write_pages(tmp_path / "docs.jsonl", [whole, bare])
    weights = ClipWeights(str(tiny_clip(tmp_path / "clip")))
    found = {}
    for name, rules in (("with", mmc4.Rules(-1.0, clip=weights)), ("without", mmc4.Rules(-1.0))):
        found[name] = build(source, tmp_path / name, server, rules=rules)
    assert found["without"].records.dropped == {"missing_field": 1}
    assert found["with"].records.kept == 2
    assert "clip" not in found["without"].config
    one, other = samples(tmp_path / "with")
    assert one.meta["similarity"] == [0.9], "a matrix that is there is used"
    data = [(tmp_path / f"images/{n}.png").read_bytes() for n in ("red", "blue")]
    encoded = [s.image or b"" for s in other.images]
    assert len(encoded) == 2 and all(Image.open(io.BytesIO(e)).size == (48, 40) for e in encoded)
    matrix = ClipModel(weights).similarities(data, texts)[:, [0, 2, 3]]
    rows, columns = linear_sum_assignment(matrix, maximize=True)
    expected = sorted(zip([[0, 2, 3][c] for c in columns], matrix[rows, columns], strict=True))
    assert other.meta["matched_text_index"] == [index for index, _ in expected]
    # the published images were encoded once more
    assert np.allclose(other.meta["similarity"], [v for _, v in expected], atol=0.05)
