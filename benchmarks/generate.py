"""Compares generation with the published loop, as JSON lines; both sides alternate within one process.

    SUBJECTS: image_60 and image_200 (the 32 embeddings of an image after a prompt of 60 or 200 ids, against running
    the whole sequence for each of them), image_60_batch and image_200_batch (8 such prompts at once against the same
    loop one after the other), text (greedy, 8 prompts of mixed length at once, against one after the other with the
    same engine), rank (100 answers to a prompt of 200 ids with an image, against one forward per answer)

The model has about 100 million random parameters in float32. Ratios hold within a run; times need an idle machine.
The limits: a step reads every weight for each new position, the plain loop is bound by multiplications.

On an accelerator there is one subject, limits: tokens, embeddings and images per second, compared with what memory
bandwidth and matrix products allow, e.g. `--device cuda --dtype bfloat16 --size 14b --compile`.
Options: `python -m benchmarks.generate --help`.
"""

import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any, Literal

import torch
import tyro

from benchmarks.device_limits import DeviceOptions, Size, lines
from benchmarks.plain_generate import plain_losses, plain_regress, plain_texts, ranks
from benchmarks.random_emu import (
    num_parameters,
    random_answers,
    random_engine,
    synthetic_image,
    text_of,
)
from emu.generate.engine import Engine
from emu.generate.prompts import TextOptions

Subject = Literal[
    "image_60", "image_200", "image_60_batch", "image_200_batch", "text", "rank", "limits"
]
Side = Callable[[], Any]
TEXT_LENGTHS = (20, 30, 45, 60, 80, 100, 120, 150)  # ids of the prompts
NEW_TOKENS = 64  # the default of the engine
TOLERANCE = 1e-4  # largest difference of regressed embeddings; rounding gives up to 2e-5


@dataclass(frozen=True)
class Comparison:
    """Compares generation with the published loop and prints JSON lines. Subjects: benchmarks/generate.py."""

    subjects: tuple[Subject, ...] = ("image_60", "image_200", "text", "rank")
    """What is compared. limits: the share of its bandwidth that a device reaches; the only subject on accelerators."""
    num_rounds: int = 5
    """Rounds of each subject, alternating between both sides; medians are printed."""
    num_threads: int = 1
    """Threads of torch."""
    seed: int = 0
    """Of the model's weights and of the prompts."""
    device: str = "cpu"
    """A torch device: cpu, cuda, cuda:1."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """For limits; the comparisons are in float32."""
    compile: bool = False
    """For limits: torch.compile around attention and on the U-Net."""
    size: Size = "tiny"
    """For limits: tiny, 1b, or the paper's 14 billion weights (33 GB in bfloat16), random, created on the device."""


@dataclass(frozen=True)
class Cost:
    """Cost of one round; with one thread, CPU time excludes other processes."""

    wall_s: float
    cpu_s: float


