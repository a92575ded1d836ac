"""The two clients that are compared, each in its own process, which counts its CPU time."""

import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from pipelines.download.fetcher import FetchConfig, Fetcher
from pipelines.images.normalise import ImageConfig, normalise_image

Work = Callable[[list[str]], int]


@dataclass(frozen=True)
class Cost:
    """What one round took; CPU seconds of the process and its children, start-up and imports excluded."""

    num_images: int
    cpu_s: float
    wall_s: float


@contextmanager
def client(engine: str, side: int, allow_host: tuple[str, ...]) -> Iterator[Callable[..., Cost]]:
    """A function from URLs to the cost of fetching and normalising them, by `ours` or `img2dataset`."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=_run, args=(engine, side, allow_host, theirs), daemon=True
    )
    process.start()

    def measure(urls: list[str]) -> Cost:
        ours.send(urls)
        return ours.recv()

    try:
        yield measure
    finally:
        ours.send(None)
        process.join(timeout=30)


def cpu_s() -> float:
    """CPU seconds of this process and of its finished children, user and system."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _run(engine: str, side: int, allow_host: tuple[str, ...], pipe: Connection) -> None:
    make = {"ours": _ours, "img2dataset": _img2dataset}[engine]
    with (
        tempfile.TemporaryDirectory() as folder,
        make(side, allow_host, Path(folder)) as work,
    ):
        while urls := pipe.recv():
            started_s, started_cpu_s = time.perf_counter(), cpu_s()
            num_images = work(urls)
            pipe.send(Cost(num_images, cpu_s() - started_cpu_s, time.perf_counter() - started_s))


@contextmanager
def _ours(side: int, allow_host: tuple[str, ...], folder: Path) -> Iterator[Work]:
    config = ImageConfig(side=side)

    def work(urls: list[str]) -> int:
        fetched = fetcher.fetch_many(urls, lambda _, body: normalise_image(body, config))
        return sum(one.reason is None for one in fetched)

    with Fetcher(FetchConfig(allow_host=allow_host, per_host=64)) as fetcher:
        yield work


@contextmanager
def _img2dataset(side: int, allow_host: tuple[str, ...], folder: Path) -> Iterator[Work]:
    """Its own Downloader and Resizer with 64 threads; nothing written, nothing hashed, no retries."""
    import pyarrow as pa
    from img2dataset.downloader import Downloader
    from img2dataset.resizer import Resizer
    from img2dataset.writer import DummySampleWriter

    resizer = Resizer(side, "keep_ratio", True, encode_quality=95)
    downloader = Downloader(
        sample_writer_class=DummySampleWriter,
        resizer=resizer,
        thread_count=64,
        save_caption=False,
        extract_exif=False,
        output_folder=str(folder),
        column_list=["url"],
        timeout=30,
        number_sample_per_shard=100_000,
        oom_shard_count=5,
        compute_hash=None,
        verify_hash_type=None,
        encode_format="jpg",
        retries=0,
        user_agent_token=None,
        disallowed_header_directives=None,
    )

    def work(urls: list[str]) -> int:
        table = pa.table({"url": urls})
        path = folder / "links.arrow"
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        downloader((0, str(path)))
        return json.loads((folder / "00000_stats.json").read_text())["successes"]

    yield work
