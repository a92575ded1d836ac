import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from emu.config import tiny_config
from emu.data.dataset import Dataset, DatasetError
from emu.data.features import FeatureReader
from emu.models.visual import VisualEncoder, normalise, pixels_of, preprocessing
from emu.train.feature_encoders import FeatureEncoder
from emu.train.start import start_tower
from emu.weights.store import weights_hash
from pipelines.core.pipeline import EngineError, Resources, StepError
from pipelines.core.run import extend
from pipelines.core.run_ray import RayRunner
from pipelines.core.storage import Storage, read_arrow
from pipelines.transforms.features import Encoder, FeatureError, FeatureStage, features_path
from schemas.features import FeatureInfo, Patches
from schemas.manifest import MANIFEST_FILE
from schemas.sample import Sample, Segment
from tests.data.small_dataset import document, image_segment, pair, write_dataset

CONFIG = replace(
    tiny_config(300), vision=replace(tiny_config(300).vision, width=32, layers=1, mlp_hidden=48)
)
SAMPLES = [document(number, number % 4) for number in range(11)]


SIDE = CONFIG.vision.image_size


def encoder_of(tower: VisualEncoder, with_tokens: bool = True) -> FeatureEncoder:
    """The encoder as the job makes it."""
    prepare = partial(normalise, side=SIDE)
    return FeatureEncoder(tower, prepare, preprocessing(SIDE), "float32", with_tokens)


@pytest.fixture(scope="module")
def tower() -> VisualEncoder:
    return start_tower(CONFIG, 0, None)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(write_dataset(tmp_path / "docs", SAMPLES, 4)))


def info_of(tower: VisualEncoder, patches: Patches = "float16") -> FeatureInfo:
    vision = CONFIG.vision
    shape = (0, 0) if patches == "none" else (vision.num_tokens, vision.width)
    return FeatureInfo(
        "small",
        weights_hash(tower),
        preprocessing(SIDE),
        "float32",
        vision.embed_dim,
        *shape,
        patches,
    )


def reader_of(storage: Storage, info: FeatureInfo) -> FeatureReader:
    return FeatureReader(Dataset(storage.root), info.weights_sha256, info.preprocessing)


class StopAfter:
    """The encoder of a run that is stopped after some batches."""

    def __init__(self, tower: VisualEncoder, num_batches: int) -> None:
        self.encoder, self.left = encoder_of(tower), num_batches
        self.prepare = self.encoder.prepare

    def encode(self, prepared: Sequence[torch.Tensor]) -> tuple[np.ndarray, np.ndarray | None]:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        return self.encoder.encode(prepared)


class Filled:
    """An encoder whose tokens all have one value."""

    def __init__(self, info: FeatureInfo, value: float) -> None:
        self.info, self.value = info, value

    def prepare(self, image: bytes) -> bytes:
        return image

    def encode(self, prepared: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray | None]:
        shape = (len(prepared), self.info.num_tokens, self.info.width)
        pooled = np.ones((len(prepared), self.info.pooled_width), np.float32)
        return pooled, np.full(shape, self.value, np.float32)


def compute(
    storage: Storage,
    tower: VisualEncoder,
    info: FeatureInfo,
    encoder: Encoder | None = None,
    overwrite: bool = False,
) -> int:
    """Add what is missing; returns how many shards that were."""
    made = encoder or encoder_of(tower, info.patches != "none")
    stage = FeatureStage(info, lambda: made, 3, overwrite=overwrite)
    return extend(stage, storage.root, progress=False)[1]


def exact(tower: VisualEncoder, sample: Sample) -> torch.Tensor:
    images = [segment.image or b"" for segment in sample.images]
    with torch.inference_mode():
        return tower(pixels_of(images, SIDE))


BOUNDS = {"float16": 2**-11, "float32": 0.0, "int8": 1 / 254 + 2**-22}
SUMMED = 1e-5
"""Relative error by the order of sums: the tower saw other batches here."""


