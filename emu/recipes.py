"""Recipes: a training run as a function that returns one frozen dataclass, and the options of every training.

Command lines show the docstrings of the fields. Nothing here imports torch, so that they answer at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from pydantic import Field
from tyro.constructors import PrimitiveConstructorSpec

from emu.config import (
    AdapterConfig,
    Count,
    EmuConfig,
    Positive,
    SequenceConfig,
    emu_14b_config,
    emu_llama_1b_config,
    emu_llama_7b_config,
    tiny_config,
)
from schemas.validation import Checked

Precision = Literal["float32", "bfloat16"]
Normalisation = Literal["global", "micro_batch"]
Parallel = Literal["auto", "ddp", "fsdp", "hsdp"]
Rate = Annotated[float, Field(ge=0)]
Ratio = Annotated[float, Field(ge=0, le=1, description="a fraction")]
Decay = Annotated[float, Field(ge=0, lt=1)]


def _counts_from_words(words: Sequence[str]) -> dict[str, int]:
    if len(words) % 2:
        raise ValueError(f"{' '.join(words)!r}: give pairs of a name and a number")
    return {name: int(count) for name, count in zip(words[::2], words[1::2], strict=True)}


CountPerCorpus = Annotated[
    Mapping[str, Count],
    PrimitiveConstructorSpec(
        nargs="*",
        metavar="[CORPUS INT ...]",
        instance_from_str=_counts_from_words,
        is_instance=lambda value: isinstance(value, Mapping),
        str_from_instance=lambda value: (
            [str(w) for pair in value.items() for w in pair] or ["none"]
        ),
    ),
]
"""On a command line pairs of words, which replace those of the recipe."""


@dataclass(frozen=True)
class OptimConfig(Checked):
    """AdamW with the paper's parameter groups and schedule (section 3.2)."""

    vision_lr: Rate = 4e-5
    """Peak learning rate of the visual encoder."""
    former_lr: Rate = 1e-4
    """Peak learning rate of `ln_visual` and the Causal Former."""
    language_lr: Rate = 3e-5
    """Peak learning rate of the language model and its heads."""
    regress_lr: Rate | None = None
    """Peak learning rate of the regression head. None: --train.optim.language-lr."""
    betas: tuple[Decay, Decay] = (0.9, 0.98)
    """Exponential decay rates of the first and second moment estimates."""
    eps: Positive = 1e-6
    """Added to the denominator of the update for numerical stability."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    """Decoupled weight decay: each step multiplies a weight by 1 - learning rate * weight decay.
    Not applied to norms, biases, position embeddings, class token, causal queries and token embeddings."""
    clip_norm: Positive = 5.0
    """Maximum norm of the gradient over all weights (5.0 as in Emu2; the paper gives none)."""
    warmup_ratio: Ratio = 0.2
    """Fraction of all steps with linear warm-up of the learning rates; a cosine decay follows."""
    visual_freeze_ratio: Ratio = 0.0
    """Fraction of all steps with learning rate 0 for visual encoder, ln_visual and Causal Former.
    Their warm-up follows. For a language model from scratch.
    The first gradients of such a model would make the visual parts output nothing."""
    final_ratio: Ratio = 0.0
    """Learning rates at the end of the cosine decay, as a fraction of their peaks. 0: decay to zero."""


@dataclass(frozen=True)
class TrainConfig(Checked):
    """Length, batch sizes, precision and checkpoints of a run."""

    steps: Count
    """Total number of optimizer steps. The learning rates are scheduled over all of them."""
    batch_size: Count
    """Sequences per micro-batch and worker, for corpora not named in corpus_batch_size."""
    corpus_batch_size: CountPerCorpus = field(default_factory=dict)
    """Sequences per micro-batch and worker by corpus, such as: laion 128 mmc4 64.
    Pairs are short, documents and clips are long."""
    num_micro: Count = 1
    """Micro-batches per step and worker; their gradients are accumulated."""
    row_length: Annotated[int, Field(ge=0)] = 0
    """Sequences are packed side by side, up to row_length times num_rows positions per micro-batch.
    They do not attend to each other.
    0: padded batches with one sequence per row. The losses are the same."""
    num_rows: Count = 1
    """Factor of row_length. The number of micro-batches follows from the sequences of the step."""
    precision: Precision = "float32"
    """Precision of matrix products. bfloat16: autocast; weights, optimizer state and losses stay float32."""
    normalisation: Normalisation = "global"
    """global: losses are means over all targets of the step, over all workers and micro-batches together.
    micro_batch: the mean of each micro-batch, then the mean of these (as in the released code)."""
    freeze_vision: bool = False
    """Keep the visual encoder frozen. Required for precomputed features."""
    parallel: Parallel = "auto"
    """How several workers share the model. ddp: a full copy on each worker.
    fsdp: weights, gradients and optimizer state are sharded over all workers (FSDP2).
    hsdp: they are sharded within groups of workers, and each group holds a copy.
    auto: fsdp on GPUs, ddp on CPUs."""
    shard_workers: Count | None = None
    """Workers per group for hsdp. None: the workers of a node."""
    recompute_activations: bool = False
    """Activation checkpointing: recompute activations in the backward pass. Slower, far less memory."""
    compile: bool = False
    """Compile the layers with torch.compile (Inductor). The first steps wait for the compiler.
    Losses equal those without it to rounding. CPUs need a C++ compiler, GPUs need Triton."""
    seed: int = 0
    """Seed of initial weights, sample order, sampled sequence formats and dropout masks."""
    checkpoint_every: Count = 100
    """Steps between checkpoints. One more is written at the end."""
    keep_checkpoints: Count = 2
    """Number of newest checkpoints to keep."""
    log_every: Count = 1
    """Steps between lines in metrics.jsonl."""
    num_threads: Annotated[int, Field(ge=0)] = 2
    """Threads per worker that decode the images of the next step. 0: decode in the main thread, between steps."""
    shard_cache: str | None = None
    """Folder of a local disk for whole copies of tars from object stores, shared by the workers of a node.
    None: each sample is read by a byte range."""
    shard_cache_gb: Positive = 100.0
    """Maximum size of the shard cache in GB. It needs room for the shards that are read at a time, 64 per corpus."""
    trackers: tuple[Literal["wandb", "mlflow", "trackio"], ...] = ()
    """Services that also receive the metrics. Each needs its package installed.
    metrics.jsonl is always written; TensorBoard's files are written if TensorBoard is installed."""
    peak_tflops: Positive | None = None
    """Peak of a worker's processor in TFLOP/s, for the MFU in the log.
    None: the known bfloat16 peak of the GPU; no MFU on other processors."""
    collapse_variance: Annotated[float, Field(ge=0)] = 1e-6
    """Raise an alarm if the variance of the regression targets falls below this."""
    held_out: Annotated[float, Field(ge=0, lt=1, description="a fraction")] = 0.0
    """Fraction of the samples of every corpus, 0 to 1, that is held out of training for validation losses.
    The hash of a sample's key decides, so all runs hold out the same samples."""
    validate_every: Count = 100
    """Steps between validations on the held-out samples. One more follows the last step."""
    validation_samples: Count = 64
    """Maximum number of held-out samples per corpus and validation."""
    max_bad_samples: Annotated[int, Field(ge=0)] = 32
    """Leave out at most this number of bad samples in a row per corpus. One more ends the run."""
    max_skipped_steps: Annotated[int, Field(ge=0)] = 4
    """Skip at most this number of steps in a row whose loss or gradient is not finite.
    One more ends the run."""
    optim: OptimConfig = field(default_factory=OptimConfig)

    def batch_size_of(self, corpus: str) -> int:
        """Sequences per micro-batch and worker for a corpus."""
        return self.corpus_batch_size.get(corpus, self.batch_size)


