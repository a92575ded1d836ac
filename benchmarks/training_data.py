"""What data cost a training: the loader alone against the tiny model, and cached features against a frozen encoder.

    python -m benchmarks.training_data

- loader: positions per second of reader and collation, in one thread, against those that a step of the recipe `tiny`
  consumes, on synthetic pairs packed into rows. Rounds alternate; ratios are within a round.
- cache: steps per second with precomputed float32 features against the frozen visual encoder in place, at the
  proportions of `emu_llama_1b` (widths by 16, layers by 4; 257 patches per image). The losses must be bit-equal.

Prints JSON lines.
"""

import json
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from emu.config import EmuConfig, emu_llama_1b_config
from emu.models.visual import normalise, preprocessing
from emu.recipes import tiny
from emu.tokenizer import EmuTokenizer
from emu.train.feature_encoders import FeatureEncoder
from emu.train.loop import Run, TrainPlan
from emu.train.plan import open_stream
from emu.train.start import learned_tokenizer, start_tower
from emu.train.step import Ranks
from pipelines.core.run import extend, run
from pipelines.miniworld.config import PairsConfig
from pipelines.miniworld.pairs import pairs_pipeline
from pipelines.transforms.features import FeatureStage
from schemas.features import FeatureInfo

CPU = torch.device("cpu")


@dataclass(frozen=True)
class TrainingDataBenchmark:
    """Measures the loader and the feature cache."""

    subjects: tuple[Literal["loader", "cache"], ...] = ("loader", "cache")
    num_rounds: int = 5
    """Rounds of both sides; medians of the ratios are printed."""
    steps_per_round: int = 8
    """Steps of a side in a round."""
    num_pairs: int = 400
    """Synthetic pairs."""


def run_benchmark(options: TrainingDataBenchmark) -> Iterator[dict[str, Any]]:
    """A record per subject."""
    torch.set_num_threads(1)
    for subject in options.subjects:
        with tempfile.TemporaryDirectory() as folder:
            plan = _plan(Path(folder), options)
            found = (_loader if subject == "loader" else _cache)(plan, options)
        yield {
            "benchmark": f"training_{subject}",
            "machine": platform.machine(),
            "torch": torch.__version__,
            **found,
        }


def _plan(root: Path, options: TrainingDataBenchmark) -> TrainPlan:
    """The recipe `tiny` on synthetic pairs."""
    data, tokenizer, recipe = str(root / "pairs"), root / "tokenizer.model", tiny()
    run(pairs_pipeline(PairsConfig(num_pairs=options.num_pairs)), data, progress=False)
    learned_tokenizer([data], tokenizer, recipe.model.language.vocab_size)
    pieces = EmuTokenizer.load(tokenizer).num_pieces
    model = replace(recipe.model, language=replace(recipe.model.language, vocab_size=pieces))
    train = replace(recipe.train, steps=10_000, num_threads=0, checkpoint_every=10_000)
    return TrainPlan(data, str(root / "out"), str(tokenizer), model, recipe.sequence, train)


def _loader(plan: TrainPlan, options: TrainingDataBenchmark) -> dict[str, Any]:
    alone = open_stream(plan, None, Ranks())
    training = Run(plan, Ranks(), CPU, time.perf_counter)
    rates: dict[str, list[float]] = {"loader": [], "model": []}
    for _ in range(options.num_rounds):
        began, positions = time.perf_counter(), 0
        for _ in range(options.steps_per_round):
            positions += sum(int(b.attention_mask_BL.sum()) for b in alone.next_step())
        rates["loader"].append(positions / (time.perf_counter() - began))
        seconds, positions = 0.0, 0
        for _ in range(options.steps_per_round):
            batches = training.stream.next_step()
            began = time.perf_counter()
            positions += training.stepper.step(batches, training.step).num_positions
            seconds += time.perf_counter() - began
        rates["model"].append(positions / seconds)
    training.close()
    ratios = [one / other for one, other in zip(rates["loader"], rates["model"], strict=True)]
    return {
        "positions_per_s": {name: round(statistics.median(r)) for name, r in rates.items()},
        "loader_to_model": round(statistics.median(ratios), 2),
        "rounds": [round(ratio, 2) for ratio in ratios],
    }


def _small(config: EmuConfig) -> EmuConfig:
    """The proportions of `emu_llama_1b` with widths divided by 16 and layers by 4."""
    large = emu_llama_1b_config()
    vision = replace(
        large.vision,
        width=large.vision.width // 16,
        layers=large.vision.layers // 4,
        heads=4,
        mlp_hidden=large.vision.mlp_hidden // 16,
    )
    former = replace(
        large.former,
        d_model=large.former.d_model // 16,
        d_kv=16,
        num_heads=large.former.d_model // 256,
        num_layers=large.former.num_layers // 4,
        d_ff=large.former.d_ff // 16,
    )
    language = replace(
        config.language,
        hidden_size=large.language.hidden_size // 16,
        num_layers=large.language.num_layers // 4,
        num_heads=4,
        intermediate_size=large.language.intermediate_size // 16,
    )
    return replace(config, vision=vision, former=former, language=language, decoder=None)


def _cache(plan: TrainPlan, options: TrainingDataBenchmark) -> dict[str, Any]:
    train = replace(plan.train, freeze_vision=True, batch_size=8, row_length=1024)
    sequence = replace(plan.sequence, pair_length=96)
    plan = replace(plan, model=_small(plan.model), train=train, sequence=sequence)
    _precompute(plan)
    sides = {
        "in_place": replace(plan, out=f"{plan.out}_in_place"),
        "features": replace(plan, out=f"{plan.out}_features", use_features=True),
    }
    runs = {name: Run(side, Ranks(), CPU, time.perf_counter) for name, side in sides.items()}
    rates: dict[str, list[float]] = {name: [] for name in runs}
    losses: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.num_rounds):
        for name, training in runs.items():
            began = time.perf_counter()
            for _ in range(options.steps_per_round):
                training.advance()
                losses[name].append(training.row["loss"])
            rates[name].append(options.steps_per_round / (time.perf_counter() - began))
    for training in runs.values():
        training.close()
    assert losses["in_place"] == losses["features"], "bit-equal losses"
    ratios = [f / i for f, i in zip(rates["features"], rates["in_place"], strict=True)]
    return {
        "steps_per_s": {name: round(statistics.median(r), 2) for name, r in rates.items()},
        "features_to_in_place": round(statistics.median(ratios), 2),
        "rounds": [round(ratio, 2) for ratio in ratios],
        "losses_equal": len(losses["features"]),
    }


def _precompute(plan: TrainPlan) -> None:
    """Float32 features of the encoder that the run starts from."""
    vision = plan.model.vision
    tower, words = start_tower(plan.model, plan.train.seed, None), preprocessing(vision.image_size)
    encoder = FeatureEncoder(
        tower, partial(normalise, side=vision.image_size), words, "float32", with_tokens=True
    )
    sizes = (vision.embed_dim, vision.num_tokens, vision.width)
    info = FeatureInfo("tower", encoder.weights_sha256, words, "float32", *sizes, "float32")
    assert isinstance(plan.data, str)
    extend(FeatureStage(info, lambda: encoder, batch_size=16), plan.data, progress=False)


if __name__ == "__main__":
    for record in run_benchmark(tyro.cli(TrainingDataBenchmark)):
        print(json.dumps(record), flush=True)
