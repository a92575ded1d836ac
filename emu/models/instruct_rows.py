"""The rows of `[USER]` and `[ASSISTANT]` in a model that was pretrained without them.

They start from the rows of the words "user" and "assistant" (paper section 3.4), in the embedding and in the output
head; a word of several pieces gives the mean of their rows.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from emu.models.emu import Emu
from emu.tokenizer import EmuTokenizer

WORDS = ("user", "assistant")
"""Of the added tokens, in the order of their ids."""


@torch.no_grad()
def add_instruct_tokens(model: Emu, tokenizer: EmuTokenizer) -> None:
    """Gives a pretrained model the vocabulary of instructions; what it computes without it stays the same.

    `tokenizer` is the model's own, with or without the added tokens. Raises ValueError for a model that has
    these rows already, and for a tokenizer of another size.
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
    words = [tokenizer.encode_text(word) for word in WORDS]
    lm.model.embed_tokens.weight = _grown(lm.model.embed_tokens.weight, words)
    lm.lm_head.weight = _grown(lm.lm_head.weight, words)
    model.config = replace(model.config, instruct=True)
    num_rows = model.config.num_embeddings
    lm.model.embed_tokens.num_embeddings = lm.lm_head.out_features = num_rows
    lm.vocab_size = lm.model.vocab_size = lm.config.vocab_size = num_rows


def _grown(rows: Tensor, words: list[list[int]]) -> nn.Parameter:
    new: list[Tensor] = [rows[ids].float().mean(0).to(rows.dtype) for ids in words]
    return nn.Parameter(torch.cat((rows.data, torch.stack(new))), rows.requires_grad)
