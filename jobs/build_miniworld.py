#!/usr/bin/env python3
"""Writes a synthetic world of shapes as an MMC4 download, with images, ground truth and exact counts.

The demo and the tests run the pipeline on it from end to end: it contains documents to fetch and clean, the faults
that documents have on the web, and the ground truth of every image.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from jobs.cli import COMPLETE, FAILED, interrupted, report_error
from pipelines.miniworld.config import MiniworldConfig
from pipelines.miniworld.mmc4 import MiniworldSummary, write_mmc4
from pipelines.miniworld.server import ImageServer, serve_until_stopped


@dataclass(frozen=True)
class Arguments:
    """Writes a synthetic world of shapes as an MMC4 download.

    OUT/documents/ contains the document shards (.jsonl, .jsonl.zip, .jsonl.gz), OUT/images/ the image files,
    OUT/truth.jsonl the scene, caption and questions of every linked image, and OUT/summary.json the exact counts
    that a correct build finds. The same settings always give the same bytes.

    For example, a world of 200 documents and a server for its images:
        jobs/build_miniworld.py --out world --num-documents 200 --serve

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


def main(arguments: Arguments) -> int:
    """Write the world, print its counts, and serve it if requested; 0, 1 on an error, 130 on Ctrl-C."""
    try:
        summary = write_mmc4(arguments.world, arguments.out)
    except KeyboardInterrupt:
        return interrupted("run the same command again to write it")
    except OSError as error:
        return report_error(error, FAILED)
    print_summary(summary, arguments.out)
    if arguments.serve:
        try:
            server = ImageServer(arguments.out / "images", arguments.port)
        except (OSError, OverflowError) as error:
            print(
                f"error: port {arguments.port}: {error}; give a free port up to 65535, or 0",
                file=sys.stderr,
            )
            return FAILED
        print(f"serving {arguments.out / 'images'} on http://{server.address}, Ctrl-C stops it")
        print(
            f"build with: jobs/build_mmc4.py --documents '{arguments.out}/documents/*' "
            f"--fetch.allow-host {server.allow_host} --out DATASET",
            flush=True,
        )
        serve_until_stopped(server)
    return COMPLETE


def print_summary(summary: MiniworldSummary, out: Path) -> None:
    """Print the counts, one per line."""
    print(f"wrote {out}")
    for name, value in dataclasses.asdict(summary).items():
        if name not in ("config", "version"):
            print(f"  {name:28} {json.dumps(value)}")


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments)))
