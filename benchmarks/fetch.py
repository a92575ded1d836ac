"""Fetching and decoding against img2dataset: images per CPU-second of the client, as JSON lines.
    SUBJECTS: https, http (fetch + decode + resize + encode), decode (photos of 1 megapixel and more)

Both engines get the same photos from the same server (a separate process, not counted) and make the same
output size at JPEG quality 95; rounds are interleaved. Over https both trust the same file of authorities,
SSL_CERT_FILE: those of certifi, with that of the test.
"""

import io
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import certifi
import trustme
import tyro

from benchmarks.clients import Cost, client
from benchmarks.image_server import image_server
from benchmarks.photos import synthetic_photo
from pipelines.images.normalise import ImageConfig, normalise_image

_TARGETS = {"https": 5.0, "http": 1.2, "decode": 2.0}
_ENGINES = ("ours", "img2dataset")
_LIBRARIES = ("img2dataset", "aiohttp", "simplejpeg", "opencv-python-headless", "pillow")


@dataclass(frozen=True)
class Options:
    """What is measured, and how often."""

    photos: Path | None = None
    """Folder of JPEGs to serve; without it, photos of 0.3 megapixels are generated."""
    num_photos: int = 320
    """Links of one round."""
    rounds: int = 3
    """Interleaved rounds of each subject, after one that is not counted."""
    side: int = 256
    """Pixels of the shorter side of the output."""
    fresh_connections: bool = False
    """The server closes after each response, as if every link had its own host."""
    bare_trust: bool = False
    """Trust the authority of the test alone: spares img2dataset the reading of 140 others for each request."""
    subjects: tuple[str, ...] = ("https", "http", "decode")
    """Which of https, http and decode."""


def main(options: Options) -> None:
    """Prints one line per round and a summary per subject."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    _print(
        machine=_processor(),
        python=platform.python_version(),
        versions={name: version(name) for name in _LIBRARIES},
        options={**asdict(options), "photos": options.photos.name if options.photos else "drawn"},
    )
    for subject in options.subjects:
        rounds = _decode_rounds(options) if subject == "decode" else _rounds(options, subject)
        _summarise(subject, list(rounds))


def _rounds(options: Options, scheme: str) -> Iterator[tuple[str, Cost]]:
    photos = _photos(options)
    with tempfile.TemporaryDirectory() as folder:
        certificate = _certificate(Path(folder), options.bare_trust)
        with image_server(photos, certificate, options.fresh_connections) as ports:
            allow = (f"127.0.0.1=127.0.0.1:{ports[scheme]}",)
            urls = [f"{scheme}://127.0.0.1:{ports[scheme]}/{n}.jpg" for n in range(len(photos))]
            with (
                client("ours", options.side, allow) as ours,
                client("img2dataset", options.side, allow) as theirs,
            ):
                for number in range(-1, options.rounds):
                    for engine, measure in (("ours", ours), ("img2dataset", theirs)):
                        cost = measure(urls if number >= 0 else urls[:16])
                        if number >= 0:
                            yield engine, _told(scheme, engine, number, cost)


def _decode_rounds(options: Options) -> Iterator[tuple[str, Cost]]:
    """The photos of 1 to 12 megapixels one after another, in this process."""
    from img2dataset.resizer import Resizer

    sizes = [(1155, 866), (1366, 768), (1600, 1200), (2048, 1365), (3000, 2000), (4000, 3000)]
    photos = [synthetic_photo(*size, seed) for seed in range(4) for size in sizes]
    config = ImageConfig(side=options.side)
    resizer = Resizer(options.side, "keep_ratio", True, encode_quality=config.quality)
    run: dict[str, Callable[[bytes], object]] = {
        "ours": lambda photo: normalise_image(photo, config),
        "img2dataset": lambda photo: resizer(io.BytesIO(photo)),
    }
    for size in sizes:
        chosen = [synthetic_photo(*size, seed) for seed in range(4)]
        pixels = round(size[0] * size[1] / 1e6, 1)
        costs = {engine: _decode_cost(chosen, run[engine]) for engine in _ENGINES}
        ratio = costs["img2dataset"].cpu_s / costs["ours"].cpu_s
        _print(subject="decode", megapixels=pixels, ratio=round(ratio, 2))
    for number in range(-1, options.rounds):
        for engine in _ENGINES:
            cost = _decode_cost(photos, run[engine])
            if number >= 0:
                yield engine, _told("decode", engine, number, cost)


def _decode_cost(photos: list[bytes], run: Callable[[bytes], object]) -> Cost:
    started_s, started_cpu_s = time.perf_counter(), time.process_time()
    for photo in photos:
        run(photo)
    return Cost(len(photos), time.process_time() - started_cpu_s, time.perf_counter() - started_s)


def _told(subject: str, engine: str, number: int, cost: Cost) -> Cost:
    rate = round(cost.num_images / cost.cpu_s, 1)
    _print(subject=subject, engine=engine, round=number, images_per_cpu_s=rate, **asdict(cost))
    return cost


def _summarise(subject: str, rounds: list[tuple[str, Cost]]) -> None:
    rates = {
        engine: statistics.median(
            cost.num_images / cost.cpu_s for name, cost in rounds if name == engine
        )
        for engine in _ENGINES
    }
    ratio = rates["ours"] / rates["img2dataset"]
    _print(
        subject=subject,
        images_per_cpu_s={engine: round(rate, 1) for engine, rate in rates.items()},
        ratio=round(ratio, 2),
        target=_TARGETS[subject],
        is_met=ratio >= _TARGETS[subject],
    )


def _photos(options: Options) -> list[bytes]:
    if options.photos is None:
        return [synthetic_photo(640, 480, seed) for seed in range(options.num_photos)]
    paths = sorted(options.photos.glob("*.jpg"))[: options.num_photos]
    if not paths:
        raise ValueError(f"photos {str(options.photos)!r} holds no .jpg: name a folder of JPEGs")
    return [path.read_bytes() for path in paths]


def _certificate(folder: Path, is_bare: bool) -> Path:
    """A server certificate; its authority is added to what both clients trust."""
    authority = trustme.CA()
    trusted = folder / "trusted.pem"
    others = b"" if is_bare else Path(certifi.where()).read_bytes()
    trusted.write_bytes(others + authority.cert_pem.bytes())
    os.environ["SSL_CERT_FILE"] = str(trusted)
    path = folder / "server.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(path))
    return path


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if os.name == "posix" else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"


def _print(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
