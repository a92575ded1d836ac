"""The small files beside the weights that make a directory readable to the ecosystem's libraries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from emu.config import INSTRUCT_TOKENS, PRETRAIN_TOKENS, EmuConfig
from emu.tokenizer import BASE_TOKENS, EmuTokenizer

TOKENIZER = "tokenizer.model"
TOKENIZER_CONFIG, GENERATION_CONFIG = "tokenizer_config.json", "generation_config.json"


def write_generation_config(directory: Path, config: EmuConfig) -> None:
    """Writes the special ids and the five beams of all released runs, as transformers reads them."""
    special = config.special
    _write(
        directory / GENERATION_CONFIG,
        {
            "bos_token_id": special.bos,
            "eos_token_id": special.eos,
            "pad_token_id": special.pad,
            "do_sample": False,
            "num_beams": 5,
        },
    )


def write_tokenizer(directory: Path, tokenizer: EmuTokenizer, max_positions: int) -> None:
    """Writes the sentencepiece model and what tells transformers its class and its added tokens.

    `EmuTokenizer` needs the model alone. A current transformers splits prompts with special tokens in
    another way than the released one; ids of plain texts and of the special tokens are the same.
    """
    tokenizer.save(directory / TOKENIZER)
    added = INSTRUCT_TOKENS if tokenizer.instruct else PRETRAIN_TOKENS
    ids = dict(enumerate(BASE_TOKENS)) | dict(enumerate(added, tokenizer.num_pieces))
    unk, bos, eos = BASE_TOKENS
    _write(
        directory / TOKENIZER_CONFIG,
        {
            "tokenizer_class": "LlamaTokenizer",
            "legacy": True,
            "add_bos_token": True,
            "add_eos_token": False,
            "unk_token": unk,
            "bos_token": bos,
            "eos_token": eos,
            "pad_token": added[0],
            "model_max_length": max_positions,
            "padding_side": "right",
            "added_tokens_decoder": {str(i): _token(text) for i, text in ids.items()},
        },
    )


def _token(text: str) -> dict[str, Any]:
    plain = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    return {"content": text, "special": True} | plain


def _write(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n")
