"""Plans conversions between the released weights and a model directory before a byte is written."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from emu.config import AdapterConfig, EmuConfig
from emu.models.emu import Emu
from emu.models.language_model import ROPE_BASE
from emu.weights.reader import TensorEntry, WeightFiles, WeightsError
from emu.weights.released import canonical, is_unused, our_names, released_name
from emu.weights.released_config import ADDED
from emu.weights.writer import CODES, TensorSpec

PEFT = "decoder.lm.base_model.model."
ROTARY = ".rotary_emb.inv_freq"
T5_WORDS = 32128
FINITE_VALUES = 1 << 22
LORA = re.compile(r"\.self_attn\.(\w+)\.lora_A\.default\.weight$")
Advance = Callable[[int], object]
"""Called with the number of bytes of each tensor that is written, for a progress bar."""


@dataclass(frozen=True)
class Plan:
    """Which tensor becomes which: `sources[i]` of the files is written as `specs[i]`."""

    specs: tuple[TensorSpec, ...]
    sources: tuple[str, ...]
    dropped: tuple[str, ...] = ()
    """Keys of the files that the model does not use."""

    @property
    def num_bytes(self) -> int:
        """Bytes that will be written."""
        return sum(spec.num_bytes for spec in self.specs)


@dataclass
class ConversionWarnings:
    """Names of tensors that hold infinities or NaN, collected while they are converted."""

    not_finite: list[str] = field(default_factory=list)


def fit_family(
    config: EmuConfig, entries: Mapping[str, TensorEntry], alpha_is_given: bool = False
) -> EmuConfig:
    """The configuration with what the released keys tell: Emu or Emu-I, with LoRA or without.

    Emu-I has LoRA's keys, or two rows more in its embedding where LoRA was merged. Raises ValueError for a
    rank whose scale is not known: the file does not hold LoRA's alpha.
    """
    shapes = {canonical(name): entry.shape for name, entry in entries.items()}
    prefix = PEFT if any(name.startswith(PEFT) for name in shapes) else "decoder.lm."
    rows = shapes.get(f"{prefix}model.embed_tokens.weight", (0,))[0]
    adapted = {match[1]: shapes[name][0] for name in shapes if (match := LORA.search(name))}
    instruct = bool(adapted) or rows == config.language.vocab_size + ADDED[True]
    if not adapted:
        return replace(config, instruct=instruct, adapter=None)
    base = config.adapter or AdapterConfig()
    ranks = set(adapted.values())
    if ranks != {base.rank} and not alpha_is_given:
        raise ValueError(
            f"LoRA has ranks {sorted(ranks)}, Emu-I has {base.rank}; its alpha is not in the weights, give "
            'it in the configuration: "lora": {"r": RANK, "lora_alpha": ALPHA}'
        )
    targets = tuple(t for t in AdapterConfig().targets if t in adapted) or base.targets
    return replace(config, instruct=True, adapter=replace(base, targets=targets))


def plan_import(files: WeightFiles, config: EmuConfig, dtype: torch.dtype | None = None) -> Plan:
    """What to write for released weights of this configuration; a `dtype` of None keeps each tensor's.

    Raises WeightsError as `plan_renaming` does, and for frequencies of rotary positions that are not
    LLaMA's.
    """
    plan = plan_renaming(
        files, our_names(config), model_shapes(config), dtype, canonical, is_unused
    )
    check_rotary(files, plan, config)
    return plan


def plan_export(files: WeightFiles, config: EmuConfig, dtype: torch.dtype | None = None) -> Plan:
    """What to write, under the released names, for weights in our form."""
    shapes = model_shapes(config)
    plan = plan_renaming(files, {name: name for name in shapes}, shapes, dtype)
    has_adapter = config.adapter is not None
    return renamed(plan, lambda name: released_name(name, has_adapter))


def unused_tensors(config: EmuConfig, dtype: torch.dtype) -> dict[str, Tensor]:
    """Tensors that the published code requires under its names and never uses: zeros, and rotary constants.

    Its strict loading needs T5's word embedding and, with transformers up to 4.31, the frequencies of
    every layer.
    """
    prefix = "decoder.lm." if config.adapter is None else PEFT
    layers = range(config.language.num_layers)
    embedding = torch.zeros(T5_WORDS, config.former.d_model, dtype=dtype)
    frequencies = _frequencies(config)
    constants = {f"{prefix}model.layers.{i}.self_attn{ROTARY}": frequencies for i in layers}
    return {"cformer.cformer.embed_tokens.weight": embedding} | constants


def renamed(plan: Plan, new_name: Callable[[str], str]) -> Plan:
    """The plan with other names for what it writes."""
    specs = tuple(replace(spec, name=new_name(spec.name)) for spec in plan.specs)
    return replace(plan, specs=specs)


def plan_renaming(
    files: WeightFiles,
    table: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype | None,
    known_name: Callable[[str], str] = lambda name: name,
    may_drop: Callable[[str], bool] = lambda name: False,
) -> Plan:
    """What to write so that every name of `shapes` occurs once, in that order.

    `known_name` maps a key of the files to a name in `table`, and `table` maps that to a name in `shapes`; a key that
    is unknown and that `may_drop` accepts is not written. Raises WeightsError naming every key that is missing,
    unexpected, doubled, misshapen or not of a floating-point dtype.
    """
    source_of: dict[str, str] = {}
    dropped: list[str] = []
    problems: list[str] = []
    for raw, entry in files.entries.items():
        name = table.get(known_name(raw))
        if name is None:
            if may_drop(known_name(raw)):
                dropped.append(raw)
            else:
                problems.append(f"unexpected {raw}")
        elif name in source_of:
            problems.append(f"doubled {raw} and {source_of[name]}")
        else:
            source_of[name] = raw
            problems += _misfits(raw, entry, shapes[name])
    named = {ours: theirs for theirs, ours in table.items()}
    problems += [f"missing {named[name]}" for name in shapes if name not in source_of]
    if problems:
        where = ", ".join(file.name for file in files.files)
        raise WeightsError(f"{where}: {_described(problems, len(files.entries))}")
    entries = [(name, files.entries[source_of[name]]) for name in shapes]
    specs = (TensorSpec(name, entry.shape, dtype or entry.dtype) for name, entry in entries)
    return Plan(tuple(specs), tuple(source_of[name] for name in shapes), tuple(dropped))


def is_finite(tensor: Tensor) -> bool:
    """Whether every value is finite; checked in chunks, because torch allocates copies for it."""
    chunks = tensor.reshape(-1).split(FINITE_VALUES)
    return all(bool(torch.isfinite(chunk).all()) for chunk in chunks)


def model_shapes(config: EmuConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a model of this configuration."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in Emu(config).state_dict().items()}


def tensors_of(
    plan: Plan, files: WeightFiles, warnings: ConversionWarnings, advance: Advance
) -> Iterator[Tensor]:
    """The tensors to write, in the order of the plan, one after the other.

    Raises WeightsError where a value does not fit into the wanted dtype.
    """
    for spec, tensor in zip(plan.specs, files.read(plan.sources), strict=True):
        converted = tensor.to(spec.dtype)
        if not is_finite(converted):
            if is_finite(tensor):
                largest = float(tensor.abs().max())
                raise WeightsError(
                    f"{spec.name} holds {largest:.4g}, which {spec.dtype} cannot hold; give another dtype"
                )
            warnings.not_finite.append(spec.name)
        del tensor
        yield converted
        del converted  # before the next one is made
        advance(spec.num_bytes)


def _misfits(name: str, entry: TensorEntry, wanted: tuple[int, ...]) -> list[str]:
    if entry.shape != wanted:
        turned = " (transposed?)" if entry.shape == wanted[::-1] else ""
        return [f"misshapen {name}: {entry.shape}, needs {wanted}{turned}"]
    if entry.dtype not in CODES:
        return [f"mistyped {name}: {entry.dtype}, needs one of {[str(d) for d in CODES]}"]
    return []


def _described(problems: list[str], num_keys: int) -> str:
    kinds: dict[str, int] = {}
    for problem in problems:
        kind = problem.partition(" ")[0]
        kinds[kind] = kinds.get(kind, 0) + 1
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    return f"the {num_keys} keys do not fit the configuration ({counts}):\n  " + "\n  ".join(
        problems
    )


def check_rotary(files: WeightFiles, plan: Plan, config: EmuConfig) -> None:
    """Raises WeightsError where dropped rotary frequencies are not LLaMA's: the weights are of another model."""
    names = [name for name in plan.dropped if name.endswith(ROTARY)]
    wanted = _frequencies(config)
    for name, found in zip(names, files.read(names), strict=True):
        # 16-bit files round them, and float16 ends near 6e-8
        near = found.shape == wanted.shape and torch.allclose(found.float(), wanted, 1e-2, 1e-6)
        if not near:
            raise WeightsError(
                f"{name} holds other frequencies than LLaMA's (base {ROPE_BASE:g}, {len(wanted)} of them): "
                "this is another model"
            )


def _frequencies(config: EmuConfig) -> Tensor:
    head = config.language.hidden_size // config.language.num_heads
    return 1.0 / (ROPE_BASE ** (torch.arange(0, head, 2, dtype=torch.float32) / head))
