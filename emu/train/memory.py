"""What a run needs before it starts: memory per GPU, operations per step, days.

Weights, gradients and optimizer state are counted from the model's parameters. Activations are measured without
computing: one and two layers of each part run on fake tensors (torch's `FakeTensorMode`), and what autograd saves is
summed; the rest is linear in layers, positions and images. So the plan follows the code, not a formula for it.

Of a step these moments are compared: when the backward pass begins, all activations are held; then language model,
Causal Former and tower one after the other give up theirs and have gradients instead. The highest is the peak. A model
with an adapter is planned as instruction tuning: the adapter alone has gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef

from emu.config import EmuConfig
from emu.models.attention import documents_of
from emu.models.cross_entropy import default_rows
from emu.models.emu import Emu
from emu.models.language_model import LORA, LanguageModel, add_adapter
from emu.models.visual import CausalFormer, VisualEncoder
from emu.recipes import TrainConfig
from emu.train.start import train_adapter_alone

FLOAT = 4  # bytes of weights, gradients and optimizer state
MOMENTS = 2 * FLOAT
HALF = 2


@dataclass(frozen=True)
class MicroBatch:
    """The sizes of the largest micro-batch of a rank."""

    positions: int
    images: int
    text_targets: int


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU at the peak of a step."""

    weights: float
    gradients: float
    """All of them, and the buckets in which DistributedDataParallel reduces them."""
    optimizer: float
    activations: float
    loss: float
    """The chunk of logits and the gradient of the output head."""
    peak: float
    """Less than the sum: activations are given up as gradients appear."""


@dataclass(frozen=True)
class Part:
    """What a part of the model needs."""

    weights: int
    trained: int
    fixed: float
    """Bytes of activations that do not depend on the batch: copies of weights in half precision."""
    per_unit: float
    """Bytes of activations per image, or per position of the language model."""
    transient: float = 0.0
    """Bytes per unit while a layer is recomputed."""


def plan_memory(
    model: EmuConfig,
    config: TrainConfig,
    batch: MicroBatch,
    num_workers: int = 1,
    is_sharded: bool = False,
    use_features: bool = False,
    device: str = "cuda",
) -> Memory:
    """The memory of a worker; `is_sharded` spreads weights, gradients and optimizer state over all of them."""
    is_frozen = config.freeze_vision or use_features
    is_half = config.precision == "bfloat16"
    parts = measured_parts(model, is_frozen, is_half, config.recompute_activations)
    units = {"visual": batch.images, "former": batch.images, "language": batch.positions}
    share = 1 / num_workers if is_sharded else 1.0
    weights = sum(part.weights for part in parts.values()) * FLOAT * share
    trained = {name: part.trained * FLOAT * share for name, part in parts.items()}
    buckets = 2 if num_workers > 1 and not is_sharded else 1
    held = {name: part.fixed + part.per_unit * units[name] for name, part in parts.items()}
    extra = {name: part.transient * units[name] for name, part in parts.items()}
    width = model.language.hidden_size
    flowing = 3 * model.language.intermediate_size + 2 * width  # gradients inside a layer
    extra["language"] += flowing * FLOAT * batch.positions
    head = 0 if model.adapter is not None else width * model.num_embeddings * FLOAT
    states = 2 * batch.text_targets * width * FLOAT  # of the rows, and gradients
    rows = min(batch.text_targets, default_rows(model.num_embeddings, device))
    loss = head + rows * model.num_embeddings * FLOAT + states
    optimizer = sum(trained.values()) / FLOAT * MOMENTS
    if is_sharded:  # the gathered layers of the moment: this one and the next, in half precision
        extra = {n: e + 4 * HALF * _layer_weights(model, n) for n, e in extra.items()}
    order = ("language", "former", "visual")
    moments = [sum(held.values()) + loss]
    done, left = 0.0, sum(held.values())
    for name in order:
        moments.append(left + extra[name] + done)
        done += buckets * trained[name]
        left -= held[name]
        moments.append(left + extra[name] + done)
    moments.append(done)
    return Memory(
        weights=weights,
        gradients=buckets * sum(trained.values()),
        optimizer=optimizer,
        activations=sum(held.values()) + max(extra.values()),
        loss=loss,
        peak=weights + optimizer + max(moments),
    )


