"""Converts Stable Diffusion's files in the layout of diffusers, checked name by name and streamed.

Old releases of diffusers and transformers have other names for some weights of the autoencoder and of the safety
checker. Both are read; the current names are written, or the old ones for the published code.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import CLIPConfig

from emu.config import DecoderConfig
from emu.decoders.diffusion import unet_sizes
from emu.decoders.safety import CHECKER, PROCESSOR
from emu.decoders.stable_diffusion import SCHEDULER, UNET, VAE, vae_sizes, write_model_index
from emu.weights.plan import Advance, ConversionWarnings, Plan, plan_renaming, renamed, tensors_of
from emu.weights.reader import INDEX, SAFETENSORS, WeightFiles, WeightsError
from emu.weights.writer import TensorSpec, write_safetensors

CONFIG, DIFFUSERS = "config.json", "diffusion_pytorch_model"
SCHEDULER_CONFIG, PROCESSOR_CONFIG = "scheduler_config.json", "preprocessor_config.json"
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
OLD_TOWER, TOWER = "vision_model.vision_model.", "vision_model."
UNUSED = (".position_ids",)  # a constant that old transformers stored


@dataclass(frozen=True)
class Part:
    """One network of the decoder: how it is built, the names of its files, its names in old libraries."""

    folder: str
    build: Callable[[dict[str, Any]], Any]
    stems: tuple[str, ...]  # the first is written
    new_name: Callable[[str], str]
    old_name: Callable[[str], str]


@dataclass(frozen=True)
class PartPlan:
    """What to write for one network."""

    part: Part
    files: WeightFiles
    plan: Plan
    config: Mapping[str, Any]


def new_attention_name(name: str) -> str:
    """The current name for one that the autoencoder had before diffusers 0.17."""
    head, dot, last = name.rpartition(".")
    path, _, layer = head.rpartition(".")
    if ".attentions." in name and layer in OLD_ATTENTION:
        return f"{path}.{OLD_ATTENTION[layer]}{dot}{last}"
    return name


def old_attention_name(name: str) -> str:
    """The inverse of `new_attention_name`."""
    if ".attentions." in name:
        for old, new in OLD_ATTENTION.items():
            name = name.replace(f".{new}.", f".{old}.")
    return name


def new_tower_name(name: str) -> str:
    """The name in transformers 5 for one that the safety checker had before."""
    return name.replace(OLD_TOWER, TOWER, 1)


def old_tower_name(name: str) -> str:
    """The inverse of `new_tower_name`."""
    return name if name.startswith(OLD_TOWER) else name.replace(TOWER, OLD_TOWER, 1)


PARTS = (
    Part(
        UNET,
        UNet2DConditionModel.from_config,
        (DIFFUSERS,),
        lambda name: name,
        lambda name: name,
    ),
    Part(
        VAE,
        AutoencoderKL.from_config,
        (DIFFUSERS,),
        new_attention_name,
        old_attention_name,
    ),
    Part(
        CHECKER,
        lambda config: StableDiffusionSafetyChecker(CLIPConfig.from_dict(config)),
        ("model", "pytorch_model"),
        new_tower_name,
        old_tower_name,
    ),
)


@dataclass(frozen=True)
class StableDiffusionConversion:
    """A planned conversion: the networks, and the small files that are copied."""

    source: Path
    parts: tuple[PartPlan, ...]
    released: bool = False

    @property
    def specs(self) -> Iterator[TensorSpec]:
        """The tensors that will be written."""
        for one in self.parts:
            yield from one.plan.specs

    @property
    def dropped(self) -> list[str]:
        """Names of tensors in the files that are not used."""
        return [name for one in self.parts for name in one.plan.dropped]

    @property
    def folders(self) -> list[str]:
        """The folders of the networks."""
        return [one.part.folder for one in self.parts]

    @property
    def config(self) -> DecoderConfig | None:
        """The sizes, or None where `DecoderConfig` cannot describe them."""
        return decoder_config(self.source)

    def write(
        self, target: Path, shard_bytes: int, warnings: ConversionWarnings, advance: Advance
    ) -> None:
        """Writes the networks and copies the small files into `target`."""
        for one in self.parts:
            folder = target / one.part.folder
            folder.mkdir(parents=True)
            tensors = tensors_of(one.plan, one.files, warnings, advance)
            write_safetensors(folder, one.part.stems[0], one.plan.specs, tensors, shard_bytes)
            (folder / CONFIG).write_text(json.dumps(dict(one.config), indent=2) + "\n")
        for folder, file in ((SCHEDULER, SCHEDULER_CONFIG), (PROCESSOR, PROCESSOR_CONFIG)):
            if (self.source / folder / file).is_file():
                (target / folder).mkdir()
                (target / folder / file).write_bytes((self.source / folder / file).read_bytes())
        if not self.released:
            write_model_index(target, has_safety=(target / CHECKER).is_dir())


def plan_conversion(
    directory: Path, condition_width: int, released: bool = False, dtype: torch.dtype | None = None
) -> StableDiffusionConversion:
    """What to write for the decoder in `directory`, with `released` under the names of old libraries.

    Raises FileNotFoundError for an absent folder or file, WeightsError naming every key that does not
    fit and a U-Net that reads another width than the language model's.
    """
    for folder, file in ((UNET, CONFIG), (VAE, CONFIG), (SCHEDULER, SCHEDULER_CONFIG)):
        if not (directory / folder / file).is_file():
            raise FileNotFoundError(f"no decoder at {directory}: {folder}/{file} is absent")
    parts = tuple(
        _plan_part(part, directory, released, dtype) for part in PARTS if _exists(part, directory)
    )
    width = parts[0].config.get("cross_attention_dim")
    if width != condition_width:
        raise WeightsError(
            f"the U-Net in {directory} reads embeddings of width {width}, the model gives {condition_width}; "
            "train a decoder from a plain Stable Diffusion with emu train-decoder --pretrained"
        )
    return StableDiffusionConversion(directory, parts, released)


def decoder_config(directory: Path) -> DecoderConfig | None:
    """The sizes of a decoder in diffusers' layout, or None where `DecoderConfig` cannot describe them."""
    unet, vae = (_read_json(directory / folder / CONFIG) for folder in (UNET, VAE))
    schedule = _read_json(directory / SCHEDULER / SCHEDULER_CONFIG)
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    try:
        config = DecoderConfig(
            image_size=unet["sample_size"] * factor,
            latent_channels=unet["in_channels"],
            unet_channels=tuple(unet["block_out_channels"]),
            unet_attention=tuple("CrossAttn" in kind for kind in unet["down_block_types"]),
            unet_layers=unet["layers_per_block"],
            unet_heads=unet["attention_head_dim"],
            unet_groups=unet["norm_num_groups"],
            vae_channels=tuple(vae["block_out_channels"]),
            vae_layers=vae["layers_per_block"],
            vae_groups=vae["norm_num_groups"],
            scaling_factor=vae.get("scaling_factor", DecoderConfig().scaling_factor),
            num_train_timesteps=schedule["num_train_timesteps"],
            beta_start=schedule["beta_start"],
            beta_end=schedule["beta_end"],
        )
    except (KeyError, ValueError, TypeError):
        return None
    same = _agree(unet, unet_sizes(config, unet["cross_attention_dim"]))
    return config if same and _agree(vae, vae_sizes(config)) else None


