"""Matrix products of the layers of a language model on a CPU, with a copy of the weights in the layout of oneDNN.

MKL multiplies few rows with a large matrix slowly. On an AMD EPYC, one core, float32, the products of three layers of
width 1,024 take 10 ms for one row and 21 ms for 8; with packed weights 10 to 12 ms for up to 4 rows, 13 ms for 8. A row
then has the same bits whatever rows are beside it, so they are used for single rows as well (docs/decisions/0121).

Shapes: T rows, K inputs and O outputs of a product.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor, nn

from emu.generate.kv_cache import Project, projected, steadily_projected
from emu.models.language_model import LanguageModel

BATCH_HINT = 8  # rows that the layout is chosen for; others gain nearly as much


class Products:
    """Multiplies with packed weights where there is a copy, otherwise as `projected` (a `Project`)."""

    def __init__(
        self, language: LanguageModel, max_bytes: int, is_deterministic: bool = False
    ) -> None:
        """Nothing is copied before `refresh`, and nothing at all beyond `max_bytes`.

        Where there is a copy, and with `is_deterministic`, all products give a row the same bits whatever rows are
        beside it; the few that are not copied then take the time of `STEADY_ROWS` rows at least.
        """
        self._language = language
        matrices = _matrices(language)
        num_bytes = sum(weight.numel() * weight.element_size() for weight in matrices.values())
        self.is_packed = num_bytes <= max_bytes and all(map(can_be_packed, matrices.values()))
        """Whether the weights of the layers are copied."""
        self._usual: Project = (
            steadily_projected if is_deterministic or self.is_packed else projected
        )
        self._packed: dict[nn.Module, Tensor] = {}
        self._key = b""
        self._lock = threading.Lock()

    def refresh(self, key: bytes) -> None:
        """Copies the weights unless that was done under the same key (`emu.generate.prefix.weights_key`)."""
        with self._lock:
            if key != self._key:
                self._packed = self._pack()
                self._key = key

    def __call__(self, states_TK: Tensor, linear: Any) -> Tensor:
        """The output `TO` of a linear module."""
        packed = self._packed.get(linear)
        if packed is None:
            return self._usual(states_TK, linear)
        return torch.ops.mkldnn._linear_pointwise(states_TK, packed, None, "none", [], "")

    def _pack(self) -> dict[nn.Module, Tensor]:
        if not self.is_packed:
            return {}
        return {
            module: torch.ops.mkldnn._reorder_linear_weight(weight, BATCH_HINT)
            for module, weight in _matrices(self._language).items()
        }


def _matrices(language: LanguageModel) -> dict[nn.Module, Tensor]:
    """The weights of the layers by their modules; the heads are called as modules."""
    return {
        module: module.weight.detach()
        for module in language.lm.model.layers.modules()
        if type(module) is nn.Linear and module.bias is None
    }


def can_be_packed(weight: Tensor) -> bool:
    """Whether this installation of torch can pack the weight."""
    has_operators = torch.backends.mkldnn.is_available() and hasattr(
        torch.ops.mkldnn, "_reorder_linear_weight"
    )
    return has_operators and weight.device.type == "cpu" and weight.dtype == torch.float32