def measure(side: Side) -> tuple[Cost, Any]:
    """The cost of one call, and its result."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = side()
    return Cost(time.perf_counter() - wall, time.process_time() - cpu), result


def image_sides(engine: Engine, num_ids: int, num_prompts: int) -> tuple[Side, Side]:
    """Ours and the plain loop for prompts of `num_ids` ids, including `[IMG]`."""
    texts = [text_of(engine, num_ids - 1, seed) for seed in range(num_prompts)]
    encoded = [engine.encode(text, opens_image=True) for text in texts]
    assert all(len(prompt.ids) == num_ids for prompt in encoded)
    return (
        lambda: engine.regress_image(texts),
        lambda: torch.stack([plain_regress(engine.model, prompt) for prompt in encoded]),
    )


def text_sides(engine: Engine) -> tuple[Side, Side]:
    """All prompts at once, and one after the other; all texts have the same length."""
    prompts = [text_of(engine, length, length) for length in TEXT_LENGTHS]
    lengths: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "min_length": NEW_TOKENS + 2}
    return (
        lambda: engine.generate_ids(prompts, TextOptions(**lengths)),
        lambda: plain_texts(engine, prompts, **lengths),
    )


def rank_sides(engine: Engine) -> tuple[Side, Side]:
    """Losses of 100 answers in one call, and with one forward each."""
    per_image = engine.config.former.num_queries + 2
    prompt = [synthetic_image(), text_of(engine, 200 - per_image, 1)]
    assert len(engine.encode(prompt).ids) == 200
    answers = random_answers(100, seed=2)
    return (
        lambda: engine.candidate_losses(prompt, answers),
        lambda: plain_losses(engine, prompt, answers),
    )


def sides(subject: Subject, engine: Engine) -> tuple[Side, Side]:
    """The two functions that a subject compares, ours first."""
    if subject == "text":
        return text_sides(engine)
    if subject == "rank":
        return rank_sides(engine)
    num_ids = 60 if "60" in subject else 200
    return image_sides(engine, num_ids, 8 if subject.endswith("batch") else 1)


def agreement(subject: Subject, ours: Any, plain: Any) -> dict[str, Any]:
    """How far the results differ; raises AssertionError if they must not."""
    if subject == "text":
        assert ours == plain, "the texts differ"
        return {"same_texts": True, "num_tokens": sum(len(ids) - 1 for ids in ours)}
    if subject == "rank":
        assert ranks(ours) == ranks(plain), "the ranks differ"
        gap = max(abs(a - b) for a, b in zip(ours, plain, strict=True))
        return {"equal_ranks": True, "largest_difference": gap}
    difference = float((ours - plain).abs().max())
    assert difference < TOLERANCE, difference
    return {"largest_difference": difference, "typical_size": float(plain.square().mean().sqrt())}


def compare(subject: Subject, engine: Engine, num_rounds: int) -> dict[str, Any]:
    """The line of a subject: medians, and the ratio within each round."""
    ours, plain = sides(subject, engine)
    ours()  # warm-up: memory, thread pools
    costs: list[tuple[Cost, Cost]] = []
    found: dict[str, Any] = {}
    for _ in range(num_rounds):
        (our_cost, our_result), (plain_cost, plain_result) = measure(ours), measure(plain)
        found = agreement(subject, our_result, plain_result)
        costs.append((our_cost, plain_cost))
    wall = [plain.wall_s / ours.wall_s for ours, plain in costs]
    cpu = [plain.cpu_s / ours.cpu_s for ours, plain in costs]
    line = {
        "subject": subject,
        "times_faster": round(statistics.median(wall), 2),
        "times_faster_range": [round(min(wall), 2), round(max(wall), 2)],
        "times_less_cpu": round(statistics.median(cpu), 2),
        "times_less_cpu_range": [round(min(cpu), 2), round(max(cpu), 2)],
        "ours_wall_s": _median([ours.wall_s for ours, _ in costs]),
        "plain_wall_s": _median([plain.wall_s for _, plain in costs]),
        "ours_cpu_s": _median([ours.cpu_s for ours, _ in costs]),
        "plain_cpu_s": _median([plain.cpu_s for _, plain in costs]),
    }
    if "num_tokens" in found:
        line["tokens_per_s"] = round(found["num_tokens"] / line["ours_wall_s"], 1)
        line["plain_tokens_per_s"] = round(found["num_tokens"] / line["plain_wall_s"], 1)
    return line | found


def machine() -> dict[str, Any]:
    """The machine and versions of the measurement."""
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
    }


def step_cost(engine: Engine, num_threads: int) -> dict[str, Any]:
    """The cost of a step: the bytes of the layers' weights, and how fast this machine reads and multiplies."""
    layers = engine.model.language.lm.model.layers
    weights = [weight for weight in layers.parameters() if weight.dim() == 2]
    one, many = ({w.shape[1]: torch.randn(rows, w.shape[1]) for w in weights} for rows in (1, 230))
    times = {}
    with torch.inference_mode():
        for name, inputs in (("read", one), ("multiply", many)):

            def work(inputs: dict[int, torch.Tensor] = inputs) -> None:
                for weight in weights:
                    torch.nn.functional.linear(inputs[weight.shape[1]], weight)

            costs = [measure(work)[0] for _ in range(7)]
            is_alone = num_threads == 1  # then CPU time excludes other processes
            times[name] = min(cost.cpu_s if is_alone else cost.wall_s for cost in costs)
    total = sum(weight.numel() for weight in weights)
    return {
        "weights_MB": round(total * 4 / 1e6),
        "step_floor_ms": round(times["read"] * 1e3, 1),
        "read_GB_per_s": round(total * 4 / times["read"] / 1e9, 1),
        "multiply_GFLOP_per_s": round(2 * 230 * total / times["multiply"] / 1e9),
        "step_floor_in_positions_of_the_loop": round(times["read"] / times["multiply"] * 230, 1),
        "num_threads": num_threads,
    }


def _median(values: Sequence[float]) -> float:
    return round(statistics.median(values), 4)


def main() -> None:
    """Prints the machine, then the lines."""
    options = tyro.cli(Comparison)
    torch.set_num_threads(options.num_threads)
    print(json.dumps(machine() | asdict(options)), flush=True)
    subjects = options.subjects if options.device == "cpu" else ("limits",)
    if "limits" in subjects:
        for line in lines(
            DeviceOptions(options.device, options.dtype, options.compile, options.size)
        ):
            print(json.dumps(line), flush=True)
    if subjects != ("limits",):
        compare_all([subject for subject in subjects if subject != "limits"], options)


def compare_all(subjects: Sequence[Subject], options: Comparison) -> None:
    """Prints the model and the cost of its steps, then one line per subject."""
    engine = random_engine(options.seed)
    sizes = {"parameters": num_parameters(engine), "language": num_parameters(engine, ["language"])}
    print(json.dumps(sizes | step_cost(engine, options.num_threads)), flush=True)
    for subject in subjects:
        print(json.dumps(compare(subject, engine, options.num_rounds)), flush=True)


if __name__ == "__main__":
    main()
