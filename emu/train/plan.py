"""What a run is: its data, model and options as one value, which options determine its weights, and what is trained.

`TrainPlan` is pretraining and instruction tuning; the visual decoder has a plan of its own (`emu/train/decoder.py`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import nn
from torch.optim import Optimizer

from emu.config import EmuConfig, SequenceConfig
from emu.data.batches import BatchStream, Layout, StepStream
from emu.data.dataset import DatasetError, ShardReader
from emu.data.mixture import Corpus, Mixture, Source, held_out_places
from emu.data.sequence import SequenceMaker
from emu.data.tars import ShardCache
from emu.models.emu import Emu
from emu.models.visual import VisualEncoder, preprocessing
from emu.recipes import TrainConfig
from emu.tokenizer import EmuTokenizer
from emu.train.flops import StepCost, step_cost
from emu.train.optim import make_optimizer, set_learning_rates
from emu.train.parallel import shard, shards_weights, whole
from emu.train.sharded_start import start_sharded
from emu.train.start import check_init, start_model, start_tower
from emu.train.step import EmuLosses, LossModule, Ranks
from emu.weights.layout import new_directory
from emu.weights.store import save_model, weights_hash

Resume = Literal["auto", "must", "never"]
HOUSEKEEPING = {
    "checkpoint_every",
    "compile",
    "keep_checkpoints",
    "log_every",
    "num_threads",
    "peak_tflops",
    "max_bad_samples",
    "max_skipped_steps",
    "parallel",
    "shard_workers",
    "shard_cache",
    "shard_cache_gb",
    "validate_every",
    "validation_samples",
    "trackers",
}
GPU_MULTIPLE = 64
"""Positions of packed rows on a GPU are a multiple of it, for its matrix products and its allocator."""
CUTTING = {"batch_size", "corpus_batch_size", "num_micro", "row_length", "num_rows"}
"""How a global batch is split: may change on resume if losses are normalised over the whole of it."""


@dataclass(frozen=True)
class TrainPlan:
    """Model, data, options and output of a run; sent to workers."""

    data: str | tuple[Corpus, ...]
    """The address of a dataset, or the corpora of a mixture."""
    out: str
    tokenizer: str
    model: EmuConfig
    sequence: SequenceConfig
    train: TrainConfig
    init: str | None = None
    """A model folder to start from; None initialises the weights from the seed."""
    vision_weights: str | None = None
    """A pretrained tag of open_clip or a CLIP checkpoint for the visual encoder; only without `init`."""
    language_weights: str | None = None
    """The folder of a LLaMA for the language model; only without `init`."""
    use_features: bool = False
    resume: Resume = "auto"
    checkpoints: str | None = None
    """Folder or fsspec address of the checkpoints; None: OUT/checkpoints."""
    num_ranks: int | None = None
    """The ranks that the batch sizes of a new run are per; None: those that train. For runs whose ranks vary."""

    def configuration(self) -> dict[str, Any]:
        """The options that determine the weights of the run, as JSON values."""
        return configuration(self)

    def check(self) -> None:
        """Raise, reading the headers of weights and one step of the data, if something does not fit."""
        if self.init is not None:
            check_init(self.model, self.init)
        if self.language_weights is not None:
            from emu.weights.llama import check_llama

            check_llama(self.model, self.language_weights)
        tower = None
        if self.use_features or self.vision_weights is not None:
            tower = start_tower(self.model, self.train.seed, self.init, self.vision_weights)
        in_this_thread = replace(self, train=replace(self.train, num_threads=0))
        stream = open_stream(in_this_thread, tower, Ranks())
        for source in stream.mixture.sources.values() if self.train.held_out else ():
            held_out_places(source, limit=1)
        if not stream.next_step():
            raise DatasetError(
                f"all {len(stream.bad)} samples of the first step are bad; the first: {stream.bad[0].detail}"
            )

    def open(self, ranks: Ranks, device: torch.device) -> Stage:
        """The model in training mode, its optimizer and its data."""
        config = self.train
        parts = self.vision_weights, self.language_weights
        are_shards = shards_weights(config, ranks, device)
        made: list[EmuLosses] = []

        def sharded(model: Emu) -> nn.Module:
            made.append(EmuLosses(model, config.precision, self.use_features))
            shard(made[0], model, config, device)
            return made[0]

        if are_shards:
            model = start_sharded(self.model, config, self.init, device, sharded, *parts)
        else:
            model = start_model(self.model, config, self.init, device, *parts)
        losses = made[0] if made else EmuLosses(model, config.precision, self.use_features)
        optimizer = make_optimizer(model, config.optim)
        return Stage(
            model=model,
            optimizer=optimizer,
            stream=open_stream(self, model.visual, ranks),
            losses=losses,
            set_rates=lambda step: set_learning_rates(optimizer, step, config.steps, config.optim),
            cost=step_cost(self.model, config.freeze_vision, self.use_features),
            publish=lambda folder: publish_model(folder, model, self.tokenizer, ranks.is_first),
            publishes_together=are_shards,
        )


class Plan(Protocol):
    """A run of any stage of training, as one value that is sent to workers."""

    @property
    def out(self) -> str:
        """The folder of the run."""
        ...

    @property
    def train(self) -> TrainConfig:
        """Length, batch sizes, checkpoints and limits."""
        ...

    @property
    def resume(self) -> Resume:
        """Whether a run that is there is resumed."""
        ...

    @property
    def checkpoints(self) -> str | None:
        """Folder or fsspec address of the checkpoints; None: OUT/checkpoints."""
        ...

    def configuration(self) -> dict[str, Any]:
        """The options that determine the weights of the run, as JSON values."""
        ...

    def check(self) -> None:
        """Raise, before any worker starts, if weights, data or lengths do not fit."""
        ...

    def open(self, ranks: Ranks, device: torch.device) -> Stage:
        """What is trained, on one rank."""
        ...


@dataclass(frozen=True)
class Stage:
    """What is trained: the parts in which the stages of training differ; `emu/train/loop.py` has what they share."""

    model: nn.Module
    """What a checkpoint holds."""
    optimizer: Optimizer
    stream: StepStream[Any, Any]
    losses: LossModule[Any]
    set_rates: Callable[[int], float]
    """Sets the learning rates of a step (from 0) and returns their ratio to the peaks."""
    cost: StepCost | None
    """For the operations per second in the log."""
    publish: Callable[[Path], None]
    """Writes the result into OUT/model; called on the first rank."""
    publishes_together: bool = False
    """Whether all ranks call `publish`, because each has a part of the result."""


def publish_model(folder: Path, model: Emu, tokenizer: str, is_first: bool = True) -> None:
    """Write a model directory atomically, on the first rank; one of an earlier run is replaced.

    Of a sharded model all ranks call it, and the first one holds one weight at a time as a whole.
    """
    if not is_first:
        for weight in model.state_dict().values():
            whole(weight)
        return
    with new_directory(folder, is_replaceable=lambda folder: True, overwrite=True) as new:
        save_model(new, model, tokenizer)


def open_stream(plan: TrainPlan, tower: VisualEncoder | None, ranks: Ranks) -> BatchStream:
    """The batches of a rank; precomputed features must come from the frozen encoder `tower`."""
    config = plan.train
    if config.normalisation == "micro_batch" and config.row_length:
        raise ValueError(
            "normalisation micro_batch counts micro-batches, which packing makes from any number of sequences; "
            "give --train.row-length 0 with it"
        )
    tokenizer = EmuTokenizer.load(plan.tokenizer, plan.model.instruct)
    maker = SequenceMaker(plan.sequence, plan.model, tokenizer, config.seed)
    mixture = Mixture([open_source(plan, corpus, tower, ranks) for corpus in corpora_of(plan)])
    if cache := shard_cache(config):
        cache.check([source.reader.largest_window() for source in mixture.sources.values()])
    layout = Layout(
        {name: config.batch_size_of(name) for name in mixture.sources},
        config.row_length * config.num_rows,
        multiple=GPU_MULTIPLE if torch.cuda.is_available() else 1,
        keeps_global_batch=config.normalisation == "global",
    )
    return BatchStream(mixture, maker, layout, ranks.share, config.num_threads)


def shard_cache(config: TrainConfig) -> ShardCache | None:
    """Where whole copies of tars are kept, if that was asked for."""
    if config.shard_cache is None:
        return None
    return ShardCache(Path(config.shard_cache), int(config.shard_cache_gb * 1e9))


def corpora_of(plan: TrainPlan) -> tuple[Corpus, ...]:
    """The corpora of a run, one or several."""
    return (Corpus(plan.data),) if isinstance(plan.data, str) else plan.data


def open_source(
    plan: TrainPlan, corpus: Corpus, tower: VisualEncoder | None, ranks: Ranks
) -> Source:
    """A corpus with its reader and, where the plan uses them, its features."""
    reader = ShardReader(corpus.address, plan.train.seed, cache=shard_cache(plan.train))
    features = None
    if plan.use_features:
        if not plan.train.freeze_vision:
            raise ValueError(
                "precomputed features need a frozen visual encoder: freeze_vision=True"
            )
        from emu.data.features import FeatureReader

        assert tower is not None
        prepared = preprocessing(plan.model.vision.image_size)
        features = FeatureReader(reader.dataset, weights_hash(tower), prepared)
    name = corpus.name or reader.dataset.manifest.corpus
    per_rank = plan.train.batch_size_of(name) * plan.train.num_micro
    num_ranks = plan.num_ranks or ranks.share.world_size
    held_out = plan.train.held_out
    return Source(name, corpus.weight, reader, per_rank * num_ranks, features, held_out=held_out)


def configuration(plan: TrainPlan) -> dict[str, Any]:
    """The options that determine the weights of a run, as JSON values."""
    free = HOUSEKEEPING | (CUTTING if plan.train.normalisation == "global" else set())
    chosen = {
        name: value for name, value in dataclasses.asdict(plan.train).items() if name not in free
    }
    if not plan.train.held_out:  # as in the runs of earlier releases
        del chosen["held_out"]
    tokenizer = EmuTokenizer.load(plan.tokenizer)
    described = {
        "model": json.loads(plan.model.to_json()),
        "sequence": dataclasses.asdict(plan.sequence),
        "train": chosen,
        "tokenizer": hashlib.sha256(tokenizer.model_bytes).hexdigest(),
        "init": plan.init,
        "vision_weights": plan.vision_weights,
        "language_weights": plan.language_weights,
        "use_features": plan.use_features,
    }
    if len(corpora_of(plan)) > 1:
        described["mixture"] = [[c.name or "", c.weight] for c in corpora_of(plan)]
    return json.loads(json.dumps(described))
