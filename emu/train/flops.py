"""Floating-point operations of a training step: an exact count of the matrix products of every part.

A multiplication with its addition counts as 2. What a step costs follows from five numbers of its batch: positions,
squares of the lengths of its documents, images, text targets and positions that predict a visual embedding. So the
count is five coefficients for the forward pass and five for the backward pass, and any batch is a dot product.

The conventions are those of torch's `FlopCounterMode`, with which the tests compare every kind of batch:

- The square of a document counts in full, although causal attention needs half of it.
- Backward of a matrix product costs twice the forward; of fused attention 2.5 times, as it computes the scores again.
  The Causal Former's self-attention has a trained bias, is not fused, and costs twice.
- A linear layer with frozen weights costs in the backward pass what it costs in the forward pass, for its input; below
  the first LoRA adapter nothing needs a gradient.
- A part whose weights are frozen costs its forward alone; precomputed features cost nothing. Pixels need no gradient.
- Activation checkpointing repeats the forward of each layer up to its last product, whose result nothing needs; that is
  in `recomputed`, not in the model's work.
- Embeddings, norms, softmax and the optimizer are no matrix products and are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from emu.config import (
    AdapterConfig,
    CausalFormerConfig,
    EmuConfig,
    LanguageConfig,
    VisionConfig,
)

FUSED_BACKWARD = 2.5  # of fused attention, in units of its forward
PEAK_TFLOPS = {
    "H200": 989.5,
    "H100": 989.5,
    "A100": 312.0,
    "B200": 2250.0,
    "L40S": 362.0,
}
"""Dense bfloat16 peak by a part of the name of a card, from the data sheets (SXM forms)."""


@dataclass(frozen=True)
class BatchSize:
    """What the cost of a batch depends on, over all its sequences."""

    positions: float = 0
    squares: float = 0
    """Sum of the squared lengths of the documents."""
    images: float = 0
    text_targets: float = 0
    visual_targets: float = 0


@dataclass(frozen=True)
class Cost:
    """Operations per unit of each field of a `BatchSize`."""

    positions: float = 0
    squares: float = 0
    images: float = 0
    text_targets: float = 0
    visual_targets: float = 0

    def of(self, size: BatchSize) -> float:
        """The operations of a batch."""
        return sum(getattr(self, f.name) * getattr(size, f.name) for f in fields(self))


@dataclass(frozen=True)
class StepCost:
    """The cost of the forward pass, of the backward pass, and of what activation checkpointing repeats."""

    forward: Cost
    backward: Cost
    recomputed: Cost

    def model(self, size: BatchSize) -> float:
        """Operations of forward and backward: the work in a model FLOPs utilisation (MFU)."""
        return self.forward.of(size) + self.backward.of(size)

    @property
    def model_of_images(self) -> float:
        """Operations of forward and backward per image."""
        return self.forward.images + self.backward.images

    def executed(self, size: BatchSize) -> float:
        """The same with repeated forwards."""
        return self.model(size) + self.recomputed.of(size)


def step_cost(
    config: EmuConfig,
    freeze_vision: bool = False,
    use_features: bool = False,
    recompute_activations: bool = False,
) -> StepCost:
    """The cost of a step in pretraining, or in instruction tuning if the model has an adapter."""
    if config.adapter is not None:
        return _tuning_cost(config, config.adapter, use_features, recompute_activations)
    products, attention = tower_cost(config.vision)
    patches = patch_cost(config.vision)
    tower = 0.0 if use_features else patches + products + attention
    is_trained = not (freeze_vision or use_features)
    tower_backward = patches + 2 * products + FUSED_BACKWARD * attention if is_trained else 0.0
    former, former_fused, head = former_cost(
        config.former, config.vision, config.language.hidden_size
    )
    former_backward = 2 * (former + head) + FUSED_BACKWARD * former_fused
    position, square = language_cost(config.language)
    text = 2.0 * config.language.hidden_size * config.num_embeddings
    visual = 2.0 * config.language.hidden_size**2
    repeated = _repeated(config, products + attention, former + former_fused, position, square)
    if not is_trained:
        repeated = _repeated(config, 0.0, former + former_fused, position, square)
    return StepCost(
        Cost(position, square, tower + former + former_fused + head, text, visual),
        Cost(
            2 * position,
            FUSED_BACKWARD * square,
            tower_backward + former_backward,
            2 * text,
            2 * visual,
        ),
        repeated if recompute_activations else Cost(),
    )


def _repeated(
    config: EmuConfig, tower: float, former: float, position: float, square: float
) -> Cost:
    """What activation checkpointing repeats: the layers without the last product of each."""
    vision, blocks, language = config.vision, config.former, config.language
    tower_last = vision.layers * 2.0 * vision.num_tokens * vision.width * vision.mlp_hidden
    former_last = blocks.num_layers * 2.0 * blocks.num_queries * blocks.d_model * blocks.d_ff
    position_last = language.num_layers * 2.0 * language.hidden_size * language.intermediate_size
    images = max(0.0, tower - tower_last) + former - former_last
    return Cost(position - position_last, square, images)


def _tuning_cost(
    config: EmuConfig, adapter: AdapterConfig, use_features: bool, recompute_activations: bool
) -> StepCost:
    """The cost of a step that trains LoRA alone: no gradient of a frozen weight, none below the first adapter."""
    products, attention = tower_cost(config.vision)
    tower = 0.0 if use_features else patch_cost(config.vision) + products + attention
    width = config.language.hidden_size
    former, former_fused, former_head = former_cost(config.former, config.vision, width)
    position, square = language_cost(config.language)
    num_layers, num = config.language.num_layers, len(adapter.targets)
    pair = 4.0 * width * adapter.rank  # of A and B
    added = num_layers * num * pair
    num_early = sum(name != "o_proj" for name in adapter.targets)
    no_input = num_early or 1  # adapters of the first layer whose input needs no gradient
    unneeded = (6.0 if num_early else 8.0) * width**2 + no_input * pair / 2
    text = 2.0 * width * config.num_embeddings
    visual = 2.0 * width**2
    last = num_layers * 2.0 * width * config.language.intermediate_size
    repeated = Cost(position + added - last, square) if recompute_activations else Cost()
    fused_layers = num_layers if num_early else num_layers - 1
    return StepCost(
        Cost(position + added, square, tower + former + former_fused + former_head, text, visual),
        Cost(
            position + 2 * added - unneeded,
            FUSED_BACKWARD * square * fused_layers / num_layers,
            0.0,
            text,
            visual if config.objective.visual_weight else 0.0,
        ),
        repeated,
    )


def patch_cost(config: VisionConfig) -> float:
    """Forward of the patch embedding of an image."""
    return config.num_patches * 2.0 * 3 * config.patch_size**2 * config.width


def tower_cost(config: VisionConfig) -> tuple[float, float]:
    """Forward of the blocks of the visual encoder for an image: linear layers, and attention."""
    tokens, width = config.num_tokens, config.width
    products = 2.0 * tokens * width * (4 * width + 2 * config.mlp_hidden)
    return config.layers * products, config.layers * 4.0 * tokens**2 * width


def former_cost(
    config: CausalFormerConfig, vision: VisionConfig, language_width: int
) -> tuple[float, float, float]:
    """Forward of the Causal Former for an image: its blocks without fused attention, that attention, its projection."""
    queries, tokens = config.num_queries, vision.num_tokens
    inner = config.num_heads * config.d_kv
    products = 2.0 * queries * config.d_model * (4 * inner + 2 * inner + 2 * config.d_ff)
    products += 2.0 * tokens * vision.width * 2 * inner  # keys and values of the patches
    products += 4.0 * queries**2 * inner  # self-attention
    fused = 4.0 * queries * tokens * inner
    head = 2.0 * queries * config.d_model * language_width
    return config.num_layers * products, config.num_layers * fused, head


def language_cost(config: LanguageConfig) -> tuple[float, float]:
    """Forward of the layers of the language model: per position, and per square of a document's length."""
    width = config.hidden_size
    position = 2.0 * (4 * width**2 + 3 * width * config.intermediate_size)
    return config.num_layers * position, config.num_layers * 4.0 * width


def known_peak_tflops(card: str) -> float | None:
    """The dense bfloat16 peak of a card by its name, in TFLOP/s; None for one that is not known."""
    return next((peak for name, peak in PEAK_TFLOPS.items() if name in card), None)
