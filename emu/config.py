"""The sizes and options of an Emu model as frozen dataclasses, saved as JSON (`config.json` of a model folder).

The default sizes are those of the released `Emu-14B.json`; in JSON every size must be given. Nothing here imports
torch: a configuration can be read, compared and printed anywhere.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from schemas.validation import Checked, Complete, ConfigError, from_json

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Dropout = Annotated[float, Field(ge=0, lt=1)]
Prediction = Literal["epsilon", "v_prediction", "sample"]
Probability = Annotated[float, Field(ge=0, le=1, description="a probability")]

IMAGE_START, IMAGE_END, IMAGE = "[IMG]", "[/IMG]", "<image>"
USER, ASSISTANT, PAD = "[USER]", "[ASSISTANT]", "[PAD]"
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
ARCHITECTURE = "EmuForConditionalGeneration"
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
class VisionConfig(Complete):
    """EVA-CLIP g/14 (paper section 2.1): pre-norm ViT with fused QKV and no bias on K."""

    image_size: Count = 224
    patch_size: Count = 14
    width: Count = 1408
    layers: Count = 40
    heads: Count = 16
    mlp_hidden: Count = 6144
    embed_dim: Count = 1024  # of the CLIP head, which is stored with the weights and never used

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_multiple(self, "image_size", "patch_size")
        _check_multiple(self, "width", "heads")

    @property
    def num_patches(self) -> int:
        """Patches per image, without the class token."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def num_tokens(self) -> int:
        """Output tokens per image: the class token and the patches."""
        return self.num_patches + 1


@dataclass(frozen=True)
class CausalFormerConfig(Complete):
    """The Causal Transformer: the decoder stack of T5-base over `num_queries` learned queries."""

    d_model: Count = 768
    d_kv: Count = 64
    num_heads: Count = 12
    num_layers: Count = 12
    d_ff: Count = 3072
    num_queries: Count = 32
    dropout: Dropout = 0.1
    num_buckets: Count = 32
    max_distance: Count = 128


@dataclass(frozen=True)
class LanguageConfig(Complete):
    """LLaMA; `vocab_size` counts the sentencepiece pieces, without the added tokens."""

    hidden_size: Count = 5120
    num_layers: Count = 40
    num_heads: Count = 40
    intermediate_size: Count = 13824
    vocab_size: Count = 32000
    max_positions: Count = 2048
    rms_norm_eps: Positive = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_multiple(self, "hidden_size", "num_heads")


@dataclass(frozen=True)
class ObjectiveConfig(Checked):
    """Options that the paper does not specify; the defaults follow the released masks."""

    visual_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the regression loss relative to the cross-entropy."""
    regress_closing: bool = True
    """Also regress the embedding of [/IMG] (the 33rd target of an image)."""
    detach_targets: bool = True
    """Stop the gradient at the regression targets."""
    train_image_start: bool = False
    """Also apply cross-entropy to [IMG], so that the model learns when to generate an image."""


@dataclass(frozen=True)
class InitConfig(Checked):
    """The random initialisation of weights that are not loaded.

    The defaults are usual for large models. A small model that is trained from scratch needs more contrast,
    otherwise its language model learns to ignore the images before it can use them (docs/decisions/0030).
    """

    embedding_std: Positive = 0.02
    """Standard deviation of the token embeddings."""
    language_std: Positive = 0.02
    """Standard deviation of the weight matrices in LLaMA's layers."""
    block_std: Positive = 0.02
    """Standard deviation of the weight matrices in the visual encoder's blocks."""
    position_std: Positive = 0.02
    """Standard deviation of the visual encoder's position embeddings."""
    query_gain: Positive = 1.0
    """Factor on T5's deviation of the query projections in cross-attention; above 1 the attention is sharper."""
    ground: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Fraction of the response to a white patch that the bias of the patch embedding cancels."""


@dataclass(frozen=True)
class AdapterConfig(Complete):
    """LoRA on the self-attention of the language model (Emu-I: rank 16, alpha 16)."""

    rank: Count = 16
    """Rank of the low-rank matrices."""
    alpha: Count = 16
    """Scale of the adapters: their output is multiplied by alpha / rank."""
    dropout: Dropout = 0.05
    """Dropout probability of the adapters' inputs, 0 to 1."""
    targets: Annotated[
        tuple[Literal["q_proj", "k_proj", "v_proj", "o_proj"], ...], Field(min_length=1)
    ] = ATTENTION
    """Projections of the attention that get adapters."""


