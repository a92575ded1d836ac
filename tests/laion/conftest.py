from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.miniworld.config import MiniworldConfig
from pipelines.miniworld.laion import LaionSummary, write_world

Rows = Sequence[Mapping[str, Any]]


@pytest.fixture
def metadata(tmp_path: Path) -> Callable[[Rows], Path]:
    """Writes rows as a file of metadata."""

    def write(rows: Rows) -> Path:
        path = tmp_path / f"part-{len(list(tmp_path.glob('part-*'))):05d}.parquet"
        pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), path)
        return path

    return write


@pytest.fixture(scope="session")
def laion_world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LaionSummary]:
    """A synthetic LAION with every fault, and its counts."""
    folder = tmp_path_factory.mktemp("laion") / "world"
    return folder, write_world(MiniworldConfig(num_documents=75, bad_share=0.5), folder)
