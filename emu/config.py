"""The sizes and choices of an Emu model as frozen dataclasses that travel as JSON.

Sizes are those of the released `Emu-14B.json` unless a preset says otherwise. Nothing here imports
torch: a configuration can be read, compared and printed anywhere.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

T = TypeVar("T")

IMAGE_START, IMAGE_END, IMAGE = "[IMG]", "[/IMG]", "<image>"
USER, ASSISTANT, PAD = "[USER]", "[ASSISTANT]", "[PAD]"
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
PRETRAIN_TOKENS = (PAD, IMAGE_START, IMAGE_END, IMAGE)
INSTRUCT_TOKENS = (*PRETRAIN_TOKENS, USER, ASSISTANT)


def image_block(num_queries: int) -> str:
    """The text of one image: `[IMG]`, one `<image>` for each causal embedding, `[/IMG]`."""
    return IMAGE_START + IMAGE * num_queries + IMAGE_END


@dataclass(frozen=True)
class SpecialTokens:
    """The ids of the special tokens: LLaMA's first three, then the added ones after its pieces."""

    pad: int
    image_start: int
    image_end: int
    image: int
    user: int | None = None
    assistant: int | None = None
    unk: int = 0
    bos: int = 1
    eos: int = 2

    @staticmethod
    def after(vocab_size: int, instruct: bool) -> SpecialTokens:
        """The ids that follow a sentencepiece vocabulary of `vocab_size` pieces."""
        pad, start, end, image = range(vocab_size, vocab_size + 4)
        if not instruct:
            return SpecialTokens(pad, start, end, image)
        return SpecialTokens(pad, start, end, image, vocab_size + 4, vocab_size + 5)


