"""Emu (paper figure 2): images to causal embeddings, mixed with text, through one language model.

Also the initial weights of its parts, from one random generator.

Shapes: B batch, L sequence, N images of the batch, C channels, H W pixels of a patch, P patches, Q causal queries,
V vision width, D language width.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Generator, Tensor, nn

from emu.config import EmuConfig
from emu.models.cross_entropy import chunked_cross_entropy
from emu.models.language_model import LanguageModel, add_adapter, merge_adapter
from emu.models.objective import (
    Batch,
    EmuOutput,
    Objective,
    Scores,
    predicts_target,
    regression_positions,
    text_labels,
)
from emu.models.visual import CausalFormer, VisualEncoder
from emu.tokenizer import EmuTokenizer

STD = 0.02  # of the heads, the patch embedding, the class token and the causal queries
WHITE = (1.9303, 2.0749, 2.1459)  # a white pixel under CLIP's normalisation
PATCHES = "visual.trunk.patch_embed.proj"


class Emu(nn.Module):
    """Visual encoder, Causal Former and language model under the paper's names."""

    def __init__(self, config: EmuConfig) -> None:
        super().__init__()
        self.config = config
        self.visual = VisualEncoder(config.vision)
        self.ln_visual = nn.LayerNorm(config.vision.width, eps=1e-6)
        self.former = CausalFormer(config.former, config.vision.width, config.language.hidden_size)
        self.language = LanguageModel(config)
        if config.adapter is not None:
            add_adapter(self.language, config.adapter)

    def encode_images(self, pixels_NCHW: Tensor) -> Tensor:
        """The causal embeddings `NQD` of normalised images."""
        return self.encode_patches(self.visual(pixels_NCHW))

    def encode_patches(self, patches_NPV: Tensor) -> Tensor:
        """The causal embeddings `NQD` of precomputed tower outputs."""
        vision = self.config.vision
        if patches_NPV.dim() != 3 or patches_NPV.shape[1:] != (vision.num_tokens, vision.width):
            wanted = f"(N, {vision.num_tokens}, {vision.width})"
            raise ValueError(f"patches have shape {tuple(patches_NPV.shape)}, needed is {wanted}")
        return self.former(self.ln_visual(patches_NPV.to(self.ln_visual.weight.dtype)))

    def embed(self, input_ids_BL: Tensor, embeddings_NQD: Tensor | None = None) -> Tensor:
        """The inputs `BLD` of the language model: tokens, with images at their `<image>` positions."""
        inputs_BLD = self.language.embed(input_ids_BL)
        places_BL = input_ids_BL == self.config.special.image
        given = 0 if embeddings_NQD is None else embeddings_NQD.shape[0] * embeddings_NQD.shape[1]
        wanted = int(places_BL.sum())
        if given != wanted:
            queries = self.config.former.num_queries
            raise ValueError(
                f"the sequences hold {wanted} <image> positions, the images give {given} embeddings; "
                f"an image needs exactly {queries} positions"
            )
        if embeddings_NQD is None:
            return inputs_BLD
        flat = embeddings_NQD.flatten(0, 1).to(inputs_BLD.dtype)
        return inputs_BLD.masked_scatter(places_BL.unsqueeze(-1), flat)

    def forward(self, batch: Batch, with_logits: bool = True) -> EmuOutput:
        """One pass that serves the cross-entropy and the regression.

        Without logits, for training, nothing is computed that no loss needs: the language model leaves out the
        padding, and the cross-entropy is taken here, in chunks of the positions whose next token is a target.
        """
        embeddings_NQD = None
        if batch.patches_NPV is not None:
            embeddings_NQD = self.encode_patches(batch.patches_NPV)
        elif batch.pixels_NCHW is not None:
            embeddings_NQD = self.encode_images(batch.pixels_NCHW)
        inputs_BLD = self.embed(batch.input_ids_BL, embeddings_NQD)
        if batch.documents is not None:
            hidden_BLD = self.language.forward_packed(inputs_BLD, batch.documents)
        elif with_logits:
            hidden_BLD = self.language(inputs_BLD, batch.attention_mask_BL)
        else:
            hidden_BLD = self.language.forward_unpadded(inputs_BLD, batch.attention_mask_BL)
        predictors_BL, targets_BL = regression_positions(
            batch.input_ids_BL, self.config.special, self.config.objective
        )
        return EmuOutput(
            logits_BLV=self.language.head(hidden_BLD) if with_logits else None,
            hidden_BLD=hidden_BLD,
            inputs_BLD=inputs_BLD,
            regressed_ND=self.language.regress(hidden_BLD[predictors_BL]),
            targets_ND=inputs_BLD[targets_BL],
            text_sum=None if with_logits else self._text_sum(hidden_BLD, batch.labels_BL),
        )

    def _text_sum(self, hidden_BLD: Tensor, labels_BL: Tensor) -> Tensor:
        """The cross-entropy summed over all text targets."""
        predicts_BL = predicts_target(labels_BL)
        labels_T = labels_BL[:, 1:][predicts_BL[:, :-1]]
        weight_WD = self.language.lm.lm_head.weight
        return chunked_cross_entropy(hidden_BLD[predicts_BL], weight_WD, labels_T)

    @torch.no_grad()
    def score(
        self, input_ids_BL: Tensor, attention_mask_BL: Tensor, pixels_NCHW: Tensor | None = None
    ) -> Scores:
        """Logits, states, regressions and both losses of whole right-padded sequences, in one pass.

        The mask is true (or 1) at positions that count. Images come normalised, in reading order,
        row by row of the batch. The losses are taken under the released masks and the choices of
        `ObjectiveConfig`; the visual one is not weighted. Raises ValueError naming the argument that
        does not fit.
        """
        ids_BL, mask_BL = self._checked(input_ids_BL, attention_mask_BL)
        labels_BL = text_labels(ids_BL, self.config.special, self.config.objective)
        device = self.ln_visual.weight.device
        batch = Batch(ids_BL, mask_BL, labels_BL, pixels_NCHW).to(device)
        output = self(batch)
        losses = Objective(self.config.objective)(output, batch)
        assert output.logits_BLV is not None
        return Scores(
            output.logits_BLV,
            output.hidden_BLD,
            losses.text,
            losses.visual,
            output.regressed_ND,
            output.targets_ND,
        )

    def merge_adapter(self) -> None:
        """Folds LoRA into the weights; the configuration then has no adapter."""
        merge_adapter(self.language)
        self.config = dataclasses.replace(self.config, adapter=None)

    def recompute_activations(self) -> None:
        """Trades time for memory in training, in all three parts."""
        self.visual.recompute_blocks = True
        self.former.recompute_blocks = True
        self.language.recompute_layers()

    def init_weights(self, seed: int, but: tuple[str, ...] = ()) -> None:
        """Initialises every weight at random; the same seed gives the same weights on any device.

        Weights whose names start with one of `but` are left as they are.
        """
        init_weights(self, self.config, torch.Generator().manual_seed(seed), but)

    def _checked(self, input_ids_BL: Tensor, attention_mask_BL: Tensor) -> tuple[Tensor, Tensor]:
        """The ids, `[PAD]` where the mask is false, and the mask as booleans."""
        shape = tuple(input_ids_BL.shape)
        if input_ids_BL.dim() != 2 or not input_ids_BL.numel() or input_ids_BL.is_floating_point():
            dtype = input_ids_BL.dtype
            raise ValueError(f"input_ids_BL is {dtype} of shape {shape}, give whole numbers (B, L)")
        if tuple(attention_mask_BL.shape) != shape:
            found = tuple(attention_mask_BL.shape)
            raise ValueError(f"attention_mask_BL has shape {found}, input_ids_BL has {shape}")
        limit, rows = self.config.language.max_positions, self.config.num_embeddings
        if shape[1] > limit:
            raise ValueError(f"input_ids_BL has {shape[1]} positions, the model has {limit}")
        mask_BL = attention_mask_BL.bool().to(input_ids_BL.device)
        if not mask_BL[:, 0].all() or (mask_BL[:, 1:] & ~mask_BL[:, :-1]).any():
            raise ValueError("attention_mask_BL has padding before a token; pad on the right alone")
        ids_BL = input_ids_BL.long().masked_fill(~mask_BL, self.config.special.pad)
        if ids_BL.min() < 0 or ids_BL.max() >= rows:
            found = f"{int(ids_BL.min())}..{int(ids_BL.max())}"
            raise ValueError(f"input_ids_BL holds ids in {found}, the model has 0..{rows - 1}")
        return ids_BL, mask_BL


