"""Peak memory and speed of weight conversion, on tensors of the released 14B shapes with fewer layers.

    python -m benchmarks.convert --folder /somewhere/with/space

Random weights are written tensor by tensor under the released names, converted by `jobs/convert_checkpoint.py` in a
process of its own, and converted back. Prints JSON lines: the peak of the process's resident memory (VmHWM) and of its
anonymous part, sampled 50 times per second (mapped files are cache that the system may reclaim), the largest tensor and
the largest file. All files are deleted afterwards.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import Tensor

from emu.config import EmuConfig, emu_14b_config
from emu.weights.plan import model_shapes, unused_tensors
from emu.weights.reader import WeightFiles
from emu.weights.released import released_name
from emu.weights.released_config import config_to_released
from emu.weights.writer import TensorSpec, write_safetensors, write_torch

PERIOD_S = 0.02
JOB = Path(__file__).resolve().parents[1] / "jobs" / "convert_checkpoint.py"


@dataclass(frozen=True)
class ConvertBenchmark:
    """What to convert; with the defaults 5 GB are read and 5 GB written."""

    folder: Path | None = None
    """Working folder; needs three times the size of the weights. None: the system's temporary folder."""
    language_layers: int = 5
    """Layers of the language model; LLaMA-13B has 40."""
    vision_layers: int = 6
    """Layers of the visual encoder; EVA-CLIP g/14 has 40."""
    formats: tuple[Literal["bin", "safetensors"], ...] = ("bin", "safetensors")
    """Formats of the released weights: one PyTorch file, or safetensors in shards of 2 GB."""
    shard_size_gb: float = 2.0
    """Largest file of the converted weights."""
    dtype: Literal["keep", "bfloat16", "float32"] = "keep"
    """Data type of the written weights."""


def released_specs(config: EmuConfig) -> list[TensorSpec]:
    """All tensors of the released file for this configuration, in float16."""
    shapes = model_shapes(config)
    specs = [TensorSpec(released_name(n, False), s, torch.float16) for n, s in shapes.items()]
    unused = unused_tensors(config, torch.float16).items()
    return specs + [TensorSpec(name, tuple(t.shape), t.dtype) for name, t in unused]


def random_tensors(specs: list[TensorSpec], config: EmuConfig, seed: int = 0) -> Iterator[Tensor]:
    """Random values, one tensor at a time; constant tensors keep their values."""
    generator = torch.Generator().manual_seed(seed)
    constants = unused_tensors(config, torch.float16)
    for spec in specs:
        if spec.name in constants:
            yield constants[spec.name]
        else:
            row = torch.randn(min(1 << 20, torch.Size(spec.shape).numel()), generator=generator)
            repeats = -(-torch.Size(spec.shape).numel() // len(row))
            values = (row * 0.02).to(spec.dtype).repeat(repeats)
            yield values[: torch.Size(spec.shape).numel()].reshape(spec.shape)


def run_benchmark(options: ConvertBenchmark) -> Iterator[dict[str, Any]]:
    """A record for the imports alone, then one per conversion."""
    config = emu_14b_config()
    config = replace(
        config,
        vision=replace(config.vision, layers=options.vision_layers),
        language=replace(config.language, num_layers=options.language_layers),
        decoder=None,
    )
    yield {"what": "--help", **measured([str(JOB), "--help"])}
    for file_format in options.formats:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            yield from _round_trip(options, config, file_format, Path(folder))


def measured(arguments: list[str]) -> dict[str, Any]:
    """Runs a command and returns its duration in seconds and its peaks of memory in MB."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
    peaks: dict[str, float] = {}
    while process.poll() is None:
        for name, value in _memory_mb(process.pid).items():
            peaks[name] = max(peaks.get(name, 0), value)
        time.sleep(PERIOD_S)
    if process.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed with exit code {process.returncode}")
    return {
        "seconds": round(time.perf_counter() - started, 1),
        "peak_mb": round(peaks["VmHWM"]),
        "peak_anonymous_mb": round(peaks["RssAnon"]),
    }


def _round_trip(
    options: ConvertBenchmark, config: EmuConfig, file_format: str, folder: Path
) -> Iterator[dict[str, Any]]:
    specs = released_specs(config)
    weights = folder / "released"
    weights.mkdir()
    if file_format == "bin":
        write_torch(weights / "pytorch_model.bin", specs, random_tensors(specs, config))
    else:
        write_safetensors(
            weights, "pytorch_model", specs, random_tensors(specs, config), 2_000_000_000
        )
    (folder / "Emu.json").write_text(json.dumps(config_to_released(config)))
    model, back = folder / "model", folder / "back"
    to_emu = [
        "--weights",
        str(weights),
        "--model-config",
        str(folder / "Emu.json"),
        "--out",
        str(model),
    ]
    to_emu += ["--shard-size-gb", str(options.shard_size_gb), "--dtype", options.dtype]
    yield {
        "what": f"import of {file_format}",
        **_sizes(model, measured([str(JOB), *to_emu]), specs),
    }
    original = _checksums(weights)
    for path in weights.iterdir():  # free space for the conversion back
        path.unlink()
    to_released = [
        "--to",
        "released",
        "--weights",
        str(model),
        "--out",
        str(back),
        "--form",
        file_format,
    ]
    to_released += ["--shard-size-gb", str(options.shard_size_gb)]
    record = _sizes(back / "multimodal_encoder", measured([str(JOB), *to_released]), specs)
    if options.dtype == "keep":
        record["equal"] = _checksums(back / "multimodal_encoder") == original
    yield {"what": f"export to {file_format}", **record}


def _sizes(out: Path, record: dict[str, Any], specs: list[TensorSpec]) -> dict[str, Any]:
    files = [
        path.stat().st_size for path in out.iterdir() if path.suffix in (".safetensors", ".bin")
    ]
    return record | {
        "written_mb": round(sum(files) / 1e6),
        "largest_file_mb": round(max(files) / 1e6),
        "largest_tensor_mb": round(max(spec.num_bytes for spec in specs) / 1e6),
    }


def _checksums(weights: Path) -> dict[str, float]:
    """The sum of absolute values of each tensor, by name."""
    files = WeightFiles(weights)
    names = sorted(files.entries)
    return {n: float(t.double().abs().sum()) for n, t in zip(names, files.read(names), strict=True)}


def _memory_mb(pid: int) -> dict[str, float]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    fields = (line.split() for line in lines if line.startswith(("VmHWM:", "RssAnon:")))
    return {name.rstrip(":"): int(value) * 1024 / 1e6 for name, value, *_ in fields}


if __name__ == "__main__":
    for row in run_benchmark(tyro.cli(ConvertBenchmark, description=__doc__)):
        print(json.dumps(row), flush=True)
