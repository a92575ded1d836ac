"""`emu train --plan`: whether a recipe fits a cluster, what a step costs, and how long the run takes.

The sizes of sequences are typical ones of each format at the recipe's lengths, not measured on data. Seconds follow
from the exact count of operations and an assumed utilisation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from emu.config import EmuConfig, SequenceConfig
from emu.recipes import TrainConfig
from emu.train.flops import BatchSize, StepCost, step_cost
from emu.train.memory import Memory, MicroBatch, plan_memory

WORDS = 20  # of a caption, in tokens
DOCUMENT = (600, 3)  # tokens and images of an interleaved document within its window
DIALOGUE = (400, 250, 1)  # tokens, those of answers among them, and images
NUM_FRAMES = 8  # of a video in a dialogue
TEXT_ALONE = ("text", "sharegpt", "alpaca")
RESERVED_GB = 4.0  # CUDA context, NCCL, fragmentation
GB = 1e9


@dataclass(frozen=True)
class Cluster:
    """The GPUs of a run."""

    num_workers: int
    memory_gb: float = 80.0
    peak_tflops: float = 989.5
    """Dense bfloat16 peak of a GPU."""
    utilisation: float = 0.4
    """Assumed share of the peak that is reached."""


@dataclass(frozen=True)
class Forecast:
    """What a run needs on a cluster."""

    memory: Memory
    tflops: float
    """Model operations of an average step over all workers, in 10^12."""
    step_s: float
    days: float
    limit_gb: float

    @property
    def fits(self) -> bool:
        """True if the peak leaves room for what is not counted."""
        return self.memory.peak / GB <= self.limit_gb


def typical_sequence(corpus: str, model: EmuConfig, lengths: SequenceConfig) -> BatchSize:
    """A typical sequence of a corpus by what its name begins with; of an unknown one that of a document."""
    block = model.former.num_queries + 2
    if model.adapter is not None:
        words, answers, images = DIALOGUE
        images = NUM_FRAMES if "video" in corpus else images
        images = 0 if corpus.startswith(TEXT_ALONE) else images
        positions = min(lengths.dialogue_length, 2 + words + images * block)
        images = min(images, (positions - 2) // block)
        return BatchSize(positions, positions**2, images, min(answers, positions), images * block)
    if corpus.startswith(("laion", "pair")):
        words, images, limit = WORDS, 1, lengths.pair_length
    elif corpus.startswith("webvid"):
        words, images, limit = WORDS, lengths.clip_frames, lengths.clip_length
    elif corpus.startswith("yt_storyboard"):
        limit = lengths.storyboard_length
        images = max(1, limit // (2 * block))
        words = limit - images * block
    else:
        words, images = DOCUMENT
        limit = (lengths.window_length + lengths.sampled_length) // 2
    positions = min(limit, 2 + words + images * block)
    images = min(images, (positions - 2) // block)
    text = positions - 1 - images * block
    return BatchSize(positions, positions**2, images, text, 33 / 32 * images * (block - 2))


def forecast(
    model: EmuConfig,
    config: TrainConfig,
    lengths: SequenceConfig,
    cluster: Cluster,
    corpora: Sequence[tuple[str, float]],
    is_sharded: bool = False,
    use_features: bool = False,
) -> Forecast:
    """The needs of a run on `corpora`, pairs of a name and a weight."""
    frozen = config.freeze_vision or use_features
    cost = step_cost(model, frozen, use_features, config.recompute_activations)
    total = sum(weight for _, weight in corpora)
    done = executed = 0.0
    for name, weight in corpora:
        number = config.batch_size_of(name) * config.num_micro * weight / total
        size = typical_sequence(name, model, lengths)
        done += number * cost.model(size)
        executed += number * cost.executed(size)
    micro = [_micro_batch(name, model, config, lengths) for name, _ in corpora]
    memory = max(
        (
            plan_memory(model, config, batch, cluster.num_workers, is_sharded, use_features)
            for batch in micro
        ),
        key=lambda memory: memory.peak,
    )
    step_s = executed / (cluster.peak_tflops * 1e12 * cluster.utilisation)
    return Forecast(
        memory,
        done * cluster.num_workers / 1e12,
        step_s,
        step_s * config.steps / 86_400,
        cluster.memory_gb - RESERVED_GB,
    )


def _micro_batch(
    corpus: str, model: EmuConfig, config: TrainConfig, lengths: SequenceConfig
) -> MicroBatch:
    """The largest micro-batch: a full row, or padded sequences of a typical length."""
    size = typical_sequence(corpus, model, lengths)
    number = config.batch_size_of(corpus)
    if config.row_length:
        number = min(number, config.num_rows * config.row_length // int(size.positions))
    positions = round(number * size.positions)
    return MicroBatch(positions, round(number * size.images), round(number * size.text_targets))


def alternatives(
    model: EmuConfig,
    config: TrainConfig,
    lengths: SequenceConfig,
    cluster: Cluster,
    corpora: Sequence[tuple[str, float]],
    is_sharded: bool = False,
) -> Iterator[str]:
    """Changes with which a run that does not fit would fit."""
    changes = {
        "--train.recompute-activations": replace(config, recompute_activations=True),
        "--train.num-rows 1 --train.recompute-activations": replace(
            config, num_rows=1, recompute_activations=True
        ),
        "--train.freeze-vision --train.num-rows 1 --train.recompute-activations": replace(
            config, freeze_vision=True, num_rows=1, recompute_activations=True
        ),
    }
    for options, changed in changes.items():
        found = forecast(model, changed, lengths, cluster, corpora, is_sharded)
        if changed != config and found.fits:
            yield options
    for num_workers in (2, 4, 8, 16, 32, 64, 128, 256):
        larger = replace(cluster, num_workers=num_workers)
        found = forecast(model, config, lengths, larger, corpora, is_sharded=True)
        if found.fits:
            yield (
                f"weights sharded over {num_workers} GPUs or more (--parallel fsdp --num-workers {num_workers}): "
                f"{found.memory.peak / GB:.1f} GB each"
            )
            return


def described(found: Forecast, config: TrainConfig, cluster: Cluster, cost: StepCost) -> str:
    """The forecast as lines for a terminal."""
    memory = found.memory
    parts = ("weights", "gradients", "optimizer", "activations", "loss")
    lines = [f"{name:<12} {getattr(memory, name) / GB:8.2f} GB" for name in parts]
    return "\n".join(
        [
            f"memory per GPU, of {cluster.num_workers}:",
            *lines,
            f"{'peak':<12} {memory.peak / GB:8.2f} GB of {found.limit_gb:.1f} GB",
            f"image        {cost.model(BatchSize(images=1)) / 1e12:8.3f} TFLOP forward and backward",
            f"step         {found.tflops:8.1f} TFLOP over all GPUs, {found.step_s:.2f} s at "
            f"{cluster.utilisation:.0%} of {cluster.peak_tflops:g} TFLOP/s",
            f"run          {config.steps:,} steps, {found.days:.1f} days",
        ]
    )
