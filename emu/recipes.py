"""Recipes: a training run as a function that returns one frozen dataclass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from emu.config import (
    EmuConfig,
    emu_14b_config,
    emu_llama_1b_config,
    emu_llama_7b_config,
    tiny_config,
)
from emu.data.sequence import SequenceConfig
from emu.train.config import OptimConfig, TrainConfig


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
