"""Released weights of the golden record in every form that people hold them in."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

State = dict[str, Tensor]


def released_state(golden: Path, family: str) -> State:
    """The golden weights of `pretrain` or `instruct`."""
    return load_file(golden / "emu1_small" / f"{family}.safetensors")


def released_config(golden: Path, folder: Path) -> Path:
    """The golden architecture as a released configuration file."""
    values = json.loads((golden / "emu1_small" / "meta.json").read_text())["config"]
    path = folder / "Emu-small.json"
    path.write_text(json.dumps(values))
    return path


def _halves(state: State) -> list[State]:
    names = list(state)
    middle = len(names) // 2
    return [{name: state[name] for name in part} for part in (names[:middle], names[middle:])]


def _index(folder: Path, ending: str, pieces: list[State]) -> None:
    weight_map = {}
    for number, piece in enumerate(pieces):
        name = f"pytorch_model-{number}{ending}"
        save_file(piece, folder / name) if ending == ".safetensors" else torch.save(
            piece, folder / name
        )
        weight_map |= dict.fromkeys(piece, name)
    (folder / f"pytorch_model{ending}.index.json").write_text(
        json.dumps({"weight_map": weight_map})
    )


def safetensors(state: State, folder: Path) -> Path:
    save_file(state, folder / "emu.safetensors")
    return folder / "emu.safetensors"


def plain_bin(state: State, folder: Path) -> Path:
    torch.save(state, folder / "emu.bin")
    return folder / "emu.bin"


def legacy_pt(state: State, folder: Path) -> Path:
    torch.save(state, folder / "emu.pt", _use_new_zipfile_serialization=False)
    return folder / "emu.pt"


def wrapped_pt(state: State, folder: Path) -> Path:
    torch.save({"module": state, "global_steps": 10_000, "dp_world_size": 128}, folder / "emu.pt")
    return folder / "emu.pt"


def prefixed_pth(state: State, folder: Path) -> Path:
    torch.save({f"module.{name}": tensor for name, tensor in state.items()}, folder / "emu.pth")
    return folder / "emu.pth"


def wrapped_and_prefixed(state: State, folder: Path) -> Path:
    inner = {f"module.{name}": torch.nn.Parameter(tensor) for name, tensor in state.items()}
    torch.save({"module": inner}, folder / "emu.pt")
    return folder / "emu.pt"


def indexed_safetensors(state: State, folder: Path) -> Path:
    _index(folder, ".safetensors", _halves(state))
    return folder


def indexed_bin(state: State, folder: Path) -> Path:
    _index(folder, ".bin", _halves(state))
    return folder / "pytorch_model.bin.index.json"


def mixed_folder(state: State, folder: Path) -> Path:
    """Two files of different forms, without an index."""
    first, second = _halves(state)
    torch.save(first, folder / "a.pt")
    save_file(second, folder / "b.safetensors")
    return folder


def package(state: State, folder: Path) -> Path:
    """The layout of the published package: the weights in a folder of their own."""
    (folder / "multimodal_encoder").mkdir()
    torch.save(state, folder / "multimodal_encoder" / "pytorch_model.bin")
    return folder


def newer_peft(state: State, folder: Path) -> Path:
    """As a newer peft names the weights that LoRA sits on."""
    adapted = {name.split(".lora_A.")[0] + ".weight" for name in state if ".lora_A." in name}

    def renamed(name: str) -> str:
        return name.replace("_proj.weight", "_proj.base_layer.weight") if name in adapted else name

    torch.save({renamed(name): tensor for name, tensor in state.items()}, folder / "emu.bin")
    return folder / "emu.bin"


FORMS: dict[str, Callable[[State, Path], Path]] = {
    form.__name__: form
    for form in (
        safetensors,
        plain_bin,
        legacy_pt,
        wrapped_pt,
        prefixed_pth,
        wrapped_and_prefixed,
        indexed_safetensors,
        indexed_bin,
        mixed_folder,
        package,
        newer_peft,
    )
}
