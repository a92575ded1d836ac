"""What a run is: its data, model and options as one value, which options determine its weights, and its batches."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal

import torch

from emu.config import EmuConfig, SequenceConfig
from emu.data.batches import BatchStream, Layout
from emu.data.dataset import ShardReader
from emu.data.mixture import Corpus, Mixture, Source
from emu.data.sequence import SequenceMaker
from emu.models.visual import VisualEncoder, preprocessing
from emu.recipes import TrainConfig
from emu.tokenizer import EmuTokenizer
from emu.train.step import Ranks
from emu.weights.store import weights_hash

Resume = Literal["auto", "must", "never"]
HOUSEKEEPING = {
    "checkpoint_every",
    "keep_checkpoints",
    "log_every",
    "num_threads",
    "peak_tflops",
    "max_bad_samples",
    "max_skipped_steps",
}
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
    layout = Layout(
        {name: config.batch_size_of(name) for name in mixture.sources},
        config.row_length,
        config.num_rows,
        is_fixed=torch.cuda.is_available(),
        keeps_global_batch=config.normalisation == "global",
    )
    return BatchStream(mixture, maker, layout, ranks.share, config.num_threads)


def corpora_of(plan: TrainPlan) -> tuple[Corpus, ...]:
    """The corpora of a run, one or several."""
    return (Corpus(plan.data),) if isinstance(plan.data, str) else plan.data


def open_source(
    plan: TrainPlan, corpus: Corpus, tower: VisualEncoder | None, ranks: Ranks
) -> Source:
    """A corpus with its reader and, where the plan uses them, its features."""
    reader = ShardReader(corpus.address, plan.train.seed)
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
    return Source(name, corpus.weight, reader, per_rank * ranks.share.world_size, features)


def configuration(plan: TrainPlan) -> dict[str, Any]:
    """The options that determine the weights of a run, as JSON values."""
    free = HOUSEKEEPING | (CUTTING if plan.train.normalisation == "global" else set())
    chosen = {
        name: value for name, value in dataclasses.asdict(plan.train).items() if name not in free
    }
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
