"""What features cost on disk, what int8 and float16 lose, and how little of a file a row needs."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pipelines.transforms.features import ImageRef, feature_rows, quantised
from schemas.features import FeatureInfo, Patches, features_schema
from schemas.manifest import MANIFEST_FILE, manifest_from_json
from tests.data.small_dataset import pair, write_dataset

INFO = FeatureInfo("eva", "ab" * 32, "as it is", "float32", 1024, 257, 1408, "float16")
ANY_TOKENS = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 9)),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
)


@given(ANY_TOKENS)
def test_int8_is_off_by_at_most_the_stated_bound(tokens: np.ndarray) -> None:
    stored, scales = quantised(tokens)
    assert stored.dtype == np.int8 and scales.dtype == np.float32
    read = (stored.astype(np.float32) * scales[:, :, None]).astype(np.float64)
    largest = np.abs(tokens).max(axis=2, keepdims=True).astype(np.float64)
    bound = largest / 254 + 2.0**-22 * largest
    is_zero = largest < 1.5e-36
    assert (np.abs(read - tokens) <= np.where(is_zero, 1.5e-36, bound)).all()
    assert not read[np.broadcast_to(is_zero, read.shape) & (largest < 1e-36)].any()


@given(
    arrays.arrays(np.float32, (2, 3, 4), elements=st.floats(-65504, 65504, width=32)),
)
def test_float16_is_off_by_at_most_the_stated_bound(tokens: np.ndarray) -> None:
    info = replace(INFO, pooled_width=2, num_tokens=3, width=4)
    rows = written(info, tokens, np.zeros((2, 2), np.float32))
    read = np.array(rows["tokens"].to_pylist(), np.float64).reshape(tokens.shape)
    assert (np.abs(read - tokens) <= 2.0**-11 * np.abs(tokens) + 2.0**-25).all()


def written(info: FeatureInfo, tokens: np.ndarray, pooled: np.ndarray) -> pa.RecordBatch:
    images = [ImageRef(f"doc-{number:05d}", 0, b"") for number in range(len(tokens))]
    return feature_rows(images, pooled, tokens, info, features_schema(info, "0" * 64))


@pytest.mark.parametrize("patches", ["none", "float16", "float32", "int8"])
def test_the_estimate_of_an_image_is_what_it_takes(patches: Patches, tmp_path: Path) -> None:
    shape = (0, 0) if patches == "none" else (17, 128)
    info = replace(INFO, num_tokens=shape[0], width=shape[1], patches=patches)
    tokens, pooled = np.ones((32, 17, 128), np.float32), np.ones((32, 1024), np.float32)
    schema = features_schema(info, "0" * 64)
    with (
        pa.OSFile(str(tmp_path / "f.arrow"), "wb") as file,
        pa.ipc.new_file(file, schema) as writer,
    ):
        for _ in range(32):
            writer.write_batch(written(info, tokens, pooled))
    num_bytes = (tmp_path / "f.arrow").stat().st_size
    assert num_bytes == pytest.approx(1024 * info.row_bytes, rel=0.02)


class Sparse:
    """A file that leaves holes where blocks of zeros are written: gigabytes that take little disk."""

    closed = False
    block = 1 << 15

    def __init__(self, path: Path) -> None:
        self.file = path.open("wb")

    def write(self, data: pa.Buffer) -> int:
        values = np.frombuffer(data, np.uint8)
        for start in range(0, len(values), self.block):
            part = values[start : start + self.block]
            if len(part) == self.block and not part.view(np.uint64).any():
                self.file.seek(len(part), 1)
            else:
                self.file.write(part.tobytes())
        return len(values)

    def close(self) -> None:
        self.file.truncate()
        self.file.close()


def batch_of(first: int, tokens: np.ndarray, schema: pa.Schema) -> pa.RecordBatch:
    """Rows of pairs from `first` on, each with its number as its first value."""
    numbers = range(first, first + len(tokens))
    tokens[:, 0] = numbers
    values = pa.array(tokens.reshape(-1))
    columns = [
        pa.array([f"pair-{number:05d}" for number in numbers]),
        pa.array([0] * len(tokens), pa.int32()),
        pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(len(tokens) * 1024, np.float16)), 1024),
        pa.FixedSizeListArray.from_arrays(values, tokens.shape[1]),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def large_dataset(root: Path, num_batches: int) -> Path:
    """A dataset whose one shard has features of 64 images of the paper's sizes per batch, 46 MB, mostly holes."""
    data = write_dataset(root, [pair(0)])
    manifest = manifest_from_json((data / MANIFEST_FILE).read_text())
    (data / "features").mkdir()
    file = Sparse(data / "features" / "pairs-000000.arrow")
    schema = features_schema(INFO, manifest.shards[0].sha256)
    tokens = np.zeros((64, 257 * 1408), np.float16)
    with pa.ipc.new_file(pa.PythonFile(file, "w"), schema) as writer:
        for first in range(0, 64 * num_batches, 64):
            writer.write_batch(batch_of(first, tokens, schema))
    file.close()
    (data / MANIFEST_FILE).write_text(replace(manifest, features=INFO.as_dict()).to_json())
    return data


READ_ROWS = """
import sys
from emu.data.dataset import Dataset
from emu.data.features import FeatureReader

def resident_bytes():
    lines = open("/proc/self/status").read().splitlines()
    kilobytes = [int(l.split()[1]) for l in lines if l.startswith(("RssFile", "RssAnon"))]
    return 1024 * sum(kilobytes)

def read(address, number):
    patches = FeatureReader(Dataset(address), "ab" * 32, "as it is").patches(0, f"pair-{number:05d}", [0])
    assert patches.shape == (1, 257, 1408) and patches[0, 0, 0] == number

small, large = sys.argv[1:]
read(small, 3)  # what is imported with the first file
before = resident_bytes()
for number in (0, 777, 900, 1000, 1023):
    read(large, number)
print(resident_bytes() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_row_is_read_without_the_file(tmp_path: Path, repository: Path) -> None:
    """Of a shard of 0.7 GB five rows of 0.7 MB are read, each by a reader of its own."""
    small, large = large_dataset(tmp_path / "small", 1), large_dataset(tmp_path / "large", 16)
    size = (large / "features" / "pairs-000000.arrow").stat().st_size
    assert size > 0.7e9
    done = subprocess.run(
        [sys.executable, "-c", READ_ROWS, str(small), str(large)],
        capture_output=True,
        text=True,
        cwd=repository,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < size / 25
