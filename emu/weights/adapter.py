"""LoRA adapters on their own: a folder in peft's layout, and models that are opened from it or lose it by merging.

    ADAPTER/adapter_config.json            peft's configuration; names the folder of the model beneath
            adapter_model.safetensors      the adapter, under peft's names

`peft.PeftModel.from_pretrained(engine.model.language.lm, ADAPTER)` puts it on the language model of the model beneath,
and `emu.load(ADAPTER)` opens both. Rows for `[USER]` and `[ASSISTANT]`, where the model beneath has none, follow from
it (`emu.models.emu.add_instruct_tokens`).
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from emu.config import AdapterConfig
from emu.models.emu import Emu, add_instruct_tokens
from emu.models.language_model import LORA, add_adapter
from emu.tokenizer import EmuTokenizer
from emu.weights.layout import CONFIG, TOKENIZER, load_config, new_directory
from emu.weights.store import load_model, read_weights, save_model

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
OURS, PEFTS = "language.lm.", "base_model.model."


def peft_name(name: str) -> str:
    """The name in peft's files of one of our adapter weights."""
    return PEFTS + name.removeprefix(OURS).replace(".default.", ".")


def export_adapter(model: str | Path, folder: str | Path, base: str | Path) -> None:
    """Write the adapter of a model directory into a folder of its own, atomically; one that is there is replaced.

    `base` is the model beneath, named in the configuration. Raises ValueError for a model without an adapter.
    """
    config = load_config(model).adapter
    if config is None:
        raise ValueError(f"the model in {model} has no adapter; it is merged or was never tuned")
    weights = {peft_name(name): tensor for name, tensor in read_weights(model) if LORA in name}
    described = peft_config(config, str(base))
    with new_directory(Path(folder), is_replaceable=is_adapter, overwrite=True) as new:
        save_file(weights, new / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        (new / ADAPTER_CONFIG).write_text(json.dumps(described, indent=2, sort_keys=True) + "\n")


def peft_config(config: AdapterConfig, base: str) -> dict[str, Any]:
    """Peft's configuration of an adapter; `base` is the folder of the model beneath."""
    return {
        "base_model_name_or_path": base,
        "bias": "none",
        "inference_mode": True,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "peft_type": "LORA",
        "r": config.rank,
        "target_modules": list(config.targets),
        "task_type": "CAUSAL_LM",
    }


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter in peft's layout, and no model."""
    return (folder / ADAPTER_CONFIG).is_file() and not (folder / CONFIG).is_file()


@dataclass(frozen=True)
class AdapterWeights:
    """The two factors of each projection that an adapter sits on, by its path in the language model (`OURS`)."""

    pairs: dict[str, tuple[Tensor, Tensor]]
    """To the rank `RK` and back `OR`; their product times `scale` is added to the weight."""
    scale: float


def read_adapter(folder: str | Path) -> AdapterWeights:
    """The weights of an adapter's folder in peft's layout.

    Raises FileNotFoundError where there is none, ValueError for a kind that is not plain LoRA.
    """
    folder = Path(folder)
    if not is_adapter(folder) or not (folder / ADAPTER_WEIGHTS).is_file():
        raise FileNotFoundError(
            f"no adapter at {folder}: needed are {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}, as emu "
            "train-instruct writes them to OUT/adapter"
        )
    values = json.loads((folder / ADAPTER_CONFIG).read_text())
    unknown = [name for name in ("use_dora", "use_rslora", "rank_pattern") if values.get(name)]
    if values.get("peft_type") != "LORA" or unknown:
        kind = ", ".join([str(values.get("peft_type")), *unknown])
        raise ValueError(f"{folder}: the adapter is {kind}; plain LoRA is supported")
    weights = load_file(folder / ADAPTER_WEIGHTS)
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    for name in sorted(weights):
        path, is_down, _ = name.removeprefix(PEFTS).partition(".lora_A.weight")
        up = weights.get(f"{PEFTS}{path}.lora_B.weight")
        if is_down and up is not None:
            pairs[path] = weights[name], up
    if 2 * len(pairs) != len(weights):
        raise ValueError(f"{folder}: {len(weights)} weights, which are not pairs of lora_A, lora_B")
    return AdapterWeights(pairs, values["lora_alpha"] / values["r"])


def open_model(
    directory: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> tuple[Emu, EmuTokenizer]:
    """The model of a model directory or of an adapter's folder, in evaluation mode, and its tokenizer.

    Raises FileNotFoundError for an absent file and ValueError for weights that do not fit, as `load_model` does.
    """
    folder = Path(directory)
    if not is_adapter(folder):
        return load_model(folder, device, dtype)
    values = json.loads((folder / ADAPTER_CONFIG).read_text())
    model, tokenizer = load_model(values["base_model_name_or_path"], device, dtype)
    if not model.config.instruct:
        add_instruct_tokens(model, tokenizer)
        tokenizer = EmuTokenizer(tokenizer.model_bytes, instruct=True)
    targets: Any = tuple(
        name for name in AdapterConfig().targets if name in values["target_modules"]
    )
    config = AdapterConfig(values["r"], values["lora_alpha"], values["lora_dropout"], targets)
    if model.config.adapter is None:
        add_adapter(model.language, config)
        model.config = dataclasses.replace(model.config, adapter=config)
    _fill(model, load_file(folder / ADAPTER_WEIGHTS), folder)
    return model.to(device, dtype).eval(), tokenizer


def publish_adapter(out: str | Path, base: str | Path, merge: bool) -> Path:
    """Write `OUT/adapter` of the model in `OUT/model` over the model `base`; with `merge`, the model loses it after.

    Nothing is written where the model was merged before. Returns the folder of the adapter.
    """
    model, folder = Path(out) / "model", Path(out) / "adapter"
    if load_config(model).adapter is not None:
        export_adapter(model, folder, base)
        if merge:
            merge_folder(model)
    return folder


def merge_folder(folder: str | Path) -> None:
    """Fold the adapter of a model directory into its weights, atomically; without one, nothing is done."""
    folder = Path(folder)
    if load_config(folder).adapter is None:
        return
    model, _ = load_model(folder)
    model.merge_adapter()
    with new_directory(folder, is_replaceable=lambda folder: True, overwrite=True) as new:
        save_model(new, model, folder / TOKENIZER)


def _fill(model: Emu, weights: dict[str, Tensor], folder: Path) -> None:
    """Copy an adapter's weights into the model; raises ValueError naming what does not fit."""
    wanted = {peft_name(n): w for n, w in model.state_dict().items() if LORA in n}
    problems = [f"missing {name}" for name in wanted if name not in weights]
    problems += [f"unexpected {name}" for name in weights if name not in wanted]
    problems += [
        f"{name} has shape {tuple(weights[name].shape)}, needs {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    if problems:
        raise ValueError(f"{folder}: the adapter does not fit the model: {'; '.join(problems)}")
    for name, tensor in wanted.items():
        tensor.copy_(weights[name])
