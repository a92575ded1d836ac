#!/usr/bin/env python3
"""Writes a synthetic world of shapes as an MMC4 download, with images, ground truth and exact counts.

The demo and the tests run the pipeline on it from end to end: it contains documents to fetch and clean, the faults
that documents have on the web, and the ground truth of every image.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from jobs.cli import JobError, checked_options, run_job
from jobs.paths import check_port
from pipelines.miniworld.config import MiniworldConfig

if TYPE_CHECKING:
    from pipelines.miniworld.mmc4 import MiniworldSummary


@dataclass(frozen=True)
class BuildMiniworld:
    """Writes a synthetic world of shapes as an MMC4 download.

    OUT/documents/ contains the document shards (.jsonl, .jsonl.zip, .jsonl.gz), OUT/images/ the image files,
    OUT/truth.jsonl the scene, caption and questions of every linked image, and OUT/summary.json the exact counts
    that a correct build finds. The same settings always give the same bytes.

    For example, a world of 200 documents and a server for its images:
        emu build miniworld --out world --num-documents 200 --serve

    The links name the host images.miniworld.example, which does not exist: serve OUT/images with --serve, and
    give the build the option --fetch.allow-host that is then printed.
    """

    out: Path
    """Folder to write: new, empty, or with the world of the same settings."""
    world: Annotated[MiniworldConfig, tyro.conf.OmitArgPrefixes] = field(
        default_factory=MiniworldConfig
    )
    serve: bool = False
    """Then serve the images on 127.0.0.1 until interrupted."""
    port: int = 8377
    """Port of --serve; 0 selects a free port."""


def build_miniworld(options: BuildMiniworld) -> None:
    """Write the world, print its counts, and serve it if requested."""
    from pipelines.miniworld.mmc4 import write_mmc4

    if options.serve:
        with checked_options():
            check_port("127.0.0.1", options.port)
    print_summary(write_mmc4(options.world, options.out), options.out)
    if options.serve:
        serve_images(options)


def serve_images(options: BuildMiniworld) -> None:
    """Serve the images of the world until a signal."""
    from pipelines.miniworld.server import ImageServer, serve_until_stopped

    try:
        server = ImageServer(options.out / "images", options.port)
    except (OSError, OverflowError) as error:
        raise JobError(
            f"port {options.port}: {error}; give a free port up to 65535, or 0"
        ) from error
    print(f"serving {options.out / 'images'} on http://{server.address}, Ctrl-C stops it")
    print(
        f"build with: emu build mmc4 --documents '{options.out}/documents/*' "
        f"--fetch.allow-host {server.allow_host} --out DATASET",
        flush=True,
    )
    serve_until_stopped(server)


def print_summary(summary: MiniworldSummary, out: Path) -> None:
    """Print the counts, one per line."""
    print(f"wrote {out}")
    for name, value in dataclasses.asdict(summary).items():
        if name not in ("config", "version"):
            print(f"  {name:28} {json.dumps(value)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code (see `jobs.cli`)."""
    return run_job(
        BuildMiniworld, build_miniworld, arguments, hint="run the same command again to write it"
    )


if __name__ == "__main__":
    sys.exit(main())
