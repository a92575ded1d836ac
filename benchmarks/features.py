"""Speed of feature precompute, against the bare batched loop that decodes and encodes the same images.

    python -m benchmarks.features --encoder ViT-B-32 --num-images 128 --rounds 5
    python -m benchmarks.features --encoder tiny --photos DIR

`stage` is the work of `emu features` on one shard: it reads the tar, decodes, encodes, checks, converts and writes
`features/*.arrow`. `bare` has the encoded images in memory and keeps nothing. Both use the same encoder, batches and
number of threads of torch; rounds are interleaved, in alternating order, and the medians count. Prints JSON lines:
images per CPU-second (all threads of the process) and per second of wall time, their ratios, and the CPU-milliseconds
per image of each part alone.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from benchmarks.photos import synthetic_photo
from emu.train.feature_encoders import EncoderSpec, FeatureEncoder
from pipelines.core.pipeline import ShardPlan
from pipelines.core.published import read_samples
from pipelines.core.storage import Storage, write_parquet
from pipelines.transforms.features import FeatureWork, feature_rows, images_of
from schemas.features import FeatureInfo, Patches, features_schema
from schemas.images import open_image
from schemas.manifest import ShardEntry
from schemas.sample import Sample, Segment
from schemas.shard import INDEXES, SHARDS, tar_bytes
from schemas.tables import INDEX

SHARD = "pairs-000000"


@dataclass(frozen=True)
class FeaturesBenchmark:
    """Which encoder, and how many images."""

    encoder: Literal["tiny", "ViT-B-32", "ViT-L-14"] = "ViT-B-32"
    """tiny: Emu's own encoder of that recipe. Others: open_clip's, with random weights."""
    patches: Patches = "float16"
    photos: Path | None = None
    """Folder of JPEG files. None: synthetic photos of 0.3 megapixels."""
    num_images: int = 128
    batch_size: int = 32
    decode_threads: int = 2
    rounds: int = 5
    threads: int = 1
    """Threads of torch for one operation."""


def run_benchmark(options: FeaturesBenchmark) -> Iterator[dict[str, Any]]:
    """A record per encoder and form, then one with the cost of each part."""
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        encoder = make_encoder(options, Path(folder))
        images = encoded_images(options)
        storage = Storage(f"{folder}/data")
        data, rows = tar_bytes(samples(images), SHARD)
        storage.commit(f"{SHARDS}/{SHARD}.tar", data)
        write_parquet(storage, f"{INDEXES}/{SHARD}.parquet", INDEX.table(rows), INDEX)
        info = info_of(encoder, images, options.patches)
        work = FeatureWork(storage, info, encoder, options.batch_size, options.decode_threads)
        entry = ShardEntry(SHARD, len(images), len(images), len(data), "0" * 64)
        plan = ShardPlan(SHARD, len(images), (entry.as_dict(),))
        loops = {"bare": lambda: bare(encoder, images, options), "stage": lambda: work(plan)}
        yield options_record(options, images) | compared(loops, len(images), options.rounds)
        yield {"cpu_ms_per_image": parts(encoder, images, work, entry)}


def bare(encoder: FeatureEncoder, images: Sequence[bytes], options: FeaturesBenchmark) -> None:
    """The loop that anyone would write: decode a batch, encode it."""
    for start in range(0, len(images), options.batch_size):
        batch = images[start : start + options.batch_size]
        encoder.encode([encoder.prepare(image) for image in batch])


def compared(loops: dict[str, Callable[[], Any]], num_images: int, rounds: int) -> dict[str, Any]:
    """Images per CPU-second and per second of each loop, and the ratios, as medians over interleaved rounds."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in loops}
    for loop in loops.values():
        loop()
    for number in range(rounds):
        for name in sorted(loops, reverse=bool(number % 2)):
            seconds[name].append(timed(loops[name]))
    found: dict[str, Any] = {}
    for kind, index in (("cpu", 0), ("wall", 1)):
        for name, values in seconds.items():
            middle = statistics.median(v[index] for v in values)
            found[f"{name}_images_per_{kind}_s"] = round(num_images / middle, 1)
        pairs = zip(seconds["bare"], seconds["stage"], strict=True)
        ratios = sorted(b[index] / s[index] for b, s in pairs)
        found[f"{kind}_ratio"] = round(statistics.median(ratios), 3)
        found[f"{kind}_ratios"] = [round(r, 2) for r in ratios]
    return found


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """CPU-seconds of all threads of the process, and wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def parts(
    encoder: FeatureEncoder,
    images: Sequence[bytes],
    work: FeatureWork,
    entry: ShardEntry,
) -> dict[str, float]:
    """CPU-milliseconds per image of each part alone."""
    storage, info = work.storage, work.info
    batch = list(images[: work.batch_size])
    prepared = [encoder.prepare(image) for image in batch]
    pooled, tokens = encoder.encode(prepared)
    refs = list(images_of(read_samples(storage, entry)))

    def read() -> None:
        assert len(list(images_of(read_samples(storage, entry)))) == len(images)

    schema = features_schema(info, "0" * 64)
    rows = feature_rows(refs[: len(batch)], pooled, tokens, info, schema)
    works: dict[str, tuple[Callable[[], Any], int]] = {
        "read the tar": (read, len(images)),
        "decode and resize": (lambda: [encoder.prepare(image) for image in batch], len(batch)),
        "encode": (lambda: encoder.encode(prepared), len(batch)),
        "convert": (
            lambda: feature_rows(refs[: len(batch)], pooled, tokens, info, schema),
            len(batch),
        ),
        "write": (lambda: storage.commit("rows", rows.serialize().to_pybytes()), len(batch)),
    }
    return {
        name: round(1000 * min(timed(part)[0] for _ in range(5)) / num, 3)
        for name, (part, num) in works.items()
    }


def make_encoder(options: FeaturesBenchmark, folder: Path) -> FeatureEncoder:
    """The encoder; open_clip's models with random weights, by way of a file."""
    with_tokens = options.patches != "none"
    if options.encoder == "tiny":
        return EncoderSpec().make(with_tokens)
    import open_clip
    from safetensors.torch import save_file

    torch.manual_seed(0)
    file = folder / "open_clip_model.safetensors"
    save_file(open_clip.create_model(options.encoder).state_dict(), file)
    return EncoderSpec(f"{options.encoder}:{file}").make(with_tokens)


