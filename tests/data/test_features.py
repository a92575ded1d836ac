import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from emu.config import tiny_config
from emu.data.dataset import Dataset, DatasetError
from emu.data.features import FeatureReader
from emu.models.visual import VisualEncoder, pixels_of
from emu.train.start import start_tower
from emu.weights.store import weights_hash
from pipelines.core.pipeline import EngineError, Resources, StepError
from pipelines.core.run import extend
from pipelines.core.run_ray import RayRunner
from pipelines.core.storage import Storage
from pipelines.transforms.features import Encode, FeatureError, FeatureStage, features_path
from schemas.features import FeatureInfo
from schemas.features import Storage as Kind
from schemas.manifest import MANIFEST_FILE
from schemas.sample import Sample
from tests.data.small_dataset import document, write_dataset

CONFIG = replace(
    tiny_config(300), vision=replace(tiny_config(300).vision, width=32, layers=1, mlp_hidden=48)
)
SAMPLES = [document(number, number % 4) for number in range(11)]


class TowerOnCpu:
    """The encoder as the job hands it over."""

    def __init__(self, tower: VisualEncoder) -> None:
        self.tower = tower

    def __call__(self, images: list[bytes]) -> np.ndarray:
        with torch.inference_mode():
            return self.tower(pixels_of(images, CONFIG.vision.image_size)).numpy()


@pytest.fixture(scope="module")
def tower() -> VisualEncoder:
    return start_tower(CONFIG, 0, None)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(write_dataset(tmp_path / "docs", SAMPLES, 4)))


def info_of(tower: VisualEncoder, storage: Kind = "float16") -> FeatureInfo:
    vision = CONFIG.vision
    return FeatureInfo("small", weights_hash(tower), vision.num_tokens, vision.width, storage)


class StopAfter:
    """The encoder of a run that is stopped after some batches."""

    def __init__(self, tower: VisualEncoder, num_batches: int) -> None:
        self.encode, self.left = TowerOnCpu(tower), num_batches

    def __call__(self, images: list[bytes]) -> np.ndarray:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        return self.encode(images)


def compute(
    storage: Storage,
    tower: VisualEncoder,
    info: FeatureInfo,
    encode: Encode | None = None,
    overwrite: bool = False,
) -> int:
    """Add what is missing; returns how many shards that were."""
    stage = FeatureStage(info, lambda: encode or TowerOnCpu(tower), 3, overwrite)
    return extend(stage, storage.root, progress=False)[1]


def exact(tower: VisualEncoder, sample: Sample) -> torch.Tensor:
    images = [segment.image or b"" for segment in sample.images]
    return torch.from_numpy(TowerOnCpu(tower)(images))


@pytest.mark.parametrize("kind", ["float16", "int8"])
def test_what_is_read_is_what_the_tower_says(storage: Storage, tower: VisualEncoder, kind: Kind):
    info = info_of(tower, kind)
    compute(storage, tower, info)
    reader = FeatureReader(Dataset(storage.root), info.weights_sha256)
    for number, sample in enumerate(SAMPLES):
        positions = [n for n, segment in enumerate(sample.segments) if segment.kind == "image"]
        patches = reader.patches(number // 4, sample.key, positions).float()
        assert patches.shape == (len(positions), CONFIG.vision.num_tokens, CONFIG.vision.width)
        if positions:
            wanted = exact(tower, sample)
            bound = 1e-3 if kind == "float16" else 0.51 / 127
            largest = wanted.abs().amax(dim=2, keepdim=True)
            assert ((patches - wanted).abs() <= bound * largest + 1e-6).all()


def test_a_stopped_run_resumes_and_the_manifest_comes_last(storage: Storage, tower: VisualEncoder):
    info = info_of(tower)
    with pytest.raises(KeyboardInterrupt):
        compute(storage, tower, info, StopAfter(tower, 3))
    done = [path.name for path in storage.local_path("features").iterdir()]
    assert done == ["mmc4-000000.arrow"]
    with pytest.raises(DatasetError, match="has no features; run jobs/precompute_features"):
        FeatureReader(Dataset(storage.root), info.weights_sha256)
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


def test_ray_gives_the_same_bytes(
    storage: Storage, tower: VisualEncoder, tmp_path: Path, local_ray: None
):
    info = info_of(tower)
    other = Storage(str(write_dataset(tmp_path / "ray", SAMPLES, 4)))
    compute(storage, tower, info)
    stage = FeatureStage(info, lambda: TowerOnCpu(tower), 3, resources=Resources(num_cpus=0.5))
    _, num_done = extend(stage, other.root, RayRunner(), progress=False)
    assert num_done == 3
    for name in ("mmc4-000000", "mmc4-000001", "mmc4-000002"):
        assert storage.read_bytes(features_path(name)) == other.read_bytes(features_path(name))


def test_features_of_other_weights_are_refused(storage: Storage, tower: VisualEncoder):
    info = info_of(tower)
    compute(storage, tower, info)
    other = weights_hash(start_tower(CONFIG, 1, None))
    with pytest.raises(DatasetError, match="features were made by 'small' with weights"):
        FeatureReader(Dataset(storage.root), other)


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
    reader = FeatureReader(Dataset(storage.root), info.weights_sha256)
    assert reader.info == info


def test_values_beyond_float16_are_refused_with_a_way_out(storage: Storage, tower: VisualEncoder):
    info = info_of(tower)
    shape = (1, info.num_tokens, info.width)

    def huge(images: list[bytes]) -> np.ndarray:
        return np.full((len(images), *shape[1:]), 1e5, np.float32)

    with pytest.raises(StepError, match=r"stage 'features', shard 'mmc4-000000'.*beyond float16"):
        compute(storage, tower, info, huge)
    assert not storage.exists(features_path("mmc4-000000"))


def test_an_unfinished_dataset_is_refused(storage: Storage, tower: VisualEncoder):
    storage.delete(MANIFEST_FILE)
    with pytest.raises(EngineError, match="its build has not finished"):
        compute(storage, tower, info_of(tower))
