"""Weights of the language model's layers in 8 bits, with a scale for each output; inputs and products stay as they are.

For cards and machines whose memory the weights fill: they take half of bfloat16 and a quarter of float32. The
embeddings, the heads, the visual encoder and the visual decoder are not changed.

Shapes: T rows, K inputs and O outputs of a product.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from emu.models.emu import Emu
from emu.models.language_model import LanguageModel
from emu.tokenizer import EmuTokenizer
from emu.weights.adapter import open_model

LEVELS = 127
WEIGHTS = ("full", "int8")


class Int8Linear(nn.Module):
    """A linear module whose weights are rounded to 8 bits; each output has a scale of its own."""

    def __init__(self, linear: nn.Linear, device: torch.device | str | None = None) -> None:
        """Rounded on `device`, by default where the weights are; `linear` stays as it is."""
        super().__init__()
        weight_OK = linear.weight.detach().to(device or linear.weight.device).float()
        scales_O1 = weight_OK.abs().amax(dim=1, keepdim=True).clamp(min=1e-4) / LEVELS
        scales_O1 = scales_O1.to(linear.weight.dtype).float()  # as they will be multiplied with
        rounded_OK = (weight_OK / scales_O1).round().clamp(-LEVELS, LEVELS).to(torch.int8)
        self.weight = nn.Parameter(rounded_OK, requires_grad=False)
        scales_O = scales_O1[:, 0].to(linear.weight.dtype)
        self.scales = nn.Parameter(scales_O, requires_grad=False)

    def forward(self, states_TK: Tensor) -> Tensor:
        """The outputs, of any leading shape."""
        if states_TK.device.type == "cpu":
            rows_TK = states_TK.reshape(-1, states_TK.shape[-1]).contiguous()
            outputs_TO = torch.ops.aten._weight_int8pack_mm(rows_TK, self.weight, self.scales)
            return outputs_TO.view(*states_TK.shape[:-1], -1)
        return functional.linear(states_TK, self.weight.to(states_TK.dtype)) * self.scales


def check_weights(weights: str) -> None:
    """Raises ValueError for an unknown kind of weights."""
    if weights not in WEIGHTS:
        raise ValueError(f"weights is {weights!r}, give one of {list(WEIGHTS)}")


def open_weights(
    directory: str | Path, device: str, dtype: torch.dtype, weights: str
) -> tuple[Emu, EmuTokenizer]:
    """The model of a directory on the device, with weights of this kind (`WEIGHTS`), and its tokenizer."""
    if weights == "full":
        return open_model(directory, device, dtype)
    model, tokenizer = open_model(directory, "cpu", dtype)
    round_to_int8(model, device)
    return model, tokenizer


def round_to_int8(model: Emu, device: torch.device | str | None = None) -> None:
    """Replaces the linear modules of the language model's layers, in place; the model cannot be trained afterwards.

    With a `device` the weights of each module are copied there and rounded, and the rest of the model follows at the
    end: the device never holds the full weights of more than one module.

    Raises ValueError for a model with an unmerged adapter.
    """
    if model.config.adapter is not None:
        raise ValueError(
            "weights is 'int8' and the model has an unmerged adapter; merge it first "
            "(emu train-instruct --merge)"
        )
    for layer in model.language.lm.model.layers:
        for name, module in list(layer.named_modules()):
            if type(module) is nn.Linear and module.bias is None:
                layer.set_submodule(name, Int8Linear(module, device))
    model.requires_grad_(False)
    if device is not None:
        model.to(device)


def has_int8_weights(language: LanguageModel) -> bool:
    """Whether `round_to_int8` was called."""
    return any(isinstance(module, Int8Linear) for module in language.modules())
