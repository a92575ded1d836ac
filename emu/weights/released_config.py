"""The released `Emu-14B.json` and our configuration, in both directions.

The released file gives the sizes of the tower and the number of queries. Its optional sections `c_former`
(T5's names), `llama` (LLaMA's) and `lora` (peft's) give the rest where it is not T5-base, LLaMA-13B and
rank 16. What such a section asks for and this model does not do is an error, not left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from emu.config import (
    AdapterConfig,
    CausalFormerConfig,
    EmuConfig,
    LanguageConfig,
    VisionConfig,
)

ADDED = {False: 4, True: 6}  # rows after LLaMA's, without and with the tokens of instructions
ROTARY_BASE = 10000.0
SAYS_NOTHING = {  # of any configuration of transformers, about the sizes of its weights
    "architectures",
    "bos_token_id",
    "decoder_start_token_id",
    "dtype",
    "eos_token_id",
    "initializer_range",
    "is_decoder",
    "is_encoder_decoder",
    "model_type",
    "pad_token_id",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}


@dataclass(frozen=True)
class Section:
    """What an optional section may hold: sizes, values that only confirm, and names without meaning."""

    name: str
    sizes: Mapping[str, str]  # their name -> ours
    fixed: Mapping[str, Any]
    free: frozenset[str]


FORMER = Section(
    "c_former",
    {
        "d_model": "d_model",
        "d_kv": "d_kv",
        "num_heads": "num_heads",
        "num_layers": "num_layers",
        "d_ff": "d_ff",
        "dropout_rate": "dropout",
        "relative_attention_num_buckets": "num_buckets",
        "relative_attention_max_distance": "max_distance",
    },
    {
        "feed_forward_proj": "relu",
        "dense_act_fn": "relu",
        "is_gated_act": False,
        "layer_norm_epsilon": 1e-6,
    },
    frozenset(
        {"initializer_factor", "n_positions", "num_decoder_layers", "output_past", "vocab_size"}
    ),
)
LLAMA = Section(
    "llama",
    {
        "hidden_size": "hidden_size",
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
        "intermediate_size": "intermediate_size",
        "vocab_size": "vocab_size",
        "max_position_embeddings": "max_positions",
        "rms_norm_eps": "rms_norm_eps",
    },
    {
        "rope_theta": ROTARY_BASE,
        "rope_scaling": None,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
    },
    frozenset({"attention_dropout", "head_dim", "num_key_value_heads", "pretraining_tp"}),
)
LORA = Section(
    "lora",
    {"r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout", "target_modules": "targets"},
    {"bias": "none", "use_rslora": False, "use_dora": False},
    frozenset(),
)
SECTIONS = ("vision_cfg", "multimodal_cfg", "vladapter_cfg", FORMER.name, LLAMA.name, LORA.name)
FRACTIONS = ("dropout_rate", "rms_norm_eps", "lora_dropout")
OTHER_TOWERS = ("rope", "postnorm", "subln", "naiveswiglu", "ls_init_value", "use_mean_pooling")


def config_from_released(values: Mapping[str, Any], instruct: bool = False) -> EmuConfig:
    """The configuration that a released `Emu-14B.json` stands for; `instruct` that of Emu-I, with LoRA.

    Raises ValueError naming the section, the key and what is known.
    """
    for section in ("embed_dim", "vision_cfg", "multimodal_cfg"):
        if section not in values:
            raise ValueError(f"the released configuration has no {section!r}")
    for section in SECTIONS:
        if not isinstance(values.get(section, {}), Mapping):
            raise ValueError(f"{section} is {values[section]!r}, give an object")
    former, llama = read_section(FORMER, values), read_section(LLAMA, values)
    _check_former(values.get("c_former", {}))
    language = LanguageConfig(**llama)
    check_heads(values.get("llama", {}), language)
    adapter = AdapterConfig(**read_section(LORA, values))
    embed_dim = _number("embed_dim", values["embed_dim"])
    return EmuConfig(
        vision=_vision(values["vision_cfg"], embed_dim),
        former=CausalFormerConfig(num_queries=_queries(values), **former),
        language=language,
        instruct=instruct,
        adapter=adapter if instruct else None,
    )


def config_to_released(config: EmuConfig) -> dict[str, Any]:
    """The released form of a configuration, from which `config_from_released` gives the same sizes.

    Choices that the released form cannot say (objective, initial deviations) are left out.
    """
    vision, queries = config.vision, config.former.num_queries
    values: dict[str, Any] = {
        "embed_dim": vision.embed_dim,
        "vision_cfg": {
            "image_size": vision.image_size,
            "layers": vision.layers,
            "width": vision.width,
            "head_width": vision.width // vision.heads,
            "mlp_ratio": _ratio(vision),
            "patch_size": vision.patch_size,
            "eva_model_name": "eva-clip-g-14-x",
            "drop_path_rate": 0,
            "xattn": True,
            "freeze": False,
        },
        "multimodal_cfg": {
            "name": "llama-13B",
            "xattn": True,
            "n_causal": queries,
            "freeze": False,
        },
        "vladapter_cfg": {"name": "cformer", "n_causal": queries},
        FORMER.name: _written(FORMER, config.former),
        LLAMA.name: _written(LLAMA, config.language),
    }
    if config.adapter is not None:
        values[LORA.name] = _written(LORA, config.adapter) | {
            "target_modules": list(config.adapter.targets)
        }
    return values


def read_section(section: Section, values: Mapping[str, Any]) -> dict[str, Any]:
    """Our arguments from a section; what is not given keeps its default."""
    given = values.get(section.name, {})
    unknown = sorted(set(given) - {*section.sizes, *section.fixed, *section.free, *SAYS_NOTHING})
    if unknown:
        known = sorted({*section.sizes, *section.fixed})
        raise ValueError(f"{section.name} has unknown keys {unknown}; known are {known}")
    for name, value in section.fixed.items():
        if given.get(name, value) != value:
            raise ValueError(f"{section.name}.{name} is {given[name]!r}, this model has {value!r}")
    read: dict[str, Any] = {}
    for theirs, ours in section.sizes.items():
        if theirs in given:
            where, whole = f"{section.name}.{theirs}", theirs not in FRACTIONS
            if theirs == "target_modules":
                names = given[theirs]
                read[ours] = tuple(names) if isinstance(names, list | tuple) else names
            else:
                read[ours] = _number(where, given[theirs], whole)
    return read


def _number(where: str, value: Any, whole: bool = True) -> Any:
    kinds = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or value < 0:
        raise ValueError(f"{where} is {value!r}, give a {'whole ' if whole else ''}number")
    return value


def _written(section: Section, config: Any) -> dict[str, Any]:
    return {theirs: getattr(config, ours) for theirs, ours in section.sizes.items()}


def _check_former(given: Mapping[str, Any]) -> None:
    decoder, layers = given.get("num_decoder_layers"), given.get("num_layers")
    if decoder is not None and layers is not None and decoder != layers:
        raise ValueError(
            f"c_former has {layers} num_layers and {decoder} num_decoder_layers, give one"
        )


def check_heads(given: Mapping[str, Any], language: LanguageConfig) -> None:
    """Raises ValueError where key heads are shared, or heads have another width than LLaMA's."""
    wanted = {
        "num_key_value_heads": language.num_heads,
        "head_dim": language.hidden_size // language.num_heads,
    }
    for name, value in wanted.items():
        if given.get(name) not in (None, value):
            raise ValueError(f"llama.{name} is {given[name]!r}, this model has {value}")