@pytest.mark.parametrize("kind", ["float16", "float32", "int8"])
def test_what_is_read_is_what_the_tower_says(storage: Storage, tower: VisualEncoder, kind: Patches):
    info = info_of(tower, kind)
    compute(storage, tower, info)
    reader = reader_of(storage, info)
    for number, sample in enumerate(SAMPLES):
        positions = [n for n, segment in enumerate(sample.segments) if segment.kind == "image"]
        patches = reader.patches(number // 4, sample.key, positions).float()
        pooled = reader.pooled(number // 4, sample.key, positions)
        assert patches.shape == (len(positions), CONFIG.vision.num_tokens, CONFIG.vision.width)
        assert pooled.shape == (len(positions), CONFIG.vision.embed_dim)
        if positions:
            wanted = exact(tower, sample)
            largest = wanted.abs().amax(dim=2, keepdim=True)
            assert ((patches - wanted).abs() <= (BOUNDS[kind] + SUMMED) * largest).all()
            embedded = tower.pool(wanted).detach()
            bound = BOUNDS["float32" if kind == "float32" else "float16"] + SUMMED
            assert ((pooled - embedded).abs() <= bound * embedded.abs().max()).all()


def test_a_stopped_run_resumes_and_the_manifest_comes_last(storage: Storage, tower: VisualEncoder):
    info = info_of(tower)
    with pytest.raises(KeyboardInterrupt):
        compute(storage, tower, info, StopAfter(tower, 3))
    done = [path.name for path in storage.local_path("features").iterdir()]
    assert done == ["mmc4-000000.arrow"]
    with pytest.raises(DatasetError, match="has no features; run emu features"):
        reader_of(storage, info)
    first = storage.local_path(features_path("mmc4-000000")).stat()
    assert compute(storage, tower, info) == 2 and compute(storage, tower, info) == 0
    assert storage.local_path(features_path("mmc4-000000")).stat().st_mtime_ns == first.st_mtime_ns
    assert json.loads(storage.read_bytes(MANIFEST_FILE))["features"] == info.as_dict()
    assert not storage.exists(".work")


def test_two_passes_give_the_same_bytes(storage: Storage, tower: VisualEncoder, tmp_path: Path):
    info = info_of(tower)
    other = Storage(str(write_dataset(tmp_path / "again", SAMPLES, 4)))
    for one in (storage, other):
        compute(one, tower, info)
    for name in ("mmc4-000000", "mmc4-000002"):
        assert storage.read_bytes(features_path(name)) == other.read_bytes(features_path(name))


@pytest.mark.slow
def test_ray_gives_the_same_bytes(
    storage: Storage, tower: VisualEncoder, tmp_path: Path, local_ray: None
):
    info = info_of(tower)
    other = Storage(str(write_dataset(tmp_path / "ray", SAMPLES, 4)))
    compute(storage, tower, info)
    stage = FeatureStage(info, lambda: encoder_of(tower), 3, resources=Resources(num_cpus=0.5))
    _, num_done = extend(stage, other.root, RayRunner(), progress=False)
    assert num_done == 3
    for name in ("mmc4-000000", "mmc4-000001", "mmc4-000002"):
        assert storage.read_bytes(features_path(name)) == other.read_bytes(features_path(name))


def test_features_of_other_weights_are_refused(storage: Storage, tower: VisualEncoder):
    info = info_of(tower)
    compute(storage, tower, info)
    other = weights_hash(start_tower(CONFIG, 1, None))
    with pytest.raises(DatasetError, match="features were made by 'small' with weights"):
        FeatureReader(Dataset(storage.root), other, info.preprocessing)
    with pytest.raises(DatasetError, match="from images prepared by 'emu/1: RGB, bicubic to"):
        FeatureReader(Dataset(storage.root), info.weights_sha256, preprocessing(SIDE + 1))


def test_replacing_features_needs_an_option_and_unnames_the_old_ones_first(
    storage: Storage, tower: VisualEncoder
):
    info = info_of(tower)
    compute(storage, tower, info)
    smaller = info_of(tower, "int8")
    with pytest.raises(FeatureError, match="give --overwrite to replace them"):
        compute(storage, tower, smaller)
    with pytest.raises(KeyboardInterrupt):
        compute(storage, tower, smaller, StopAfter(tower, 0), overwrite=True)
    assert json.loads(storage.read_bytes(MANIFEST_FILE))["features"] is None
    assert compute(storage, tower, smaller) == 3


def test_a_shard_that_changed_is_done_again(storage: Storage, tower: VisualEncoder, tmp_path: Path):
    info = info_of(tower)
    compute(storage, tower, info)
    changed = [*SAMPLES[:4], replace(SAMPLES[4], meta={"new": 1}), *SAMPLES[5:]]
    write_dataset(Path(storage.root), changed, 4)
    before = storage.local_path(features_path("mmc4-000000")).stat().st_mtime_ns
    assert compute(storage, tower, info) == 1
    assert storage.local_path(features_path("mmc4-000000")).stat().st_mtime_ns == before
    reader = reader_of(storage, info)
    assert reader.info == info


def test_values_beyond_float16_are_refused_with_a_way_out(storage: Storage, tower: VisualEncoder):
    info = info_of(tower)
    with pytest.raises(StepError, match=r"stage 'features', shard 'mmc4-000000'.*beyond float16"):
        compute(storage, tower, info, Filled(info, 1e5))
    assert not storage.exists(features_path("mmc4-000000"))
    for kind in ("int8", "float32"):
        compute(storage, tower, info_of(tower, kind), Filled(info, 1e5), overwrite=True)
        (patches,) = reader_of(storage, info_of(tower, kind)).patches(0, SAMPLES[1].key, [1])
        torch.testing.assert_close(patches, torch.full_like(patches, 1e5))


def test_features_that_are_no_numbers_or_of_another_shape_are_refused(
    storage: Storage, tower: VisualEncoder
):
    info = info_of(tower)
    with pytest.raises(StepError, match="NaN or infinity in the batch from 'doc-00001'"):
        compute(storage, tower, info, Filled(info, float("nan")))
    wider = replace(info, width=info.width + 1)
    with pytest.raises(StepError, match=r"returned shapes \[\(3, 64\), \(3, 17, 33\)\], expected"):
        compute(storage, tower, info, Filled(wider, 1.0))


def test_an_unfinished_dataset_is_refused(storage: Storage, tower: VisualEncoder):
    storage.delete(MANIFEST_FILE)
    with pytest.raises(EngineError, match="its build has not finished"):
        compute(storage, tower, info_of(tower))


def test_embeddings_alone(storage: Storage, tower: VisualEncoder):
    info = info_of(tower, "none")
    compute(storage, tower, info)
    reader = reader_of(storage, info)
    wanted = tower.pool(exact(tower, SAMPLES[1])).detach()
    torch.testing.assert_close(reader.pooled(0, SAMPLES[1].key, [1]), wanted, atol=1e-3, rtol=1e-3)
    with pytest.raises(DatasetError, match="no patch tokens; compute them with --patches"):
        reader.patches(0, SAMPLES[1].key, [1])


def at(segment: Segment, time_s: float | None, role: str | None) -> Segment:
    return replace(segment, time_s=time_s, role=role)


CORPORA = {
    "pairs": [pair(number) for number in range(5)],
    "documents": [document(number, number % 4) for number in range(5)],
    "clips": [
        Sample(
            f"clip-{number}",
            "webvid",
            (*(at(image_segment(n), n / 2, None) for n in range(3)), Segment.of_text("a clip")),
        )
        for number in range(5)
    ],
    "dialogues": [
        Sample(
            f"talk-{number}",
            "instruct",
            (
                Segment.of_text("Be brief.", role="system"),
                *((at(image_segment(number), None, "user"),) if number % 2 else ()),
                Segment.of_text("What is it?", role="user"),
                Segment.of_text("A square.", role="assistant"),
            ),
        )
        for number in range(5)
    ],
    "texts": [Sample(f"text-{n}", "alpaca", (Segment.of_text(f"number {n}"),)) for n in range(5)],
}


@pytest.mark.parametrize("corpus", CORPORA)
def test_every_corpus_has_a_row_for_each_image_in_the_order_of_the_index(
    corpus: str, tower: VisualEncoder, tmp_path: Path
):
    samples = CORPORA[corpus]
    storage = Storage(str(write_dataset(tmp_path / corpus, samples, 3)))
    info = info_of(tower)
    assert compute(storage, tower, info) == 2
    dataset = Dataset(storage.root)
    reader = reader_of(storage, info)
    for shard, entry in enumerate(dataset.entries):
        wanted = [
            (sample.key, number)
            for sample in samples[3 * shard : 3 * shard + 3]
            for number, segment in enumerate(sample.segments)
            if segment.kind == "image"
        ]
        table = read_arrow(storage, features_path(entry.name))
        rows = zip(table["key"].to_pylist(), table["segment"].to_pylist(), strict=True)
        assert list(rows) == wanted
        for key, number in wanted:
            assert reader.patches(shard, key, [number]).shape == (1, info.num_tokens, info.width)


def test_an_image_that_does_not_decode_is_named(tower: VisualEncoder, tmp_path: Path):
    broken = Segment.of_image(b"\xff\xd8\xff no image", "jpg", 24, 24)
    samples = [pair(0), replace(pair(1), segments=(pair(1).segments[1], broken))]
    storage = Storage(str(write_dataset(tmp_path / "pairs", samples)))
    with pytest.raises(StepError, match="image 1 of sample 'pair-00001' cannot be decoded: "):
        compute(storage, tower, info_of(tower))


def test_features_of_an_earlier_release_are_named(storage: Storage, tower: VisualEncoder):
    old = {"encoder": "e", "weights_sha256": "0", "num_tokens": 1, "width": 1, "storage": "int8"}
    described = json.loads(storage.read_bytes(MANIFEST_FILE)) | {"features": old}
    storage.commit(MANIFEST_FILE, json.dumps(described).encode())
    info = info_of(tower)
    with pytest.raises(DatasetError, match="features of an earlier release; compute them again"):
        reader_of(storage, info)
    with pytest.raises(FeatureError, match="compute them again with --overwrite"):
        compute(storage, tower, info)
    assert compute(storage, tower, info, overwrite=True) == 3
    assert reader_of(storage, info).info == info


def test_a_reader_refuses_the_file_of_another_tar(storage: Storage, tower: VisualEncoder):
    info = info_of(tower)
    compute(storage, tower, info)
    wrong = storage.read_bytes(features_path("mmc4-000001"))
    storage.commit(features_path("mmc4-000000"), wrong)
    with pytest.raises(DatasetError, match=r"of another encoder .* or of another mmc4-000000\.tar"):
        reader_of(storage, info).patches(0, SAMPLES[1].key, [1])