@dataclass(frozen=True)
class VisionConfig:
    """EVA-CLIP g/14 (paper section 2.1): pre-norm ViT with fused QKV and no bias on K."""

    image_size: int = 224
    patch_size: int = 14
    width: int = 1408
    layers: int = 40
    heads: int = 16
    mlp_hidden: int = 6144
    embed_dim: int = 1024  # of the CLIP head, which is stored with the weights and never used

    def __post_init__(self) -> None:
        _positive(self)
        _divides(self, "patch_size", "image_size")
        _divides(self, "heads", "width")

    @property
    def num_patches(self) -> int:
        """Patches of one image, without the class token."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def num_tokens(self) -> int:
        """Tokens that leave the tower for one image: the class token and the patches."""
        return self.num_patches + 1


@dataclass(frozen=True)
class CausalFormerConfig:
    """The Causal Transformer: the decoder stack of T5-base over `num_queries` learned queries."""

    d_model: int = 768
    d_kv: int = 64
    num_heads: int = 12
    num_layers: int = 12
    d_ff: int = 3072
    num_queries: int = 32
    dropout: float = 0.1
    num_buckets: int = 32
    max_distance: int = 128

    def __post_init__(self) -> None:
        _positive(self, but=("dropout",))
        if not 0 <= self.dropout < 1:
            raise ValueError(f"CausalFormerConfig.dropout is {self.dropout}, give 0 <= dropout < 1")


@dataclass(frozen=True)
class LanguageConfig:
    """LLaMA; `vocab_size` counts the sentencepiece pieces, without the added tokens."""

    hidden_size: int = 5120
    num_layers: int = 40
    num_heads: int = 40
    intermediate_size: int = 13824
    vocab_size: int = 32000
    max_positions: int = 2048
    rms_norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        _positive(self)
        _divides(self, "num_heads", "hidden_size")


@dataclass(frozen=True)
class ObjectiveConfig:
    """Choices where the paper is silent; the defaults follow the released masks."""

    visual_weight: float = 1.0  # Weight of the regression against the cross-entropy.
    regress_closing: bool = True  # The embedding of [/IMG] is a target too (the 33rd of an image).
    detach_targets: bool = True  # No gradient flows through the regression's targets.
    train_image_start: bool = False  # Cross-entropy on [IMG], so that the model may choose to draw.

    def __post_init__(self) -> None:
        if self.visual_weight < 0:
            raise ValueError(f"ObjectiveConfig.visual_weight is {self.visual_weight}, give >= 0")


@dataclass(frozen=True)
class InitConfig:
    """How fresh weights are drawn; weights that are loaded replace them.

    The defaults are usual for large models. A small one that starts from nothing needs more contrast,
    or its language model learns to overlook the pictures before it can use them.
    """

    embedding_std: float = 0.02  # of the tokens' input embeddings
    language_std: float = 0.02  # of the matrices in LLaMA's layers
    block_std: float = 0.02  # of the matrices in the tower's blocks
    position_std: float = 0.02  # of the tower's positions
    query_gain: float = (
        1.0  # on T5's deviation of the queries that look at patches: above 1, sharper
    )
    ground: float = 0.0  # part of a white page that the patch embedding's bias takes away

    def __post_init__(self) -> None:
        _positive(self, but=("ground",))
        if not 0 <= self.ground <= 1:
            raise ValueError(f"InitConfig.ground is {self.ground}, give a number in 0..1")


@dataclass(frozen=True)
class AdapterConfig:
    """LoRA on the self-attention of the language model (Emu-I: rank 16, alpha 16)."""

    rank: int = 16
    alpha: int = 16
    dropout: float = 0.05
    targets: tuple[str, ...] = ATTENTION

    def __post_init__(self) -> None:
        _positive(self, but=("dropout", "targets"))
        if not 0 <= self.dropout < 1:
            raise ValueError(f"AdapterConfig.dropout is {self.dropout}, give 0 <= dropout < 1")
        unknown = sorted(set(self.targets) - set(ATTENTION))
        if unknown or not self.targets:
            raise ValueError(
                f"AdapterConfig.targets is {self.targets}, give some of {list(ATTENTION)}"
            )


@dataclass(frozen=True)
class DecoderConfig:
    """The sizes of the visual decoder: U-Net, autoencoder and noise schedule of SD v1.5."""

    image_size: int = 512
    latent_channels: int = 4
    unet_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    unet_attention: tuple[bool, ...] = (True, True, True, False)  # cross-attention a level
    unet_layers: int = 2
    unet_heads: int = 8
    unet_groups: int = 32
    vae_channels: tuple[int, ...] = (128, 256, 512, 512)
    vae_layers: int = 2
    vae_groups: int = 32
    scaling_factor: float = 0.18215
    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    kind: str = "stable_diffusion"
    """A name in `emu.decoders.DECODERS`; the sizes are those that this kind reads."""

    def __post_init__(self) -> None:
        if len(self.unet_channels) != len(self.unet_attention):
            raise ValueError(
                f"DecoderConfig has {len(self.unet_channels)} unet_channels and "
                f"{len(self.unet_attention)} unet_attention, give one of each a level"
            )
        if self.image_size % self.latent_factor:
            raise ValueError(
                f"DecoderConfig.image_size is {self.image_size}, "
                f"give a multiple of {self.latent_factor} (one halving a level of vae_channels)"
            )

    @property
    def latent_factor(self) -> int:
        """Pixels a latent position covers along one side."""
        return 2 ** (len(self.vae_channels) - 1)


@dataclass(frozen=True)
class EmuConfig:
    """A whole model; `instruct` adds `[USER]` and `[ASSISTANT]`, `adapter` adds LoRA."""

    vision: VisionConfig = field(default_factory=VisionConfig)
    former: CausalFormerConfig = field(default_factory=CausalFormerConfig)
    language: LanguageConfig = field(default_factory=LanguageConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    instruct: bool = False
    adapter: AdapterConfig | None = None
    decoder: DecoderConfig | None = None
    init: InitConfig = field(default_factory=InitConfig)

    @property
    def special(self) -> SpecialTokens:
        """The ids of the special tokens at this vocabulary."""
        return SpecialTokens.after(self.language.vocab_size, self.instruct)

    @property
    def num_embeddings(self) -> int:
        """Rows of the input embedding and of the output head, added tokens included."""
        added = INSTRUCT_TOKENS if self.instruct else PRETRAIN_TOKENS
        return self.language.vocab_size + len(added)

    def to_json(self) -> str:
        """The configuration as indented JSON."""
        values = dataclasses.asdict(self)
        if self.decoder is not None and self.decoder.kind == DecoderConfig.kind:
            del values["decoder"]["kind"]  # as it was before there were several kinds
        return json.dumps(values, indent=2) + "\n"

    @staticmethod
    def from_json(text: str) -> EmuConfig:
        """The configuration that `to_json` wrote.

        Raises ValueError naming every key that is unknown or missing, and the first of a wrong type. Only
        choices that have a plain default may be absent (`MAY_BE_ABSENT`), never a size.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"the model configuration is not JSON: {error}") from error
        return _build(EmuConfig, values, "config")


def llama_1b() -> LanguageConfig:
    """1.3 billion weights: the sizes of Sheared-LLaMA-1.3B, of LLaMA's form and vocabulary."""
    return LanguageConfig(2048, 24, 16, 5504)


def llama_7b() -> LanguageConfig:
    """LLaMA-7B, the language model of the paper's ablations."""
    return LanguageConfig(4096, 32, 32, 11008)