VOCABULARY = ("language.lm.model.embed_tokens.weight", "language.lm.lm_head.weight")
"""The weights with a row for each id."""
WORDS = ("user", "assistant")
"""The rows of the added tokens start from those of these words, in the order of their ids."""


@torch.no_grad()
def add_instruct_tokens(model: Emu, tokenizer: EmuTokenizer) -> None:
    """Adds `[USER]` and `[ASSISTANT]` to a pretrained model; without them the results stay equal up to rounding.

    Their rows start from those of the words "user" and "assistant" (paper section 3.4), in the embedding and in the
    output head; a word of several pieces gives the mean of their rows. `tokenizer` is the model's own, with or
    without the added tokens. Raises ValueError for a model that has these rows already, and for a tokenizer of
    another size.
    """
    if model.config.instruct:
        raise ValueError("the model has rows for [USER] and [ASSISTANT] already")
    pieces = model.config.language.vocab_size
    if tokenizer.num_pieces != pieces:
        raise ValueError(
            f"the tokenizer has {tokenizer.num_pieces} pieces, the model {pieces}; give the tokenizer "
            "that belongs to the model"
        )
    lm = model.language.lm
    words = instruct_words(tokenizer)
    for module in (lm.model.embed_tokens, lm.lm_head):
        rows = module.weight
        module.weight = nn.Parameter(grown(rows.data, words), rows.requires_grad)
    model.config = replace(model.config, instruct=True)
    num_rows = model.config.num_embeddings
    lm.model.embed_tokens.num_embeddings = lm.lm_head.out_features = num_rows
    lm.vocab_size = lm.model.vocab_size = lm.config.vocab_size = num_rows