def _agree(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    freely = {"sample_size", "scaling_factor"}  # of the autoencoder: says nothing about its weights
    return all(
        name in freely or name not in found or _plain(found[name]) == _plain(value)
        for name, value in wanted.items()
    )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _exists(part: Part, directory: Path) -> bool:
    return part.folder != CHECKER or (directory / part.folder).is_dir()


def _plan_part(part: Part, directory: Path, released: bool, dtype: torch.dtype | None) -> PartPlan:
    folder = directory / part.folder
    config = {n: v for n, v in _read_json(folder / CONFIG).items() if n != "_name_or_path"}
    files = WeightFiles(_weights_of(folder, part.stems))
    with torch.device("meta"):
        shapes = {name: tuple(t.shape) for name, t in part.build(config).state_dict().items()}
    table = {part.new_name(name): name for name in shapes}
    plan = plan_renaming(
        files, table, shapes, dtype, part.new_name, lambda name: name.endswith(UNUSED)
    )
    dropped = tuple(f"{part.folder}/{name}" for name in plan.dropped)
    new_name = part.old_name if released else part.new_name
    return PartPlan(part, files, renamed(replace(plan, dropped=dropped), new_name), config)


def _weights_of(folder: Path, stems: tuple[str, ...]) -> Path:
    """The weights as diffusers and transformers look for them; variants (`.fp16.`) are left alone."""
    endings = (SAFETENSORS + INDEX, SAFETENSORS, ".bin" + INDEX, ".bin")
    names = [stem + ending for ending in endings for stem in stems]
    found = next((name for name in names if (folder / name).is_file()), None)
    if found is None:
        raise FileNotFoundError(f"no weights in {folder}; looked for {names}")
    return folder / found


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except (ValueError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise WeightsError(f"{path} holds {type(values).__name__}, needed is an object")
    return values