def encoded_images(options: FeaturesBenchmark) -> list[bytes]:
    """JPEG files of the folder, or synthetic photos; repeated where there are too few."""
    if options.photos is None:
        found = [synthetic_photo(640, 480, seed) for seed in range(min(32, options.num_images))]
    else:
        files = sorted(options.photos.rglob("*.jpg"))[: options.num_images]
        found = [file.read_bytes() for file in files]
    return [found[number % len(found)] for number in range(options.num_images)]


def samples(images: Sequence[bytes]) -> Iterator[Sample]:
    """Image-text pairs."""
    for number, data in enumerate(images):
        opened = open_image(data)
        image = Segment.of_image(data, "jpg", opened.width, opened.height)
        yield Sample(f"pair-{number:06d}", "pairs", (image, Segment.of_text("a photo")))


def info_of(encoder: FeatureEncoder, images: Sequence[bytes], patches: Patches) -> FeatureInfo:
    """The description of the features, from those of one image."""
    pooled, tokens = encoder.encode([encoder.prepare(images[0])])
    num_tokens, width = (0, 0) if tokens is None else tokens.shape[1:]
    return FeatureInfo("benchmark", "", "", "float32", pooled.shape[1], num_tokens, width, patches)


def options_record(options: FeaturesBenchmark, images: Sequence[bytes]) -> dict[str, Any]:
    """What was measured."""
    return {
        "encoder": options.encoder,
        "patches": options.patches,
        "images": len(images),
        "mean_kb": round(sum(map(len, images)) / len(images) / 1000, 1),
        "batch_size": options.batch_size,
    }


if __name__ == "__main__":
    for row in run_benchmark(tyro.cli(FeaturesBenchmark, description=__doc__)):
        print(json.dumps(row), flush=True)
