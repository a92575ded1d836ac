"""The decode state of a batch of sequences: one KV cache for the steps of text and of visual embeddings.

LLaMA's modules are used as they are (LoRA included); only the loop over the layers is written here. So the prompts of
several sequences run side by side without padding, and keys and values are written directly into the cache.

Shapes: B rows (sequences), T positions of any sequences side by side, S positions of a sequence in the cache (padding
included), Q causal queries, H heads, K width of a head, D language width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from itertools import accumulate, chain, pairwise
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import scaled_dot_product_attention

from emu.generate.prompts import EncodedPrompt
from emu.models.emu import Emu
from emu.models.language_model import LanguageModel

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""Attention of a layer: from its number and its queries, keys and values `THK` to the mixed values `THK`."""

Project = Callable[[Tensor, Any], Tensor]
"""The output of a linear module for states `TD`."""

FEW_ROWS = (5, 32)  # where the transposed product is faster on an Intel CPU
VECTOR = 32  # elements that torch's activations take at once on a CPU, at most
SPARE_POSITIONS = 64  # allocated beyond what is needed
STEADY_ROWS = 4  # from so many on, MKL sums a row in the same order whatever the number of rows
MAX_IMAGES = 32  # in one batch of the visual encoder


def projected(states_TD: Tensor, linear: Any) -> Tensor:
    """The output of a linear module; for few rows on an Intel CPU with the operands exchanged.

    MKL is slow there at multiplying few rows with a large matrix: a step of 8 rows takes 62 ms this way
    and 79 ms the usual way (100 million parameters, float32, one core). On an AMD EPYC it is the
    reverse: the products of 8 rows take 32 ms this way and 13 ms the usual way.
    """
    is_few = FEW_ROWS[0] <= len(states_TD) <= FEW_ROWS[1] and states_TD.device.type == "cpu"
    is_plain = type(linear) is nn.Linear and linear.bias is None  # not with LoRA
    if is_few and is_plain and is_intel():
        return torch.mm(linear.weight, states_TD.t().contiguous()).t().contiguous()
    return linear(states_TD)


@functools.cache
def is_intel() -> bool:
    """Whether the processor is Intel's, for whose kernels MKL chooses differently."""
    path = Path("/proc/cpuinfo")
    return path.exists() and "GenuineIntel" in path.read_text()


def steadily_projected(states_TD: Tensor, linear: Any) -> Tensor:
    """The output of a linear module, to the same bits for a row whatever rows are beside it.

    That holds for MKL in float32 on a CPU. It costs the time of `STEADY_ROWS` rows for fewer, and
    the faster product for few rows.
    """
    missing = STEADY_ROWS - len(states_TD)
    if missing <= 0:
        return linear(states_TD)
    return linear(functional.pad(states_TD, (0, 0, 0, missing)))[: len(states_TD)]


def run_layers(
    language: LanguageModel,
    inputs_TD: Tensor,
    positions_T: Tensor,
    attend: Attend,
    project: Project = projected,
) -> Tensor:
    """The hidden states `TD` after the final norm; `attend` decides which positions see which."""
    trunk = language.lm.model
    cosines, sines = trunk.rotary_emb(inputs_TD, positions_T)
    angles = cosines[:, None], sines[:, None]
    states_TD = inputs_TD
    for number, layer in enumerate(cast("list[Any]", trunk.layers)):
        queries, keys, values = before_attention(layer, states_TD, *angles, project)
        mixed_THK = attend(number, queries, keys, values)
        states_TD = after_attention(layer, states_TD, mixed_THK, project)
    return _normed(states_TD, trunk.norm)


