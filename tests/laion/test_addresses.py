"""Metadata at addresses: a store that speaks S3, and a server that speaks the protocol of the Hugging Face Hub."""

import io
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.build_laion import main
from pipelines.miniworld.laion import LaionSummary
from schemas.manifest import manifest_from_json

FILE = "part-00000.parquet"


def rows(num_rows: int) -> bytes:
    buffer = io.BytesIO()
    table = {
        "URL": [f"http://a.example/{n}.jpg" for n in range(num_rows)],
        "TEXT": ["a"] * num_rows,
    }
    pq.write_table(pa.table(table), buffer, row_group_size=10)
    return buffer.getvalue()


class Hub(BaseHTTPRequestHandler):
    """One dataset, `owner/coco`, with one file."""

    data = rows(50)
    asked: list[str]

    def do_GET(self) -> None:
        type(self).asked.append(self.path)
        entry = {"type": "file", "path": FILE, "size": len(self.data), "oid": "a" * 40}
        if "/tree/" in self.path:
            self.send(json.dumps([entry]).encode())
        elif self.path == "/api/datasets/owner/coco":
            self.send(json.dumps({"id": "owner/coco", "sha": "b" * 40, "siblings": []}).encode())
        elif self.path.endswith(f"/resolve/main/{FILE}"):
            first, last = map(int, re.findall(r"\d+", self.headers["Range"]))
            self.send(self.data[first : last + 1], 206)
        else:
            self.send(b"{}", 404)

    def send(self, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    Hub.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_metadata_on_the_hub(hub: str, repository: Path, tmp_path: Path) -> None:
    words = ["--metadata", "hf://datasets/owner/coco/*.parquet", "--out", f"{tmp_path}/out"]
    ran = subprocess.run(  # the Hub's client reads its environment when it is imported
        [sys.executable, "-m", "jobs", "build", "laion", *words, "--runner", "local", "--dry-run"],
        env=os.environ | {"HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0", "PYTHONPATH": str(repository)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    manifest = manifest_from_json((tmp_path / "out.dry_run/manifest.json").read_text())
    assert manifest.links.dropped == {"not_fetched": 50}
    assert any(path.endswith(FILE) for path in Hub.asked)


def test_a_hub_out_of_reach_is_an_error_in_words(repository: Path, tmp_path: Path) -> None:
    words = ["--metadata", "hf://datasets/owner/coco/*.parquet", "--out", f"{tmp_path}/out"]
    ran = subprocess.run(
        [sys.executable, "-m", "jobs", "build", "laion", *words, "--runner", "local"],
        env=os.environ
        | {
            "HF_ENDPOINT": "http://127.0.0.1:9",
            "HF_HUB_OFFLINE": "0",
            "PYTHONPATH": str(repository),
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 2
    assert "'hf://datasets/owner/coco/*.parquet': cannot be looked up: " in ran.stderr
    assert "Traceback" not in ran.stderr


def test_metadata_and_dataset_in_a_store_that_speaks_s3(
    laion_world: tuple[Path, LaionSummary], s3_bucket: str
) -> None:
    folder, summary = laion_world
    for path in (folder / "metadata").iterdir():
        with fsspec.open(f"{s3_bucket}/in/{path.name}", "wb") as file:
            file.write(path.read_bytes())  # type: ignore[union-attr]
    words = ["--metadata", f"{s3_bucket}/in/*.parquet", "--out", f"{s3_bucket}/out"]
    assert main([*words, "--runner", "local", "--dry-run", "--samples-per-shard", "50"]) == 0
    with fsspec.open(f"{s3_bucket}/out.dry_run/manifest.json", "r") as file:
        manifest = manifest_from_json(file.read())  # type: ignore[union-attr]
    assert manifest.links.dropped == {"not_fetched": summary.num_links}
