"""A small LLaMA as Hugging Face's library saves it, with its tokenizer."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from emu.config import LanguageConfig


def write_llama(
    folder: Path, sizes: LanguageConfig, tokenizer: Path, max_shard_size: str = "5GB"
) -> LlamaForCausalLM:
    """Writes the folder; gives the model in it."""
    torch.manual_seed(5)
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=sizes.vocab_size,
            hidden_size=sizes.hidden_size,
            num_hidden_layers=sizes.num_layers,
            num_attention_heads=sizes.num_heads,
            intermediate_size=sizes.intermediate_size,
            max_position_embeddings=sizes.max_positions,
            rms_norm_eps=1e-5,
        )
    )
    llama.save_pretrained(folder, max_shard_size=max_shard_size)
    (folder / "tokenizer.model").write_bytes(tokenizer.read_bytes())
    return llama


def change_config(folder: Path, **values: Any) -> None:
    """Changes the folder's config.json; None takes a key away."""
    path = folder / "config.json"
    changed = json.loads(path.read_text()) | values
    path.write_text(json.dumps({name: v for name, v in changed.items() if v is not None}))
