#!/usr/bin/env python3
"""Writes a synthetic world of shapes in the form of a corpus, with images, ground truth and exact counts.

The demo and the tests run the pipelines on it from end to end: it contains records to fetch and clean, the faults
that they have on the web, and the ground truth of every image.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from jobs.cli import JobError, OptionError, checked_options, in_words, run_job
from jobs.paths import check_port
from jobs.progress import say
from pipelines.miniworld import WORLDS
from pipelines.miniworld.config import MiniworldConfig


@dataclass(frozen=True)
class BuildMiniworld:
    """Writes a synthetic world of shapes in the file format of a corpus.

    OUT contains the files that the corpus distributes (documents/ for mmc4), images/ with the image files,
    truth.jsonl with the scene, caption and questions of every linked image, and summary.json with the exact counts
    that a correct build finds. The same settings always give the same bytes.

    For example, a world of 200 documents and a server for its images:
        emu build miniworld --out world --num-documents 200 --serve

    The links point to the host images.miniworld.example, which does not exist. Serve OUT/images with --serve and
    pass the printed --fetch.allow-host option to the build.
    """

    out: Path
    """Folder to write. It must be new, empty, or hold a world with the same settings."""
    corpus: str = "mmc4"
    """Corpus whose file format the world is written in: mmc4, laion, obelics, webvid, yt_storyboard or instruct."""
    world: Annotated[MiniworldConfig, tyro.conf.OmitArgPrefixes] = field(
        default_factory=MiniworldConfig
    )
    serve: bool = False
    """Serve the images on 127.0.0.1 afterwards, until interrupted with Ctrl-C."""
    port: int = 8377
    """Port for --serve. 0: choose a free port."""

    def __post_init__(self) -> None:
        if self.corpus not in WORLDS:
            raise ValueError(f"corpus is {self.corpus!r}, give one of {', '.join(WORLDS)}")


def build_miniworld(options: BuildMiniworld) -> None:
    """Write the world, print its counts, and serve it if requested."""
    form = importlib.import_module(WORLDS[options.corpus])
    if options.serve:
        with checked_options():
            check_port("127.0.0.1", options.port)
    try:
        summary = form.write_world(options.world, options.out)
    except (FileExistsError, NotADirectoryError) as error:
        raise OptionError(in_words(error)) from error
    print_summary(summary, options.out)
    if options.serve:
        serve_images(options, form.BUILD.format(out=options.out))


def serve_images(options: BuildMiniworld, build: str) -> None:
    """Serve the images of the world until a signal."""
    from pipelines.miniworld.server import ImageServer, serve_until_stopped

    try:
        server = ImageServer(options.out / "images", options.port)
    except (OSError, OverflowError) as error:
        raise JobError(
            f"port {options.port}: {error}; give a free port up to 65535, or 0"
        ) from error
    print(f"serving {options.out / 'images'} on http://{server.address}, Ctrl-C stops it")
    print(f"build with: {build} --fetch.allow-host {server.allow_host} --out DATASET", flush=True)
    say("")  # it serves, which is silent
    serve_until_stopped(server)


def print_summary(summary: Any, out: Path) -> None:
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