def instruct_words(tokenizer: EmuTokenizer) -> list[list[int]]:
    """The ids of the words from whose rows those of `[USER]` and `[ASSISTANT]` start."""
    return [tokenizer.encode_text(word) for word in WORDS]


def grown(rows_WD: Tensor, words: list[list[int]]) -> Tensor:
    """The rows of a vocabulary, and for each word one more: the mean of those of its ids."""
    new: list[Tensor] = [rows_WD[ids].float().mean(0).to(rows_WD.dtype) for ids in words]
    return torch.cat((rows_WD, torch.stack(new)))


@torch.no_grad()
def init_weights(
    model: nn.Module, config: EmuConfig, generator: Generator, but: tuple[str, ...] = ()
) -> None:
    """Initialises every parameter of `model`, in the order of its names, but for names that start with one of `but`.

    Values are sampled on the CPU in float32 and copied, so that they do not depend on device and dtype.
    """
    weights = dict(model.named_parameters())
    for name, value in initial_values(model, config, generator, but):
        weights[name].copy_(value)


def initial_values(
    model: nn.Module, config: EmuConfig, generator: Generator, but: tuple[str, ...] = ()
) -> Iterator[tuple[str, Tensor]]:
    """The names and initial values of the parameters, one after the other, in float32 on the CPU.

    The model may be on the meta device.
    """
    white_V = None
    for name, weight in model.named_parameters():
        if name.startswith(but):
            continue
        value = initial_value(name, weight, config, generator)
        if name.endswith("embed_tokens.weight"):
            value[config.special.pad] = 0
        if name == f"{PATCHES}.weight" and config.init.ground:
            white_V = value.sum(dim=(2, 3)) @ torch.tensor(WHITE)
        if name == f"{PATCHES}.bias" and white_V is not None:
            value = darkened(config.init.ground, white_V)
        yield name, value


def initial_value(name: str, weight: Tensor, config: EmuConfig, generator: Generator) -> Tensor:
    """The initial value of one parameter, in float32 on the CPU."""
    kind = name.rpartition(".")[2]
    if kind == "bias" or kind in ("q_bias", "v_bias") or "lora_B" in name:
        return torch.zeros(weight.shape)
    if "norm" in name or name.startswith("ln_visual"):
        return torch.ones(weight.shape)
    if name.startswith("former."):
        std = former_std(name, weight, config)
    elif name.startswith("visual."):
        std = visual_std(name, config)
    elif "lora_A" in name:
        std = 1 / math.sqrt(3 * weight.shape[1])
    else:
        std = language_std(name, config)
    value = torch.empty(weight.shape)
    return nn.init.trunc_normal_(value, std=std, a=-3 * std, b=3 * std, generator=generator)


def former_std(name: str, weight: Tensor, config: EmuConfig) -> float:
    """T5's standard deviations: attention has no 1/sqrt(d) factor, so the queries' weights contain it."""
    former = config.former
    if name == "former.queries":
        return STD
    if name.startswith("former.relative_bias"):
        return former.d_model**-0.5
    if name.startswith("former.projection"):
        return (3 * former.d_model) ** -0.5  # that of a plain linear layer, as released
    if name.endswith("attention.q.weight"):
        gain = config.init.query_gain if "cross_attention" in name else 1.0
        return gain * (former.d_model * former.d_kv) ** -0.5
    return weight.shape[1] ** -0.5


def visual_std(name: str, config: EmuConfig) -> float:
    """The ViT's standard deviation, smaller in deeper residual branches (as in timm's `Eva`)."""
    if name.endswith("pos_embed"):
        return config.init.position_std
    if ".blocks." not in name:
        return STD
    std = config.init.block_std
    match = re.search(r"blocks\.(\d+)\.(attn\.proj|mlp\.fc2)\.", name)
    return std / math.sqrt(2 * (int(match[1]) + 1)) if match else std


def language_std(name: str, config: EmuConfig) -> float:
    """LLaMA's standard deviations: of its layers, of the token embeddings, of the two heads."""
    if name.endswith("embed_tokens.weight"):
        return config.init.embedding_std
    return config.init.language_std if ".layers." in name else STD


def darkened(ground: float, white_V: Tensor) -> Tensor:
    """The bias of the patch embedding that subtracts that fraction of the embedding of a white patch.

    In pale images all patches have nearly the same large embedding, which hides the differences between them.
    """
    return -ground * white_V
