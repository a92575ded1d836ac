"""The Causal Former (paper section 2.1, Causal Transformer): 2-D patches to a 1-D causal sequence.

It is the decoder stack of T5 v1.0, written out: RMSNorm before each part, no biases, attention
without the 1/sqrt(d) factor, one relative position bias shared by all blocks, ReLU feed-forward.

Shapes: B batch, P patch tokens, Q causal queries, V vision width, D language width, H heads,
M width of the former, K width of a head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from emu.config import CausalFormerConfig

NORM_EPS = 1e-6


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
