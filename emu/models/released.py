"""The names and forms of the released weights, and of their `Emu-14B.json`.

One table of names, read in both directions. Every key that is missing, unexpected or of another
shape is an error that names it; what the released files carry without use is listed here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from emu.config import (
    AdapterConfig,
    CausalFormerConfig,
    EmuConfig,
    LanguageConfig,
    VisionConfig,
)
from emu.models.emu import Emu

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

# stored with the released weights and without use in the model
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


def is_unused(name: str) -> bool:
    """Whether a released key is known to be carried without use."""
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


def config_from_released(values: Mapping[str, Any], instruct: bool = False) -> EmuConfig:
    """The configuration that a released `Emu-14B.json` stands for.

    Its optional sections `c_former` and `llama` give other sizes than T5-base and LLaMA-13B.
    """
    for section in ("embed_dim", "vision_cfg", "multimodal_cfg"):
        if section not in values:
            raise ValueError(f"the released configuration has no {section!r}")
    former, llama = values.get("c_former", {}), values.get("llama", {})
    defaults = EmuConfig()
    return EmuConfig(
        vision=_vision(values["vision_cfg"], values["embed_dim"]),
        former=CausalFormerConfig(
            num_queries=values["multimodal_cfg"]["n_causal"],
            **{
                name: former.get(name, getattr(defaults.former, name))
                for name in ("d_model", "d_kv", "num_heads", "num_layers", "d_ff")
            },
        ),
        language=LanguageConfig(
            **{
                ours: llama.get(theirs, getattr(defaults.language, ours))
                for ours, theirs in (
                    ("hidden_size", "hidden_size"),
                    ("num_layers", "num_hidden_layers"),
                    ("num_heads", "num_attention_heads"),
                    ("intermediate_size", "intermediate_size"),
                    ("vocab_size", "vocab_size"),
                    ("max_positions", "max_position_embeddings"),
                    ("rms_norm_eps", "rms_norm_eps"),
                )
            }
        ),
        instruct=instruct,
        adapter=AdapterConfig() if instruct else None,
    )


def _vision(values: Mapping[str, Any], embed_dim: int) -> VisionConfig:
    width = values["width"]
    return VisionConfig(
        image_size=values["image_size"],
        patch_size=values["patch_size"],
        width=width,
        layers=values["layers"],
        heads=width // values["head_width"],
        mlp_hidden=int(width * values["mlp_ratio"]),  # the released code cuts, too
        embed_dim=embed_dim,
    )
