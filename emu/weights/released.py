"""The names of the released weights.

One table, applied in both directions. Every key that is missing, unexpected or of another shape is an error
that names it; keys of the released files that the model does not use are listed here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import Tensor

from emu.config import EmuConfig
from emu.models.emu import Emu
from emu.weights.released_config import config_from_released

__all__ = [
    "canonical",
    "config_from_released",
    "from_released",
    "is_unused",
    "our_names",
    "released_name",
    "to_released",
]

FORMER = "cformer.cformer."
BLOCK = FORMER + r"block.\1.layer."

# our name -> released name; the first rule that matches a name applies
NAMES = (
    (r"^visual\.trunk\.", "visual."),
    (r"^ln_visual\.", "ln_visual."),
    (r"^former\.queries$", "cformer.causal_tokens"),
    (r"^former\.projection\.", "cformer.projection."),
    (
        r"^former\.relative_bias\.",
        FORMER + "block.0.layer.0.SelfAttention.relative_attention_bias.",
    ),
    (r"^former\.final_norm\.", FORMER + "final_layer_norm."),
    (r"^former\.blocks\.(\d+)\.self_norm\.", BLOCK + "0.layer_norm."),
    (r"^former\.blocks\.(\d+)\.self_attention\.", BLOCK + "0.SelfAttention."),
    (r"^former\.blocks\.(\d+)\.cross_norm\.", BLOCK + "1.layer_norm."),
    (r"^former\.blocks\.(\d+)\.cross_attention\.", BLOCK + "1.EncDecAttention."),
    (r"^former\.blocks\.(\d+)\.feed_norm\.", BLOCK + "2.layer_norm."),
    (r"^former\.blocks\.(\d+)\.feed_forward\.", BLOCK + "2.DenseReluDense."),
    (r"^language\.regress_head\.", "{language}stu_regress_head."),
    (r"^language\.lm\.(.*)\.base_layer\.", r"{language}\1."),  # peft's name for an adapted weight
    (r"^language\.lm\.", "{language}"),
)

# stored with the released weights and not used by the model
UNUSED = (
    r"^cformer\.cformer\.embed_tokens\.weight$",  # T5's own word embedding
    r"\.rotary_emb\.inv_freq$",  # constants that old transformers stored
)


def released_name(name: str, instruct: bool) -> str:
    """The released name of one of our parameters."""
    language = "decoder.lm.base_model.model." if instruct else "decoder.lm."
    for pattern, replacement in NAMES:
        renamed, count = re.subn(pattern, replacement, name)
        if count:
            return renamed.replace("{language}", language)
    raise ValueError(f"{name} has no released name; known are {[rule for rule, _ in NAMES]}")


def our_names(config: EmuConfig) -> dict[str, str]:
    """Released name to our name, for every tensor of a model of this configuration."""
    with torch.device("meta"):
        ours = list(Emu(config).state_dict())
    table = {released_name(name, config.adapter is not None): name for name in ours}
    assert len(table) == len(ours), "two of our names share a released one"
    return table


def canonical(name: str) -> str:
    """The released name of a key that a newer peft wrote, which calls an adapted weight `base_layer`."""
    return name.replace(".base_layer.", ".") if ".self_attn." in name else name


def is_unused(name: str) -> bool:
    """Whether a released key is known to be unused by the model."""
    return any(re.search(pattern, name) for pattern in UNUSED)


def from_released(
    weights: Iterable[tuple[str, Tensor]], config: EmuConfig
) -> Iterable[tuple[str, Tensor]]:
    """Our names for released tensors, one after the other; unused ones are left out.

    Raises ValueError naming every released key that is missing or unexpected, once all were seen.
    Shapes are checked where the model is built.
    """
    table = our_names(config)
    seen: set[str] = set()
    unexpected: list[str] = []
    for name, tensor in weights:
        if name in table:
            seen.add(name)
            yield table[name], tensor
        elif not is_unused(name):
            unexpected.append(name)
    problems = [f"missing {name}" for name in table if name not in seen]
    problems += [f"unexpected {name}" for name in unexpected]
    if problems:
        raise ValueError("the released weights do not fit: " + "; ".join(problems))


def to_released(
    weights: Iterable[tuple[str, Tensor]], config: EmuConfig
) -> Iterable[tuple[str, Tensor]]:
    """Released names for our tensors, one after the other, without the unused ones."""
    for name, tensor in weights:
        yield released_name(name, config.adapter is not None), tensor
