"""Recipes: a training run as a function that returns one frozen dataclass, and the options of such a run.

Command lines show the docstrings of the fields.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from emu.config import (
    EmuConfig,
    emu_14b_config,
    emu_llama_1b_config,
    emu_llama_7b_config,
    tiny_config,
)
from emu.data.sequence import SequenceConfig

Precision = Literal["float32", "bfloat16"]
Normalisation = Literal["global", "micro_batch"]


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with the paper's groups (section 3.2) and schedule."""

    vision_lr: float = 4e-5
    """Peak learning rate of the visual encoder."""
    former_lr: float = 1e-4
    """Peak learning rate of `ln_visual` and the Causal Former."""
    language_lr: float = 3e-5
    """Peak learning rate of the language model and its heads."""
    regress_lr: float | None = None
    """Peak learning rate of the regression head. None: that of the language model."""
    betas: tuple[float, float] = (0.9, 0.98)
    """How much of the running means of gradient and squared gradient each step keeps."""
    eps: float = 1e-6
    """Added to the root of the squared gradient's mean, against division by zero."""
    weight_decay: float = 0.05
    """Part of a weight that a step at rate 1 takes away.
    Not applied to norms, biases, positions, class token, causal queries and embeddings."""
    clip_norm: float = 5.0
    """Largest norm of the gradient over all weights (5.0: Emu2; the paper does not say)."""
    warmup_ratio: float = 0.2
    """Part of all steps over which the rate rises linearly; then it falls along a cosine."""
    visual_wait_ratio: float = 0.0
    """Part of all steps for which visual encoder, ln_visual and Causal Former wait at rate zero, then warm up.
    For a language model that starts from nothing: until it knows words, it teaches them to be out of the way."""
    final_ratio: float = 0.0
    """Where the cosine ends, as a part of the peak."""

    def __post_init__(self) -> None:
        for name in ("warmup_ratio", "visual_wait_ratio", "final_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, give a number in 0..1")
        if self.clip_norm <= 0:
            raise ValueError(f"clip_norm is {self.clip_norm}, give a number above 0")


@dataclass(frozen=True)
class TrainConfig:
    """Length, batches, precision and bookkeeping of a run."""

    steps: int
    """Optimizer steps in all; the schedule is laid over them."""
    batch_size: int
    """Sequences of one micro-batch on one worker, for corpora not named in `corpus_batch_size`."""
    corpus_batch_size: Mapping[str, int] = field(default_factory=dict)
    """The same by corpus, as in: laion 128 mmc4 64. Pairs are short, documents and clips long."""
    num_micro: int = 1
    """Micro-batches that are added up into one step on each worker."""
    precision: Precision = "float32"
    """Of matrix products. bfloat16: under autocast; weights, optimizer and losses stay float32."""
    normalisation: Normalisation = "global"
    """global: losses are means over all targets of the step, however it is cut into workers and micro-batches.
    micro_batch: the mean of each micro-batch, then the mean of those (the released way)."""
    freeze_vision: bool = False
    """Keep the visual encoder as it is; needed for precomputed features."""
    recompute_activations: bool = False
    """Keep no activations inside layers but compute them again: slower, in far less memory."""
    seed: int = 0
    """Of initial weights, order of samples, drawn formats and dropout."""
    checkpoint_every: int = 100
    """Steps between checkpoints; one more is written at the end."""
    keep_checkpoints: int = 2
    """The newest ones that are kept."""
    log_every: int = 1
    """Steps between lines of metrics."""
    num_threads: int = 2
    """Threads a worker that decode the next step's images; 0: between the steps."""
    collapse_variance: float = 1e-6
    """Alarm when the variance of the regression targets falls below this."""
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "num_micro", "checkpoint_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, give at least 1")
        if self.keep_checkpoints < 1:
            raise ValueError(f"keep_checkpoints is {self.keep_checkpoints}, give at least 1")

    def batch_size_of(self, corpus: str) -> int:
        """Sequences of one micro-batch on one worker for a corpus."""
        return self.corpus_batch_size.get(corpus, self.batch_size)


@dataclass(frozen=True)
class Recipe:
    """Everything about a run but where its data and its output are."""

    name: str
    model: EmuConfig
    sequence: SequenceConfig
    train: TrainConfig


def tiny() -> Recipe:
    """Every part of the paper in 1.2 million weights; some hundred steps take a minute or two.

    Trained from scratch, so its learning rates are higher than those of the paper and its warmup short.
    """
    return Recipe(
        name="tiny",
        model=tiny_config(),
        sequence=SequenceConfig(pair_length=96, window_length=96, sampled_length=96),
        train=TrainConfig(
            steps=700,
            batch_size=8,
            optim=OptimConfig(
                vision_lr=7e-4,
                former_lr=7e-4,
                language_lr=2e-3,
                warmup_ratio=0.1,
                visual_wait_ratio=0.12,
            ),
        ),
    )


def emu_14b() -> Recipe:
    """The paper's model and pretraining (sections 2 and 3.2): 10k steps on 128 GPUs.

    The batch sizes are those of the paper's table, read as sequences a GPU: only so do 10k steps come to
    its 82 million samples. The warmup ratio of 0.2 is its 2,000 steps.
    """
    return Recipe(
        name="emu_14b",
        model=emu_14b_config(),
        sequence=SequenceConfig(),
        train=TrainConfig(
            steps=10_000,
            batch_size=64,
            corpus_batch_size={
                "laion": 128,
                "laion_coco": 128,
                "mmc4": 64,
                "webvid": 16,
                "yt_storyboard": 16,
            },
            precision="bfloat16",
            recompute_activations=True,
            checkpoint_every=500,
            num_threads=8,
            optim=OptimConfig(),
        ),
    )


def emu_llama_7b() -> Recipe:
    """The paper's pretraining of the smaller model of its ablations, on LLaMA-7B."""
    return replace(emu_14b(), name="emu_llama_7b", model=emu_llama_7b_config())


def emu_llama_1b() -> Recipe:
    """The paper's pretraining of a model of 2.5 billion weights: EVA-CLIP g/14 and a LLaMA of 1.3 billion."""
    return replace(emu_14b(), name="emu_llama_1b", model=emu_llama_1b_config())


def with_vocabulary(recipe: Recipe, num_pieces: int) -> Recipe:
    """The recipe for a tokenizer of that many pieces."""
    language = replace(recipe.model.language, vocab_size=num_pieces)
    return replace(recipe, model=replace(recipe.model, language=language))


RECIPES: dict[str, Callable[[], Recipe]] = {
    "tiny": tiny,
    "emu_llama_1b": emu_llama_1b,
    "emu_llama_7b": emu_llama_7b,
    "emu_14b": emu_14b,
}
