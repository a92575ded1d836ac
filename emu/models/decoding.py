"""The language model's layers as generation runs them: positions side by side, attention by the caller.

LLaMA's modules are used as they are (LoRA included); only the loop over them is written out. So
positions of several sequences need no padding, and keys and values are written where they stay.

Shapes: T positions of any sequences side by side, H heads, K width of a head, D language width,
B sequences, S positions kept of a sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from emu.models.language_model import LanguageModel

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""From the number of a layer and its queries, keys and values `THK` to what each query gathers."""

FEW_ROWS = (5, 32)  # where the transposed product is quicker on a processor
ROOM = 64  # positions that new memory holds beyond what is asked for


def run_layers(
    language: LanguageModel, inputs_TD: Tensor, positions_T: Tensor, attend: Attend
) -> Tensor:
    """The hidden states `TD` after the final norm; `attend` says which positions see which."""
    trunk = language.lm.model
    cosines, sines = trunk.rotary_emb(inputs_TD, positions_T)
    angles = cosines[:, None], sines[:, None]
    states_TD = inputs_TD
    for number, layer in enumerate(cast("list[Any]", trunk.layers)):
        queries, keys, values = before_attention(layer, states_TD, *angles)
        states_TD = after_attention(layer, states_TD, attend(number, queries, keys, values))
    return _normed(states_TD, trunk.norm)


def before_attention(
    layer: Any, states_TD: Tensor, cosines: Tensor, sines: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The queries, keys and values `THK` of a layer, turned by their positions."""
    attention = layer.self_attn
    normed_TD = _normed(states_TD, layer.input_layernorm)
    queries, keys, values = (
        _projected(normed_TD, linear).unflatten(-1, (-1, attention.head_dim))
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    return _turned(queries, cosines, sines), _turned(keys, cosines, sines), values


def after_attention(layer: Any, states_TD: Tensor, mixed_THK: Tensor) -> Tensor:
    """The states `TD` after a layer, of whose attention `mixed_THK` came."""
    states_TD = states_TD + _projected(mixed_THK.flatten(1), layer.self_attn.o_proj)
    normed_TD, mlp = _normed(states_TD, layer.post_attention_layernorm), layer.mlp
    gates = mlp.act_fn(_projected(normed_TD, mlp.gate_proj))
    return states_TD + _projected(gates * _projected(normed_TD, mlp.up_proj), mlp.down_proj)


def _projected(states_TD: Tensor, linear: Any) -> Tensor:
    """What a linear module gives; for few rows on a processor with the operands exchanged.

    MKL is slow where few rows meet a large matrix: a step of 8 rows takes 62 ms this way and 79 ms
    the usual way (100 million parameters, float32, one core).
    """
    is_few = FEW_ROWS[0] <= len(states_TD) <= FEW_ROWS[1] and states_TD.device.type == "cpu"
    if is_few and type(linear) is nn.Linear and linear.bias is None:  # not where LoRA sits on it
        return torch.mm(linear.weight, states_TD.t().contiguous()).t().contiguous()
    return linear(states_TD)


def _normed(states_TD: Tensor, norm: Any) -> Tensor:
    return functional.rms_norm(
        states_TD, (states_TD.shape[-1],), norm.weight, norm.variance_epsilon
    )


def _turned(states_THK: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    first, second = states_THK.chunk(2, dim=-1)
    return states_THK * cosines + torch.cat((-second, first), dim=-1) * sines


class KeyValues:
    """Keys and values of every layer for `num_rows` sequences, all of the same kept length.

    The memory has room ahead: a step writes one position and copies nothing. What was never written
    is zero, so that masked positions stay finite.
    """

    def __init__(self, language: LanguageModel, num_rows: int, length: int) -> None:
        sizes = language.lm.config
        weight = language.lm.model.embed_tokens.weight
        heads = sizes.num_attention_heads
        shape = (2, num_rows, heads, length + ROOM, sizes.hidden_size // heads)
        self.length = length
        self._layers = [weight.new_zeros(shape) for _ in range(sizes.num_hidden_layers)]

    def kept(self, layer: int, length: int) -> tuple[Tensor, Tensor]:
        """The first `length` keys and values `BHSK` of all rows, as views to read or to write."""
        keys, values = self._layers[layer][:, :, :, :length]
        return keys, values

    def extend(self, added: int) -> None:
        """Counts `added` more positions as kept, in new memory where the old is full."""
        self.length += added
        self.reserve(self.length)

    def reserve(self, length: int) -> None:
        """Makes room for `length` positions."""
        capacity = self._layers[0].shape[3]
        if length <= capacity:
            return
        grown = max(length + ROOM, capacity * 3 // 2)
        for number, old in enumerate(self._layers):
            new = old.new_zeros((*old.shape[:3], grown, old.shape[4]))
            new[:, :, :, :capacity] = old
            self._layers[number] = new

    def select(self, index: Tensor) -> None:
        """Keeps these rows in this order; a row may be named several times."""
        for number, old in enumerate(self._layers):
            self._layers[number] = old.index_select(1, index)

    def reorder(self, index: Tensor, start: int) -> None:
        """Like `select` of as many rows, but moves only the positions from `start` on."""
        for memory in self._layers:
            recent = memory[:, :, :, start : self.length]
            recent.copy_(recent.index_select(1, index))