@dataclass(frozen=True)
class DecoderConfig(Complete):
    """The sizes of the visual decoder: U-Net, autoencoder and noise schedule of SD v1.5."""

    image_size: Count = 512
    latent_channels: Count = 4
    unet_channels: tuple[Count, ...] = (320, 640, 1280, 1280)
    unet_attention: tuple[bool, ...] = (True, True, True, False)  # cross-attention per level
    unet_layers: Count = 2
    unet_heads: Count = 8
    unet_groups: Count = 32
    vae_channels: tuple[Count, ...] = (128, 256, 512, 512)
    vae_layers: Count = 2
    vae_groups: Count = 32
    scaling_factor: Positive = 0.18215
    num_train_timesteps: Count = 1000
    beta_start: Positive = 0.00085
    beta_end: Positive = 0.012
    kind: str = "stable_diffusion"
    """A name in `emu.decoders.DECODERS`; the sizes are those that this kind reads."""
    prediction: Prediction = "epsilon"
    """What the U-Net predicts: the noise (paper), v (arXiv 2202.00512) or the clean image."""
    snr_gamma: Positive | None = None
    """Bound of the signal-to-noise ratio in the weights of the loss (min-SNR, arXiv 2303.09556); None weights all
    times of the chosen prediction alike, as in the paper."""
    noise_shift: Positive = 1.0
    """Factor on the ratio of noise to signal at every time; above 1 a small image is decided later in the schedule."""

    num_block_embeddings: Count = 1
    """Embeddings of an image that enter every residual block of pixel_diffusion side by side; 1: the mean of all."""

    contrast_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight in the loss of pixel_diffusion of what differs from the mean of its image, beside 1 for all of it; small
    things on plain backgrounds are learned sooner."""

    optional_in_json: ClassVar = frozenset(
        {
            *("kind", "prediction", "snr_gamma", "noise_shift"),
            *("num_block_embeddings", "contrast_weight"),
        }
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.unet_channels) != len(self.unet_attention):
            raise ConfigError(
                f"DecoderConfig has {len(self.unet_channels)} unet_channels and "
                f"{len(self.unet_attention)} unet_attention, give one of each per level"
            )
        if self.image_size % self.latent_factor:
            raise ConfigError(
                f"DecoderConfig.image_size is {self.image_size}, give a multiple of {self.latent_factor} "
                "(every level of vae_channels but the first halves the sides)"
            )

    @property
    def latent_factor(self) -> int:
        """Pixels per latent position along one side."""
        return 2 ** (len(self.vae_channels) - 1)


@dataclass(frozen=True)
class EmuConfig(Checked):
    """A whole model; `instruct` adds `[USER]` and `[ASSISTANT]`, `adapter` adds LoRA."""

    vision: VisionConfig = field(default_factory=VisionConfig)
    former: CausalFormerConfig = field(default_factory=CausalFormerConfig)
    language: LanguageConfig = field(default_factory=LanguageConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    instruct: bool = False
    adapter: AdapterConfig | None = None
    decoder: DecoderConfig | None = None
    init: InitConfig = field(default_factory=InitConfig)

    model_type: ClassVar[str] = "emu"
    """The name by which transformers finds the classes of `emu.huggingface`."""

    @property
    def special(self) -> SpecialTokens:
        """The ids of the special tokens for this vocabulary."""
        return SpecialTokens.after(self.language.vocab_size, self.instruct)

    @property
    def num_embeddings(self) -> int:
        """Rows of the input embedding and of the output head, added tokens included."""
        added = INSTRUCT_TOKENS if self.instruct else PRETRAIN_TOKENS
        return self.language.vocab_size + len(added)

    def to_json(self) -> str:
        """The configuration as indented JSON."""
        values = dataclasses.asdict(self)
        if self.decoder is not None:  # without the fields that older releases do not know
            for name in DecoderConfig.optional_in_json:
                if getattr(self.decoder, name) == getattr(DecoderConfig, name):
                    del values["decoder"][name]
        named = {"model_type": self.model_type, "architectures": [ARCHITECTURE]}
        return json.dumps(named | values, indent=2) + "\n"

    @staticmethod
    def from_json(text: str) -> EmuConfig:
        """The configuration that `to_json` wrote; options may be absent, sizes may not.

        What transformers notes beside them (`model_type`, `architectures`) is left out.

        Raises:
            ConfigError: naming the path of an unknown or absent key, or of a value that is not allowed.
        """
        return from_json(EmuConfig, text, left_out=("model_type", "architectures"))


@dataclass(frozen=True)
class SequenceConfig(Checked):
    """Maximum lengths and probabilities of the sequence formats. Positions count text and images together."""

    pair_length: Count = 2048
    """Maximum positions of an image-text pair. Longer captions are cut."""
    window_length: Count = 1024
    """Maximum positions of an interleaved sequence of type 1 (paper: 1024)."""
    sampled_length: Count = 512
    """Maximum positions of an interleaved sequence of type 2 (paper: 512)."""
    clip_length: Count = 1024
    """Maximum positions of a video clip with its caption."""
    storyboard_length: Count = 1024
    """Maximum positions of a storyboard. A longer one gives a random window (the paper does not specify it)."""
    dialogue_length: Count = 2048
    """Maximum positions of a dialogue of instruction tuning. A longer one is cut at its end."""
    max_images: Count = 5
    """Maximum images of an interleaved sequence (paper: 5)."""
    clip_frames: Count = 8
    """Maximum frames of a video clip; more frames are sampled at random (paper: 8)."""
    window_probability: Probability = 0.5
    """Probability that an interleaved document gives a sequence of type 1, 0 to 1. Otherwise type 2."""
    image_first_probability: Probability = 0.5
    """Probability, 0 to 1, that an image precedes its text."""


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
    """Every part of the paper in 1.3 million weights, for one CPU core.

    Sizes, regression weight and initialisation are chosen so that a few hundred steps from scratch learn to use
    the images (docs/decisions/0030).
    """
    return EmuConfig(
        vision=VisionConfig(
            image_size=64, patch_size=16, width=128, layers=2, heads=4, mlp_hidden=256, embed_dim=64
        ),
        former=CausalFormerConfig(
            d_model=96, d_kv=24, num_heads=4, num_layers=2, d_ff=192, num_queries=8, dropout=0.0
        ),
        language=LanguageConfig(
            hidden_size=128,
            num_layers=2,
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
            position_std=0.3,
            query_gain=5.0,
            ground=0.75,
        ),
        instruct=instruct,
        decoder=DecoderConfig(
            kind="pixel_diffusion",
            image_size=64,
            unet_channels=(32, 64, 64),
            unet_attention=(False, False, True),
            unet_layers=1,
            unet_heads=4,
            unet_groups=8,
            vae_channels=(
                16,
                32,
                32,
            ),  # for this kind only their number counts: 4 x 4 pixels are a position
            vae_layers=1,
            vae_groups=1,
            prediction="sample",
            noise_shift=2.0,
            num_block_embeddings=8,
            contrast_weight=2.0,
        ),
    )


def _check_multiple(config: object, whole: str, divisor: str) -> None:
    large, small = getattr(config, whole), getattr(config, divisor)
    if large % small:
        name = f"{type(config).__name__}.{whole}"
        raise ConfigError(f"{name} is {large}, give a multiple of {divisor} = {small}")