def _queries(values: Mapping[str, Any]) -> int:
    queries = values["multimodal_cfg"].get("n_causal")
    if queries is not None:
        queries = _number("multimodal_cfg.n_causal", queries)
    other = values.get("vladapter_cfg", {}).get("n_causal", queries)
    if queries is None or other != queries:
        raise ValueError(
            f"n_causal is {queries} in multimodal_cfg and {other} in vladapter_cfg, give one"
        )
    return queries


def _vision(values: Mapping[str, Any], embed_dim: int) -> VisionConfig:
    needed = ("image_size", "patch_size", "width", "layers", "head_width", "mlp_ratio")
    absent = [name for name in needed if name not in values]
    if absent:
        raise ValueError(f"vision_cfg has no {absent}")
    other = [name for name in OTHER_TOWERS if values.get(name)]
    if other:
        raise ValueError(f"vision_cfg asks for {other}, which the tower of EVA-CLIP g/14 has not")
    found = {n: _number(f"vision_cfg.{n}", values[n], n != "mlp_ratio") for n in needed}
    width, head_width = found["width"], found["head_width"]
    if not head_width or width % head_width:
        raise ValueError(
            f"vision_cfg.width is {width}, give a multiple of head_width = {head_width}"
        )
    return VisionConfig(
        image_size=found["image_size"],
        patch_size=found["patch_size"],
        width=width,
        layers=found["layers"],
        heads=width // head_width,
        mlp_hidden=int(width * found["mlp_ratio"]),  # the released code cuts, too
        embed_dim=embed_dim,
    )


def _ratio(vision: VisionConfig) -> float:
    """The shortest ratio that the released code cuts down to this hidden width."""
    ratios = [round((vision.mlp_hidden + 0.5) / vision.width, digits) for digits in range(1, 16)]
    return next(ratio for ratio in ratios if int(vision.width * ratio) == vision.mlp_hidden)
