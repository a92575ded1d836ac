"""MinHash signatures of texts on disk: written once, read band by band, and by number for pairs that agree in a band.

| file      | of each signature                       | read                                              |
|-----------|-----------------------------------------|---------------------------------------------------|
| `whole`   | its 128 values, 512 bytes               | by number, once for each pair that is compared    |
| `band-NN` | the value of one of the bands, 8 bytes  | once, in order                                    |
| `rows`    | the row of the dataset, 8 bytes         | with each band                                    |

Bands have files of their own, since reading all signatures for each of 16 bands would be 8 kB per text.
"""

import mmap
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipelines.dedup.candidates import NUM_BANDS, NUM_PERMUTATIONS, band_values, mixed

_COMPARED = 50_000  # pairs at a time: 50 MB of signatures


class TextSignatures:
    """Signatures with their rows; the number of a signature is its position.

    Args:
        folder: of the files; made.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._whole = (folder / "whole").open("wb")
        self._rows = (folder / "rows").open("wb")
        self._bands = [(folder / f"band-{n:02d}").open("wb") for n in range(NUM_BANDS)]
        self.count = 0

    def append(self, signatures: pa.Array, rows: np.ndarray) -> np.ndarray:
        """Add signatures, 512 bytes each and none null, and return a 64-bit hash of each."""
        matrix = as_matrix(signatures)
        self._whole.write(matrix.tobytes())
        self._rows.write(rows.astype("<i8").tobytes())
        bands = band_values(matrix)
        for file, values in zip(self._bands, bands.T, strict=True):
            file.write(values.astype("<u8").tobytes())
        self.count += len(matrix)
        return mixed(bands)

    def close(self) -> None:
        """End writing."""
        for file in (self._whole, self._rows, *self._bands):
            file.close()

    def band(self, band: int, first: int, count: int) -> np.ndarray:
        """The values of a band, as uint64, of up to `count` signatures from number `first` on."""
        return np.fromfile(self._folder / f"band-{band:02d}", "<u8", count, offset=first * 8)

    def rows(self, first: int, count: int) -> np.ndarray:
        """The rows of up to `count` signatures from number `first` on."""
        return np.fromfile(self._folder / "rows", "<i8", count, offset=first * 8)

    def rows_of(self, numbers: np.ndarray) -> np.ndarray:
        """The rows of signatures by their numbers."""
        return np.memmap(self._folder / "rows", "<i8", "r")[numbers]

    def similarity(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """The share of values that agree in each pair of signatures, given by their numbers."""
        found = np.empty(len(one))
        for start in range(0, len(one), _COMPARED):
            part = slice(start, start + _COMPARED)
            found[part] = self._agreement(one[part], other[part])
        return found

    def _agreement(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Mapped anew each time, so that no more of the file stays in memory."""
        with (
            (self._folder / "whole").open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        ):
            # Reading ahead of single rows would read the file many times over.
            mapped.madvise(mmap.MADV_RANDOM)
            matrix = np.frombuffer(mapped, "<u4").reshape(-1, NUM_PERMUTATIONS)
            agree = (matrix[one] == matrix[other]).mean(axis=1)
            del matrix  # a map with views cannot be closed
        return agree


def as_matrix(signatures: pa.Array) -> np.ndarray:
    """MinHash signatures `[N, 128]` from a column of 512 bytes each, none of them null."""
    values = signatures.buffers()[1]
    if not len(signatures):
        return np.zeros((0, NUM_PERMUTATIONS), "<u4")
    count, start = len(signatures) * NUM_PERMUTATIONS, signatures.offset * 4 * NUM_PERMUTATIONS
    return np.frombuffer(values, "<u4", count, start).reshape(-1, NUM_PERMUTATIONS)