def before_attention(
    layer: Any, states_TD: Tensor, cosines: Tensor, sines: Tensor, project: Project = projected
) -> tuple[Tensor, Tensor, Tensor]:
    """The queries, keys and values `THK` of a layer, rotated by their positions."""
    attention = layer.self_attn
    normed_TD = _normed(states_TD, layer.input_layernorm)
    queries, keys, values = (
        project(normed_TD, linear).unflatten(-1, (-1, attention.head_dim))
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    return _rotated(queries, cosines, sines), _rotated(keys, cosines, sines), values


def after_attention(
    layer: Any, states_TD: Tensor, mixed_THK: Tensor, project: Project = projected
) -> Tensor:
    """The states `TD` after a layer whose attention gave `mixed_THK`."""
    states_TD = states_TD + project(mixed_THK.flatten(1), layer.self_attn.o_proj)
    normed_TD, mlp = _normed(states_TD, layer.post_attention_layernorm), layer.mlp
    gates = _activated(project(normed_TD, mlp.gate_proj), mlp.act_fn)
    return states_TD + project(gates * project(normed_TD, mlp.up_proj), mlp.down_proj)


def _activated(states_TF: Tensor, activation: Any) -> Tensor:
    """The activation; torch rounds the last elements of a tensor otherwise if vectors do not divide their number."""
    missing = -states_TF.numel() % VECTOR if states_TF.device.type == "cpu" else 0
    if not missing:  # as in all models of usual widths
        return activation(states_TF)
    padded = functional.pad(states_TF.flatten(), (0, missing))
    return activation(padded)[: states_TF.numel()].view_as(states_TF)


def _normed(states_TD: Tensor, norm: Any) -> Tensor:
    return functional.rms_norm(
        states_TD, (states_TD.shape[-1],), norm.weight, norm.variance_epsilon
    )


def _rotated(states_THK: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    first, second = states_THK.chunk(2, dim=-1)
    return states_THK * cosines + torch.cat((-second, first), dim=-1) * sines


class KVCache:
    """Keys and values of every layer for `num_rows` sequences, all of the same length.

    Memory is allocated ahead: a step writes one position and copies nothing. What was never written
    is zero, so that masked positions stay finite.
    """

    def __init__(self, language: LanguageModel, num_rows: int, length: int) -> None:
        sizes = language.lm.config
        weight = language.lm.model.embed_tokens.weight
        heads = sizes.num_attention_heads
        shape = (2, num_rows, heads, length + SPARE_POSITIONS, sizes.hidden_size // heads)
        self.length = length
        self._layers = [weight.new_zeros(shape) for _ in range(sizes.num_hidden_layers)]

    def view(self, layer: int, length: int) -> tuple[Tensor, Tensor]:
        """The first `length` keys and values `BHSK` of all rows, as views to read or write."""
        keys, values = self._layers[layer][:, :, :, :length]
        return keys, values

    def extend(self, added: int) -> None:
        """Adds `added` positions, in larger memory where the old is full."""
        self.length += added
        self.reserve(self.length)

    def reserve(self, length: int) -> None:
        """Allocates memory for at least `length` positions."""
        capacity = self._layers[0].shape[3]
        if length <= capacity:
            return
        grown = max(length + SPARE_POSITIONS, capacity * 3 // 2)
        for number, old in enumerate(self._layers):
            new = old.new_zeros((*old.shape[:3], grown, old.shape[4]))
            new[:, :, :, :capacity] = old
            self._layers[number] = new

    def select(self, index: Tensor) -> None:
        """Keeps these rows in this order; a row may appear several times."""
        for number, old in enumerate(self._layers):
            self._layers[number] = old.index_select(1, index)

    def reorder(self, index: Tensor, start: int) -> None:
        """Like `select` of as many rows, but copies only the positions from `start` on."""
        for memory in self._layers:
            recent = memory[:, :, :, start : self.length]
            recent.copy_(recent.index_select(1, index))


class DecodeState:
    """Prompts of different lengths after one run of the model, and what has been fed after them.

    `hidden_BD` is the state after the last position, from which the next token or the next visual
    embedding is predicted. A row gives the same result as alone, to rounding: the prompts run side by side
    without padding; in the cache they end at the same index, and the gap before a shorter one is masked.
    """

    @torch.inference_mode()
    def __init__(self, model: Emu, prompts: Sequence[EncodedPrompt]) -> None:
        """Runs the prompts; the Causal Former sees each image once."""
        self.model = model
        self.device = model.ln_visual.weight.device
        lengths = [len(prompt.ids) for prompt in prompts]
        self._num_prompt = max(lengths)
        self._next_B = torch.tensor(lengths, device=self.device)
        self._gaps_B = self._num_prompt - self._next_B
        self._has_gaps = min(lengths) < self._num_prompt
        self._cache = KVCache(model.language, len(prompts), self._num_prompt)
        hidden_TD = self._run(prompts, lengths)
        self.hidden_BD = hidden_TD[self._next_B.cumsum(0) - 1]

    @property
    def num_rows(self) -> int:
        """Sequences in the batch."""
        return len(self.hidden_BD)

    @torch.inference_mode()
    def feed(self, inputs_BD: Tensor) -> None:
        """Appends one position to every row."""
        index = self._cache.length
        self._cache.extend(1)
        mask_B11S = None
        if self._has_gaps:
            indices_S = torch.arange(index + 1, device=self.device)
            mask_B11S = (indices_S >= self._gaps_B[:, None])[:, None, None]

        def attend(layer: int, queries_BHK: Tensor, keys_BHK: Tensor, values_BHK: Tensor) -> Tensor:
            keys, values = self._cache.view(layer, index + 1)
            keys[:, :, index], values[:, :, index] = keys_BHK, values_BHK
            return scaled_dot_product_attention(
                queries_BHK[:, :, None], keys, values, attn_mask=mask_B11S
            ).squeeze(2)

        self.hidden_BD = run_layers(self.model.language, inputs_BD, self._next_B, attend)
        self._next_B = self._next_B + 1

    @torch.inference_mode()
    def feed_ids(self, ids_B: Sequence[int]) -> None:
        """Appends one token to every row."""
        self.feed(self.model.language.embed(torch.tensor(ids_B, device=self.device)))

    @torch.inference_mode()
    def regress_image(self) -> Tensor:
        """The visual embeddings `BQD` of an image, for rows whose last token is `[IMG]`.

        Each embedding is fed back as the next input (paper section 2.3). All but the last are in the
        cache afterwards; `close_image` feeds the last.
        """
        predicted = [self.model.language.regress(self.hidden_BD)]
        for _ in range(self.model.config.former.num_queries - 1):
            self.feed(predicted[-1])
            predicted.append(self.model.language.regress(self.hidden_BD))
        return torch.stack(predicted, dim=1)

    @torch.inference_mode()
    def close_image(self, embeddings_BQD: Tensor) -> None:
        """Feeds the last embedding and `[/IMG]`, so that text can follow the image."""
        self.feed(embeddings_BQD[:, -1])
        self.feed_ids([self.model.config.special.image_end] * self.num_rows)

    @torch.inference_mode()
    def branch(self, inputs_TD: Tensor, depths_T: Tensor, sees_TT: Tensor) -> Tensor:
        """The hidden states `TD` of positions that branch off after the only row; the cache keeps its length.

        `depths_T` counts from 0 after the row; `sees_TT` says which branched positions each one sees
        in addition to the whole row.
        """
        assert self.num_rows == 1, f"{self.num_rows} rows"
        shared = self._cache.length
        end = shared + len(inputs_TD)
        self._cache.reserve(end)
        mask_TS = torch.cat([sees_TT.new_ones(len(inputs_TD), shared), sees_TT], dim=1)

        def attend(layer: int, queries_THK: Tensor, keys_THK: Tensor, values_THK: Tensor) -> Tensor:
            keys, values = self._cache.view(layer, end)
            keys[0, :, shared:], values[0, :, shared:] = (
                keys_THK.transpose(0, 1),
                values_THK.transpose(0, 1),
            )
            queries_1HTK = queries_THK.transpose(0, 1)[None]
            mixed = scaled_dot_product_attention(queries_1HTK, keys, values, attn_mask=mask_TS)
            return mixed[0].transpose(0, 1)

        return run_layers(self.model.language, inputs_TD, self._next_B + depths_T, attend)

    @torch.inference_mode()
    def select(self, rows: Sequence[int]) -> None:
        """Keeps these rows in this order; a row may appear several times."""
        if rows == list(range(self.num_rows)):
            return
        index = torch.tensor(rows, device=self.device)
        self._cache.select(index)
        self._next_B, self._gaps_B = self._next_B[index], self._gaps_B[index]
        self.hidden_BD = self.hidden_BD[index]

    @torch.inference_mode()
    def reorder(self, rows: Sequence[int]) -> None:
        """Replaces each row by another one of the same prompt, whose cache they share."""
        if rows == list(range(self.num_rows)):
            return
        index = torch.tensor(rows, device=self.device)
        self._cache.reorder(index, self._num_prompt)
        self.hidden_BD = self.hidden_BD[index]

    def _run(self, prompts: Sequence[EncodedPrompt], lengths: list[int]) -> Tensor:
        """The hidden states `TD` of all prompts; writes their keys and values into the cache, right-aligned."""
        ids = list(chain.from_iterable(prompt.ids for prompt in prompts))
        ids_1T = torch.tensor([ids], device=self.device)
        inputs_TD = self.model.embed(ids_1T, self._images(prompts))[0]
        positions_T = torch.cat([torch.arange(length) for length in lengths]).to(self.device)
        bounds = list(pairwise(accumulate(lengths, initial=0)))

        def attend(layer: int, queries_THK: Tensor, keys_THK: Tensor, values_THK: Tensor) -> Tensor:
            cached_keys, cached_values = self._cache.view(layer, self._num_prompt)
            mixed = []
            for row, (start, end) in enumerate(bounds):
                queries, keys, values = (
                    states[start:end].transpose(0, 1)
                    for states in (queries_THK, keys_THK, values_THK)
                )
                cached_keys[row, :, start - end :] = keys
                cached_values[row, :, start - end :] = values
                seen = scaled_dot_product_attention(
                    queries[None], keys[None], values[None], is_causal=True
                )
                mixed.append(seen[0].transpose(0, 1))
            return torch.cat(mixed)

        return run_layers(self.model.language, inputs_TD, positions_T, attend)

    def _images(self, prompts: Sequence[EncodedPrompt]) -> Tensor | None:
        pixels = [image for prompt in prompts for image in prompt.pixels]
        if not pixels:
            return None
        groups = torch.stack(pixels).split(MAX_IMAGES)
        return torch.cat([self.model.encode_images(group.to(self.device)) for group in groups])
