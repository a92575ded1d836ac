"""The work of `jobs/convert_checkpoint.py`: plan a conversion, check all of it, write it tensor by tensor."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from emu.config import EmuConfig
from emu.decoders import plan_decoder_conversion
from emu.tokenizer import EmuTokenizer
from emu.weights.layout import (
    CONFIG,
    DECODER,
    TOKENIZER,
    check_free,
    check_space,
    load_config,
    new_directory,
)
from emu.weights.plan import (
    Advance,
    ConversionWarnings,
    Plan,
    fit_family,
    plan_export,
    plan_import,
    tensors_of,
    unused_tensors,
)
from emu.weights.reader import WeightFiles, WeightsError
from emu.weights.released_config import LORA, config_from_released, config_to_released
from emu.weights.transformers_files import write_card, write_generation_config, write_tokenizer
from emu.weights.writer import TensorSpec, write_safetensors, write_torch
from jobs.paths import folder_path

if TYPE_CHECKING:
    from emu.decoders.base import DecoderConversion
    from jobs.convert_checkpoint import ConvertCheckpoint

REPORT = "conversion.json"
RELEASED_CONFIG, RELEASED_FOLDER, RELEASED_STEM = "Emu.json", "multimodal_encoder", "pytorch_model"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
NO_LIMIT = 1 << 62


@dataclass(frozen=True)
class Job:
    """A planned conversion: everything is known before the first byte is written."""

    files: WeightFiles
    config: EmuConfig
    plan: Plan
    tokenizer: EmuTokenizer | None
    decoder: DecoderConversion | None
    filled: Mapping[str, torch.Tensor]
    """What is added for the published code, which requires it and never uses it."""

    @property
    def num_bytes(self) -> int:
        """Bytes that will be written, but for small files."""
        return sum(spec.num_bytes for spec in self.specs)

    @property
    def dropped(self) -> list[str]:
        """Names of keys that are not used."""
        return [*self.plan.dropped, *(self.decoder.dropped if self.decoder else ())]

    @property
    def written(self) -> Iterator[TensorSpec]:
        """The tensors of the model that will be written."""
        yield from self.plan.specs
        for name, tensor in self.filled.items():
            yield TensorSpec(name, tuple(tensor.shape), tensor.dtype)

    @property
    def specs(self) -> Iterator[TensorSpec]:
        """All tensors that will be written."""
        yield from self.written
        if self.decoder is not None:
            yield from self.decoder.specs


def prepare(options: ConvertCheckpoint) -> Job:
    """Checks every input and plans every tensor; raises for whatever does not fit."""
    weights = Path(folder_path(options.weights))
    dtype = DTYPES.get(options.dtype)
    imports = options.to == "emu"
    files = WeightFiles(_inner(weights))
    if imports and "former.queries" in files.entries:
        raise ValueError(f"weights={weights}: a model directory already; --to released takes it")
    config = _imported_config(options, files) if imports else load_config(weights)
    plan = (plan_import if imports else plan_export)(files, config, dtype)
    tokenizer = _tokenizer(options, weights, config)
    folder, decoder = _decoder_folder(options, weights), None
    if folder is not None:
        width = config.language.hidden_size
        decoder = plan_decoder_conversion(folder, width, released=not imports, dtype=dtype)
        if imports:
            config = replace(config, decoder=decoder.config)
    fills = not imports and options.fill_unused
    filled = unused_tensors(config, plan.specs[0].dtype) if fills else {}
    return Job(files, config, plan, tokenizer, decoder, filled)


def convert(
    options: ConvertCheckpoint, advance: Advance = lambda num_bytes: None
) -> dict[str, Any]:
    """Convert as the options say; what was done, as in conversion.json.

    `advance` is told the bytes of each tensor when it is written. Raises ValueError, FileNotFoundError or
    OSError for inputs that do not fit, before anything is written.
    """
    out = Path(folder_path(options.out))
    _check_apart(out, options)
    check_free(out.resolve(), is_conversion, options.overwrite)
    job = prepare(options)
    check_space(out.resolve().parent, job.num_bytes)
    warnings = ConversionWarnings()
    bar = tqdm(total=job.num_bytes, unit="B", unit_scale=True, desc="convert", mininterval=0.5)

    def written(num_bytes: int) -> None:
        bar.update(num_bytes)
        advance(num_bytes)

    with bar, new_directory(out, is_conversion, options.overwrite) as folder:
        write = _write_emu if options.to == "emu" else _write_released
        write(job, folder, options, warnings, written)
        report = describe(job, options, warnings)
        (folder / REPORT).write_text(json.dumps(report, indent=2) + "\n")
        if options.to == "emu":  # last: without it a directory is no model
            (folder / CONFIG).write_text(job.config.to_json())
    return report


def is_conversion(folder: Path) -> bool:
    """Whether a folder is a model directory or was written by this job: what --overwrite may replace."""
    if (folder / REPORT).is_file():
        return True
    try:
        load_config(folder)
    except (ValueError, OSError):  # the configuration of something else, or none
        return False
    return True


def describe(job: Job, options: ConvertCheckpoint, warnings: ConversionWarnings) -> dict[str, Any]:
    """What a conversion read, wrote and left out."""
    specs = list(job.specs)
    return {
        "to": options.to,
        "family": "emu-i" if job.config.instruct else "emu",
        "lora": None if job.config.adapter is None else dataclasses.asdict(job.config.adapter),
        "read": {file.name: file.stat().st_size for file in job.files.files},
        "tensors": len(specs),
        "values": sum(torch.Size(spec.shape).numel() for spec in specs),
        "dtypes": dict(Counter(str(spec.dtype).removeprefix("torch.") for spec in specs)),
        "dropped": job.dropped,
        "filled": list(job.filled),
        "beside_the_weights": job.files.ignored,
        "not_finite": warnings.not_finite,
        "tokenizer": job.tokenizer is not None,
        "decoder": [] if job.decoder is None else job.decoder.folders,
    }


def summary_text(report: dict[str, Any], out: str, seconds: float) -> str:
    """What a conversion did, in words for a terminal."""
    dtypes = ", ".join(f"{count:,} {name}" for name, count in sorted(report["dtypes"].items()))
    lines = [
        "",
        f"family     {report['family']}" + (" with LoRA, unmerged" if report["lora"] else ""),
        f"written    {report['tensors']:,} tensors, {report['values']:,} values ({dtypes}) in {out}",
        *(f"dropped    {name} (not used by the model)" for name in report["dropped"]),
        *(
            f"filled     {name} (for the published code, which never uses it)"
            for name in report["filled"]
        ),
        *(f"ignored    {name} (beside the weights)" for name in report["beside_the_weights"]),
        *(f"WARNING    {name} holds values that are not finite" for name in report["not_finite"]),
    ]
    if not report["tokenizer"]:
        lines.append("tokenizer  none: to run the model, put LLaMA's tokenizer.model there")
    if not report["decoder"]:
        lines.append("decoder    none: the model generates text but no images")
    return "\n".join([*lines, f"time       {seconds:.1f} s"])


def _write_emu(
    job: Job,
    folder: Path,
    options: ConvertCheckpoint,
    warnings: ConversionWarnings,
    advance: Advance,
) -> None:
    shard_bytes = int(options.shard_size_gb * 1e9)
    tensors = tensors_of(job.plan, job.files, warnings, advance)
    write_safetensors(folder, "model", job.plan.specs, tensors, shard_bytes)
    if job.decoder is not None:
        job.decoder.write(folder / DECODER, shard_bytes, warnings, advance)
    write_generation_config(folder, job.config)
    write_card(folder, job.config)
    if job.tokenizer is not None:
        write_tokenizer(folder, job.tokenizer, job.config)


def _write_released(
    job: Job,
    folder: Path,
    options: ConvertCheckpoint,
    warnings: ConversionWarnings,
    advance: Advance,
) -> None:
    inner = folder / RELEASED_FOLDER
    inner.mkdir()
    tensors = chain(tensors_of(job.plan, job.files, warnings, advance), job.filled.values())
    specs = list(job.written)
    if options.form == "bin":
        write_torch(inner / f"{RELEASED_STEM}.bin", specs, tensors)
    else:
        shard_bytes = int(options.shard_size_gb * 1e9)
        write_safetensors(inner, RELEASED_STEM, specs, tensors, shard_bytes)
    if job.decoder is not None:  # in one file each: diffusers of that time reads no shards
        job.decoder.write(folder, NO_LIMIT, warnings, advance)
    if job.tokenizer is not None:
        job.tokenizer.save(folder / TOKENIZER)
    values = config_to_released(job.config)
    (folder / RELEASED_CONFIG).write_text(json.dumps(values, indent=2) + "\n")


def _inner(weights: Path) -> Path:
    """The folder of the weights inside a package of weights and visual decoder."""
    inner = weights / RELEASED_FOLDER
    return inner if inner.is_dir() else weights


def _imported_config(options: ConvertCheckpoint, files: WeightFiles) -> EmuConfig:
    if options.model_config is None:
        raise ValueError("model_config=None: give the released Emu-14B.json, --model-config PATH")
    path = Path(folder_path(options.model_config))
    if not path.is_file():
        raise FileNotFoundError(f"no configuration at {path}; give the released Emu-14B.json")
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds {type(values).__name__}, needed is an object")
    if "vision_cfg" not in values and isinstance(values.get("config"), dict):
        values = values["config"]  # a record of a model that has its configuration in a section
    config = config_from_released(values, instruct=True)
    config = fit_family(config, files.entries, alpha_is_given=LORA.name in values)
    found = "emu-i" if config.instruct else "emu"
    if options.kind not in ("auto", found):
        raise WeightsError(
            f"kind={options.kind}: but the keys in {options.weights} are those of {found}"
        )
    return config


def _tokenizer(options: ConvertCheckpoint, weights: Path, config: EmuConfig) -> EmuTokenizer | None:
    path = None if options.tokenizer is None else Path(folder_path(options.tokenizer))
    if path is None and options.to == "released" and (weights / TOKENIZER).is_file():
        path = weights / TOKENIZER
    if path is None:
        return None
    tokenizer = EmuTokenizer.load(path, config.instruct)
    if tokenizer.num_pieces != config.language.vocab_size:
        raise ValueError(
            f"tokenizer={path}: has {tokenizer.num_pieces} pieces, the configuration says "
            f"{config.language.vocab_size}; give the tokenizer that the weights were trained with"
        )
    return tokenizer


def _decoder_folder(options: ConvertCheckpoint, weights: Path) -> Path | None:
    if options.decoder is not None:
        return Path(folder_path(options.decoder))
    own = weights / DECODER
    return own if options.to == "released" and own.is_dir() else None


def _check_apart(out: Path, options: ConvertCheckpoint) -> None:
    """Raises ValueError where replacing OUT would remove an input."""
    for name in ("weights", "model_config", "tokenizer", "decoder"):
        given = getattr(options, name)
        if given is None:
            continue
        source = Path(folder_path(given)).resolve()
        if source == out.resolve() or out.resolve() in source.parents:
            raise ValueError(f"{name}={given} lies inside out={options.out}; give another --out")
