#!/usr/bin/env python3
"""Draws a small world of shapes and writes it as an MMC4 download, with pictures, truth and counts.

The world is what the demo and the tests run the whole road on: documents to fetch and clean, among them
the troubles that the web has, and beside them exactly what is true of every picture.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from jobs.cli import COMPLETE, FAILED, complain, stopped
from pipelines.miniworld.config import MiniworldConfig
from pipelines.miniworld.mmc4 import MiniworldSummary, write_mmc4
from pipelines.miniworld.server import ImageServer, serve_until_stopped


@dataclass(frozen=True)
class Arguments:
    """Draws a small world of shapes and writes it as an MMC4 download.

    OUT/documents/ holds the document shards (.jsonl, .jsonl.zip, .jsonl.gz), OUT/images/ the picture
    files, OUT/truth.jsonl scene, caption and questions of every linked picture, OUT/summary.json the
    exact counts that a build has to arrive at. The same settings always give the same bytes.

    A first try, a world of 200 documents and a server for its pictures:
        jobs/build_miniworld.py --out world --num-documents 200 --serve

    The links name the host images.miniworld.example, which exists nowhere: serve OUT/images by means of
    the option --serve, and give the build the --fetch.allow-host that is then printed.
    """

    out: Path
    """Folder to write; new, empty, or already holding this very world."""
    world: Annotated[MiniworldConfig, tyro.conf.OmitArgPrefixes] = field(
        default_factory=MiniworldConfig
    )
    serve: bool = False
    """Serve the pictures on 127.0.0.1 afterwards, until interrupted."""
    port: int = 8377
    """Port of --serve; 0 takes a free one."""


def main(arguments: Arguments) -> int:
    """Writes the world, prints its counts, and serves it if asked to; 0, 1 on an error, 130 on Ctrl-C."""
    try:
        summary = write_mmc4(arguments.world, arguments.out)
    except KeyboardInterrupt:
        return stopped("the same command draws it anew")
    except OSError as error:
        return complain(error, FAILED)
    print_summary(summary, arguments.out)
    if arguments.serve:
        try:
            server = ImageServer(arguments.out / "images", arguments.port)
        except (OSError, OverflowError) as error:
            print(
                f"error: port {arguments.port}: {error}; give a free one up to 65535, or 0",
                file=sys.stderr,
            )
            return FAILED
        print(f"serving {arguments.out / 'images'} on http://{server.address}, Ctrl-C ends it")
        print(
            f"build with: jobs/build_mmc4.py --documents '{arguments.out}/documents/*' "
            f"--fetch.allow-host {server.allow_host} --out DATASET",
            flush=True,
        )
        serve_until_stopped(server)
    return COMPLETE


def print_summary(summary: MiniworldSummary, out: Path) -> None:
    """Prints the counts, a line each."""
    print(f"wrote {out}")
    for name, value in dataclasses.asdict(summary).items():
        if name not in ("config", "version"):
            print(f"  {name:28} {json.dumps(value)}")


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments)))
