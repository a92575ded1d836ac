"""Images to causal embeddings (paper section 2.1): pixels, visual encoder, Causal Former.

An image is resized to the encoder's square without keeping its aspect ratio, with Pillow's bicubic filter, scaled to
0..1 and normalised with the mean and standard deviation of OpenAI's CLIP (paper section 3; released code). The visual
encoder, EVA-CLIP g/14, gives one vector per patch and one for the class token.

The Causal Former (the paper's Causal Transformer) turns them into a 1-D causal sequence. It is the decoder stack of T5
v1.0: RMSNorm before each part, no biases, attention without the 1/sqrt(d) factor, one relative position bias shared
by all blocks, ReLU feed-forward.

Shapes: N images, B batch, C channels, H W pixels (in attention H heads), P tokens of an image (class token first),
Q causal queries, V vision width, D language width, M width of the former, K width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from timm.models.eva import Eva
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from emu.config import CausalFormerConfig, VisionConfig
from schemas.images import decode_image

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
NORM_EPS = 1e-6


def preprocessing(side: int) -> str:
    """What `normalise` does, in words that change whenever its result does: features record it."""
    return (
        f"emu/1: RGB, bicubic to {side}x{side} without keeping the aspect ratio, CLIP mean and std"
    )


def normalise(image: Image.Image, side: int) -> Tensor:
    """The image as a float32 `CHW` tensor of `side` x `side`, normalised."""
    resized = image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    pixels_HWC = np.asarray(resized, dtype=np.float32) / 255.0
    mean, std = np.asarray(CLIP_MEAN, np.float32), np.asarray(CLIP_STD, np.float32)
    return torch.from_numpy(((pixels_HWC - mean) / std).transpose(2, 0, 1).copy())


def pixels_of(images: Sequence[bytes], side: int) -> Tensor:
    """Encoded images as one `NCHW` tensor; raises `ImageError` for bytes that do not decode."""
    if not images:
        return torch.empty(0, 3, side, side)
    return torch.stack([normalise(decode_image(data), side) for data in images])


class VisualEncoder(nn.Module):
    """All tokens after the last block of EVA-CLIP g/14, or of the same design at another size.

    `trunk` is timm's `Eva`, the class behind open_clip's `EVA01-g-14`, so open_clip's weights fit
    under their own names. Emu leaves out its final norm and its CLIP head (released code,
    `forward_features`); they stay with the weights, frozen, and serve `pool` alone.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = Eva(
            img_size=config.image_size,
            patch_size=config.patch_size,
            num_classes=config.embed_dim,
            global_pool="token",
            embed_dim=config.width,
            depth=config.layers,
            num_heads=config.heads,
            # Eva cuts width * ratio down to a whole number; the half keeps rounding out of it
            mlp_ratio=(config.mlp_hidden + 0.5) / config.width,
            qkv_fused=True,
        )
        self.trunk.norm.requires_grad_(False)
        self.trunk.head.requires_grad_(False)
        self.recompute_blocks = False  # trade time for memory in training

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """The tokens `BPV` of normalised images, without the tower's own final norm."""
        side = self.config.image_size
        if pixels_BCHW.dim() != 4 or pixels_BCHW.shape[1:] != (3, side, side):
            shape = tuple(pixels_BCHW.shape)
            raise ValueError(f"images have shape {shape}, the tower takes (B, 3, {side}, {side})")
        trunk = self.trunk
        assert trunk.cls_token is not None and trunk.pos_embed is not None
        tokens = trunk.patch_embed(pixels_BCHW.to(trunk.pos_embed.dtype))
        tokens = torch.cat([trunk.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        tokens = tokens + trunk.pos_embed
        for block in trunk.blocks:
            if self.recompute_blocks and self.training:
                tokens = checkpoint(block, tokens, use_reentrant=False)
            else:
                tokens = block(tokens)
        return tokens

    def pool(self, patches_BPV: Tensor) -> Tensor:
        """CLIP's image embedding, `embed_dim` wide and not normalised, from the tower's tokens."""
        classes_BV = patches_BPV[:, 0].to(self.trunk.get_parameter("norm.weight").dtype)
        return self.trunk.head(self.trunk.norm(classes_BV))

    def load_open_clip(self, tower: Mapping[str, Tensor]) -> None:
        """Takes the weights of an open_clip tower: `model.visual.state_dict()`.

        Raises ValueError naming every key that is missing, unexpected or of another shape.
        """
        ours = self.state_dict()
        problems = [f"missing {name}" for name in sorted(set(ours) - set(tower))]
        problems += [f"unexpected {name}" for name in sorted(set(tower) - set(ours))]
        problems += [
            f"{name} has shape {tuple(tower[name].shape)}, needs {tuple(ours[name].shape)}"
            for name in sorted(set(ours) & set(tower))
            if tower[name].shape != ours[name].shape
        ]
        if problems:
            raise ValueError("the open_clip tower does not fit: " + "; ".join(problems))
        self.load_state_dict(dict(tower))

    def fill_buffers(
        self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        """Gives the constant buffers their values, after construction on the meta device or for another precision.

        The tower has no bias on K; timm keeps a zero vector in its place, outside the state dict.
        """
        for name, buffer in list(self.trunk.named_buffers()):
            assert name.endswith(".k_bias"), name
            attention = self.trunk.get_submodule(name.rpartition(".")[0])
            attention.k_bias = torch.zeros(buffer.shape, dtype=dtype, device=device)


class CausalFormer(nn.Module):
    """Turns the patch tokens of an image into `num_queries` embeddings, each blind to later ones."""

    def __init__(self, config: CausalFormerConfig, vision_width: int, language_width: int) -> None:
        super().__init__()
        self.config = config
        self.queries = nn.Parameter(torch.empty(1, config.num_queries, config.d_model))
        self.relative_bias = nn.Embedding(config.num_buckets, config.num_heads)
        self.blocks = nn.ModuleList(
            FormerBlock(config, vision_width) for _ in range(config.num_layers)
        )
        self.final_norm = nn.RMSNorm(config.d_model, eps=NORM_EPS)
        self.dropout = nn.Dropout(config.dropout)
        self.projection = nn.Linear(config.d_model, language_width)
        self.recompute_blocks = False
        nn.init.normal_(self.queries, std=0.02)

    def forward(self, patches_BPV: Tensor) -> Tensor:
        """The causal embeddings `BQD` of normalised patch tokens."""
        bias_1HQQ = self.attention_bias().to(patches_BPV.dtype)
        states_BQM = self.dropout(self.queries.expand(len(patches_BPV), -1, -1))
        for block in self.blocks:
            if self.recompute_blocks and self.training:
                states_BQM = checkpoint(
                    block, states_BQM, patches_BPV, bias_1HQQ, use_reentrant=False
                )
            else:
                states_BQM = block(states_BQM, patches_BPV, bias_1HQQ)
        return self.projection(self.dropout(self.final_norm(states_BQM)))

    def attention_bias(self) -> Tensor:
        """What is added to the self-attention scores, `1HQQ`: position bias, -inf at the future."""
        positions = torch.arange(self.config.num_queries, device=self.queries.device)
        distance_QQ = positions[:, None] - positions[None, :]  # query minus key
        buckets_QQ = distance_buckets(
            distance_QQ, self.config.num_buckets, self.config.max_distance
        )
        bias_HQQ = self.relative_bias(buckets_QQ).permute(2, 0, 1)
        return bias_HQQ.masked_fill(distance_QQ < 0, -torch.inf).unsqueeze(0)


class FormerBlock(nn.Module):
    """Causal self-attention, cross-attention to the patches, feed-forward; each with a residual."""

    def __init__(self, config: CausalFormerConfig, vision_width: int) -> None:
        super().__init__()
        self.self_norm = nn.RMSNorm(config.d_model, eps=NORM_EPS)
        self.self_attention = Attention(config, config.d_model)
        self.cross_norm = nn.RMSNorm(config.d_model, eps=NORM_EPS)
        self.cross_attention = Attention(config, vision_width)
        self.feed_norm = nn.RMSNorm(config.d_model, eps=NORM_EPS)
        self.feed_forward = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, states_BQM: Tensor, patches_BPV: Tensor, bias_1HQQ: Tensor) -> Tensor:
        """The queries' states after this block."""
        normed = self.self_norm(states_BQM)
        states_BQM = states_BQM + self.dropout(self.self_attention(normed, normed, bias_1HQQ))
        normed = self.cross_norm(states_BQM)
        states_BQM = states_BQM + self.dropout(self.cross_attention(normed, patches_BPV, None))
        return states_BQM + self.dropout(self.feed_forward(self.feed_norm(states_BQM)))


class Attention(nn.Module):
    """Multi-head attention whose keys and values may come from another width."""

    def __init__(self, config: CausalFormerConfig, source_width: int) -> None:
        super().__init__()
        inner = config.num_heads * config.d_kv
        self.num_heads = config.num_heads
        self.dropout = config.dropout  # on the attention weights
        self.q = nn.Linear(config.d_model, inner, bias=False)
        self.k = nn.Linear(source_width, inner, bias=False)
        self.v = nn.Linear(source_width, inner, bias=False)
        self.o = nn.Linear(inner, config.d_model, bias=False)

    def forward(self, states_BQM: Tensor, source: Tensor, bias_1HQQ: Tensor | None) -> Tensor:
        """What each state gathers from `source`, brought back to the former's width."""
        mixed_BHQK = functional.scaled_dot_product_attention(
            self._heads(self.q(states_BQM)),
            self._heads(self.k(source)),
            self._heads(self.v(source)),
            attn_mask=bias_1HQQ,
            dropout_p=self.dropout if self.training else 0.0,
            scale=1.0,  # T5 folds 1/sqrt(d) into the initial weights of q
        )
        return self.o(mixed_BHQK.transpose(1, 2).flatten(2))

    def _heads(self, states: Tensor) -> Tensor:
        return states.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class FeedForward(nn.Module):
    """T5's ungated feed-forward with ReLU."""

    def __init__(self, config: CausalFormerConfig) -> None:
        super().__init__()
        self.wi = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.wo = nn.Linear(config.d_ff, config.d_model, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, states: Tensor) -> Tensor:
        """The states through both layers."""
        return self.wo(self.dropout(functional.relu(self.wi(states))))


def distance_buckets(distance: Tensor, num_buckets: int, max_distance: int) -> Tensor:
    """T5's bucket of each distance back in the sequence: exact when near, logarithmic when far.

    Distances to the future fall into bucket 0 (they are masked anyway); those from `max_distance`
    on share the last bucket.
    """
    back = distance.clamp(min=0)
    exact = num_buckets // 2
    scale = (num_buckets - exact) / math.log(max_distance / exact)
    # in float32 and cut, not rounded, as the T5 code does
    far = exact + (torch.log(back.clamp(min=1).float() / exact) * scale).long()
    return torch.where(back < exact, back, far.clamp(max=num_buckets - 1))