@dataclass(frozen=True)
class VisualTrainConfig(Checked):
    """Length, batch size and learning rate; the defaults are those of the tiny recipe."""

    steps: Count = 1500
    """Number of optimizer steps."""
    batch_size: Count = 32
    """Image-text pairs per step."""
    learning_rate: Positive = 2e-3
    """Peak learning rate of AdamW."""
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] = 0.07
    """Fraction of the steps with linear warm-up. A cosine decay to zero follows."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    """Weight decay of AdamW."""
    clip_norm: Positive = 5.0
    """Maximum norm of the gradient."""
    common_share: Annotated[float, Field(gt=0, le=1, description="a fraction")] = 0.9
    """Tokens that occur in more than this fraction of the captions, 0 to 1, are not predicted."""
    seed: int = 0
    """Seed of initial weights and sample order."""
    num_threads: Annotated[int, Field(ge=0)] = 2
    """Threads that decode the images of the next step. 0: decode in the main thread, between steps."""
    log_every: Count = 10
    """Steps between lines of metrics."""


@dataclass(frozen=True)
class Recipe:
    """Everything about a run except the paths of its data and its output."""

    name: str
    model: EmuConfig
    sequence: SequenceConfig
    train: TrainConfig


def tiny() -> Recipe:
    """Every part of the paper in 1.3 million weights; a few hundred steps take a minute or two.

    Trained from scratch, so its learning rates are higher than the paper's and its warm-up is shorter.
    """
    return Recipe(
        name="tiny",
        model=tiny_config(),
        sequence=SequenceConfig(
            pair_length=96,
            window_length=96,
            sampled_length=96,
            clip_length=96,
            storyboard_length=96,
            dialogue_length=96,
        ),
        train=TrainConfig(
            steps=700,
            batch_size=8,
            row_length=1024,
            optim=OptimConfig(
                vision_lr=7e-4,
                former_lr=7e-4,
                language_lr=2e-3,
                warmup_ratio=0.1,
                visual_freeze_ratio=0.12,
            ),
        ),
    )


def emu_14b() -> Recipe:
    """The paper's model and pretraining (sections 2 and 3.2): 10k steps on 128 GPUs.

    The batch sizes are those of the paper's table, read as sequences per GPU: only then do 10k steps amount to
    its 82 million samples. The warm-up ratio of 0.2 is its 2,000 steps.
    """
    return Recipe(
        name="emu_14b",
        model=emu_14b_config(),
        sequence=SequenceConfig(),
        train=TrainConfig(
            steps=10_000,
            batch_size=64,
            row_length=2048,
            num_rows=2,
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
            held_out=0.001,
            validation_samples=256,
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


def tiny_instruct() -> Recipe:
    """Instruction tuning of a tiny model in a minute or two; rates as far above the paper's as those of `tiny`."""
    return Recipe(
        name="tiny",
        model=replace(tiny_config(instruct=True), adapter=AdapterConfig()),
        sequence=SequenceConfig(dialogue_length=512),
        train=TrainConfig(
            steps=300,
            batch_size=16,
            row_length=1024,
            freeze_vision=True,
            optim=OptimConfig(language_lr=2e-3, warmup_ratio=0.05),
        ),
    )


def emu_14b_instruct() -> Recipe:
    """The paper's instruction tuning: LoRA of rank 16, 10k steps of 128 dialogues on 16 GPUs.

    Batch size, steps and learning rate are not confirmed by the authors; 0.05 of the steps is a warm-up of 500.
    """
    return Recipe(
        name="emu_14b",
        model=emu_14b_config(instruct=True),
        sequence=SequenceConfig(dialogue_length=2048),
        train=TrainConfig(
            steps=10_000,
            batch_size=8,
            row_length=2048,
            precision="bfloat16",
            freeze_vision=True,
            recompute_activations=True,
            checkpoint_every=500,
            num_threads=8,
            optim=OptimConfig(language_lr=1e-5, warmup_ratio=0.05),
        ),
    )


INSTRUCT_RECIPES: dict[str, Callable[[], Recipe]] = {
    "tiny": tiny_instruct,
    "emu_14b": emu_14b_instruct,
}
"""Recipes of instruction tuning; the sizes of the model are those of the model that is tuned."""


RECIPES: dict[str, Callable[[], Recipe]] = {
    "tiny": tiny,
    "emu_llama_1b": emu_llama_1b,
    "emu_llama_7b": emu_llama_7b,
    "emu_14b": emu_14b,
}