@lru_cache(16)
def measured_parts(
    model: EmuConfig, is_frozen: bool, is_half: bool, recompute: bool
) -> Mapping[str, Part]:
    """Weights and activations of tower, Causal Former and language model."""
    with torch.device("meta"):
        whole = Emu(replace(model, decoder=None))
    if is_frozen:
        whole.visual.requires_grad_(False)
    is_tuning = model.adapter is not None
    if is_tuning:
        train_adapter_alone(whole)
    vision, former, language = model.vision, model.former, model.language
    width = language.hidden_size
    pixels = (3, vision.image_size, vision.image_size)
    patches = (vision.num_tokens, vision.width)

    def tower(num_layers: int) -> nn.Module:
        return VisualEncoder(replace(vision, layers=num_layers))

    def blocks(num_layers: int) -> nn.Module:
        return CausalFormer(replace(former, num_layers=num_layers), vision.width, width)

    def layers(num_layers: int) -> nn.Module:
        sizes = replace(language, num_layers=num_layers)
        part = LanguageModel(replace(model, decoder=None, language=sizes))
        if model.adapter is not None:
            add_adapter(part, model.adapter)
            for name, weight in part.named_parameters():
                weight.requires_grad_(LORA in name)
        return part

    trained = {
        name: any(weight.requires_grad for weight in getattr(whole, name).parameters())
        for name in ("visual", "former")
    }
    visual = _Saved(tower, _run_images, pixels, vision.layers, is_half)
    causal = _Saved(blocks, _run_images, patches, former.num_layers, is_half)
    text = _Saved(layers, _run_language, (width,), language.num_layers, is_half, not is_tuning)
    return {
        "visual": _part(
            [whole.visual],
            visual if trained["visual"] else None,
            recompute,
            vision.num_tokens * vision.width,
        ),
        "former": _part(
            [whole.former, whole.ln_visual],
            causal if trained["former"] else None,
            recompute,
            former.num_queries * former.d_model,
        ),
        "language": _part([whole.language], text, recompute, width),
    }


def _part(modules: list[nn.Module], saved: _Saved | None, recompute: bool, state: int) -> Part:
    """`state` is the number of values that a layer hands to the next, per unit."""
    weights = [weight for module in modules for weight in module.parameters()]
    total = sum(weight.numel() for weight in weights)
    trained = sum(weight.numel() for weight in weights if weight.requires_grad)
    if saved is None:
        return Part(total, trained, 0.0, 0.0)
    fixed, per_unit, layer = saved.measure()
    if recompute:
        kept = saved.num_layers * state * FLOAT
        return Part(total, trained, 0.0, kept + per_unit - saved.num_layers * layer, layer)
    return Part(total, trained, fixed, per_unit)


def _layer_weights(model: EmuConfig, name: str) -> float:
    """Weights of one layer of a part."""
    vision, former, language = model.vision, model.former, model.language
    if name == "visual":
        return vision.width * (4 * vision.width + 2 * vision.mlp_hidden)
    if name == "former":
        inner = former.num_heads * former.d_kv
        return former.d_model * (6 * inner + 2 * former.d_ff) + 2 * vision.width * inner
    return language.hidden_size * (4 * language.hidden_size + 3 * language.intermediate_size)


def _run_images(part: Any, images: Tensor) -> Tensor:
    return part(images)


def _run_language(part: Any, states_BLD: Tensor) -> Tensor:
    return part.forward_packed(
        states_BLD, documents_of([[states_BLD.shape[1]]], states_BLD.shape[1])
    )


@dataclass(frozen=True)
class _Saved:
    """Measures what autograd saves for a part with few layers, and extends it to all."""

    make: Callable[[int], nn.Module]
    run: Callable[[Any, Tensor], Tensor]
    shape: tuple[int, ...]
    num_layers: int
    is_half: bool
    has_gradient: bool = True
    """Whether the inputs need one, where they are no pixels."""

    def measure(self) -> tuple[float, float, float]:
        """Bytes that do not depend on the batch; bytes per unit, of all layers, and of one layer."""
        one = [self._bytes(1, units) for units in (16, 32)]
        two = [self._bytes(2, units) for units in (16, 32)]
        unit_one, unit_two = (one[1] - one[0]) / 16, (two[1] - two[0]) / 16
        fixed_one, fixed_two = one[0] - 16 * unit_one, two[0] - 16 * unit_two
        more = self.num_layers - 1
        layer = unit_two - unit_one
        return fixed_one + more * (fixed_two - fixed_one), unit_one + more * layer, layer

    def _bytes(self, num_layers: int, units: int) -> float:
        with torch.device("meta"):
            part = self.make(num_layers).train()
        half = torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.is_half)
        with FakeTensorMode(allow_non_fake_inputs=True), half:
            fill_fake(part)
            is_text = len(self.shape) == 1
            shape = (1, units, *self.shape) if is_text else (units, *self.shape)
            inputs = torch.empty(shape, requires_grad=self.has_gradient and len(self.shape) < 3)
            return saved_bytes(part, lambda: self.run(part, inputs))


def fill_fake(part: nn.Module) -> None:
    """Gives a part on the meta device fake weights and buffers."""
    weights = {name: torch.empty(w.shape) for name, w in part.state_dict().items()}
    part.load_state_dict(weights, assign=True)
    for name, buffer in list(part.named_buffers()):
        owner, _, leaf = name.rpartition(".")
        if buffer.is_meta:
            setattr(part.get_submodule(owner), leaf, torch.empty(buffer.shape))


def saved_bytes(part: nn.Module, run: Callable[[], Tensor]) -> float:
    """Bytes of the tensors that a forward saves for its backward, beside the weights; shared memory counts once."""
    own = {StorageWeakRef(weight.untyped_storage()) for weight in part.parameters()}
    seen: dict[StorageWeakRef, Any] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if StorageWeakRef(storage) not in own:
            seen[StorageWeakRef(storage)] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return float(sum(storage.nbytes() for storage in seen.values()))