def llama_13b() -> LanguageConfig:
    """LLaMA-13B, the paper's language model."""
    return LanguageConfig(5120, 40, 40, 13824)


def emu_14b_config(instruct: bool = False) -> EmuConfig:
    """The paper's model: EVA-CLIP g/14, 32 causal queries, LLaMA-13B, Stable Diffusion v1.5."""
    adapter = AdapterConfig() if instruct else None
    return EmuConfig(
        language=llama_13b(), instruct=instruct, adapter=adapter, decoder=DecoderConfig()
    )


def emu_llama_1b_config(instruct: bool = False) -> EmuConfig:
    """The paper's tower, queries and decoder around a LLaMA of 1.3 billion weights."""
    return replace(emu_14b_config(instruct), language=llama_1b())


def emu_llama_7b_config(instruct: bool = False) -> EmuConfig:
    """The paper's tower, queries and decoder around LLaMA-7B (its ablations)."""
    return replace(emu_14b_config(instruct), language=llama_7b())


def tiny_config(vocab_size: int = 1000, instruct: bool = False) -> EmuConfig:
    """Every part of the paper in 1.2 million weights, for one processor core.

    Sizes, weight of the regression and initial deviations are chosen so that a run of some hundred steps
    from nothing learns to look at its pictures (docs/decisions/0030).
    """
    return EmuConfig(
        vision=VisionConfig(
            image_size=64, patch_size=8, width=64, layers=3, heads=4, mlp_hidden=192, embed_dim=64
        ),
        former=CausalFormerConfig(
            d_model=96, d_kv=24, num_heads=4, num_layers=2, d_ff=192, num_queries=8, dropout=0.0
        ),
        language=LanguageConfig(
            hidden_size=128,
            num_layers=3,
            num_heads=4,
            intermediate_size=344,
            vocab_size=vocab_size,
            max_positions=1024,
        ),
        objective=ObjectiveConfig(visual_weight=0.1),
        init=InitConfig(
            embedding_std=0.3,
            language_std=0.08,
            block_std=0.06,
            position_std=0.05,
            query_gain=5.0,
            ground=0.75,
        ),
        instruct=instruct,
        decoder=DecoderConfig(
            image_size=64,
            unet_channels=(32, 64),
            unet_attention=(True, True),
            unet_layers=1,
            unet_heads=4,
            unet_groups=8,
            vae_channels=(16, 32, 32),
            vae_layers=1,
            vae_groups=1,  # two channels a group would keep no more of a flat colour than its sign
        ),
    )


MAY_BE_ABSENT: dict[type, tuple[str, ...]] = {
    EmuConfig: ("objective", "instruct", "adapter", "decoder", "init"),
    DecoderConfig: ("kind",),
    ObjectiveConfig: tuple(entry.name for entry in dataclasses.fields(ObjectiveConfig)),
    InitConfig: tuple(entry.name for entry in dataclasses.fields(InitConfig)),
}


def _positive(config: Any, but: tuple[str, ...] = ()) -> None:
    for entry in dataclasses.fields(config):
        value = getattr(config, entry.name)
        if entry.name not in but and value <= 0:
            name = f"{type(config).__name__}.{entry.name}"
            raise ValueError(f"{name} is {value}, give a number above 0")


def _divides(config: Any, divisor: str, whole: str) -> None:
    small, large = getattr(config, divisor), getattr(config, whole)
    if large % small:
        name = f"{type(config).__name__}.{whole}"
        raise ValueError(f"{name} is {large}, give a multiple of {divisor} = {small}")


def _build(kind: type[T], values: Any, where: str) -> T:
    """A dataclass from nested dictionaries; errors name the place inside the document."""
    if not isinstance(values, dict):
        raise ValueError(f"{where} is {type(values).__name__}, give an object")
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise ValueError(f"{where} has unknown keys {unknown}; known are {sorted(hints)}")
    missing = [name for name in hints if name not in (*values, *MAY_BE_ABSENT.get(kind, ()))]
    if missing:
        raise ValueError(f"{where} lacks the keys {missing}; sizes are never guessed")
    parts = {name: _value(hints[name], value, f"{where}.{name}") for name, value in values.items()}
    return kind(**parts)


def _value(hint: Any, value: Any, where: str) -> Any:
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast("type[Any]", hint), value, where)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where} is {value!r}, give a list")
        return tuple(_value(typing.get_args(hint)[0], item, where) for item in value)
    return _scalar(hint, value, where)


def _scalar(kind: type, value: Any, where: str) -> Any:
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{where} is {value!r}, give {kind.__name__}")
    return kind(value)
