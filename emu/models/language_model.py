"""The multimodal language model: LLaMA with the added tokens and a regression head.

Shapes: B batch, L new positions, S all positions so far (cache included), T = B L, D language width,
W rows of the vocabulary.

LoRA (Emu-I) is peft's, imported where it is used: the import takes more than a second, and most models have no adapter.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.cache_utils import Cache

from emu.config import AdapterConfig, EmuConfig
from emu.models.attention import IMPLEMENTATION, Documents, PaddedRows, register_attention

ROPE_BASE = 10000.0


class LanguageModel(nn.Module):
    """LLaMA between embeddings and hidden states; the heads are called where they are wanted."""

    def __init__(self, config: EmuConfig) -> None:
        super().__init__()
        width = config.language.hidden_size
        self.lm = LlamaForCausalLM(llama_config(config))
        register_attention()
        self.lm.set_attn_implementation(IMPLEMENTATION)
        angles = RotaryAngles(width // config.language.num_heads)
        self.lm.model.register_module("rotary_emb", angles)
        self.regress_head = nn.Linear(width, width, bias=False)

    def embed(self, input_ids_BL: Tensor) -> Tensor:
        """The input embeddings `BLD` of token ids."""
        return self.lm.model.embed_tokens(input_ids_BL)

    def forward(
        self,
        inputs_BLD: Tensor,
        mask_BS: Tensor | None = None,
        cache: Cache | None = None,
        positions_BL: Tensor | None = None,
    ) -> Tensor:
        """The hidden states `BLD` after the final norm.

        `cache` (a transformers `DynamicCache`) is read and extended in place. `mask_BS` is False at
        padding and covers the cached positions too. `positions_BL` is needed for left-padded rows:
        by default positions count on from the length of the cache.
        """
        return self.lm.model(
            inputs_embeds=inputs_BLD,
            attention_mask=mask_BS,
            position_ids=positions_BL,
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state

    def forward_packed(self, inputs_BLD: Tensor, documents: Documents) -> Tensor:
        """The hidden states `BLD` of packed rows: positions count from 0 in each document, which sees itself alone.

        The layers are called as modules, one after the other, so that recomputation and sharding work as elsewhere.
        """
        trunk = self.lm.model
        states_1TD = inputs_BLD.flatten(0, 1)[None]
        positions_1T = documents.positions_BL.flatten()[None]
        angles = trunk.rotary_emb(states_1TD, positions_1T)
        for layer in trunk.layers:
            states_1TD = layer(states_1TD, position_embeddings=angles, documents=documents)
        return trunk.norm(states_1TD)[0].view_as(inputs_BLD)

    def forward_unpadded(self, inputs_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """The hidden states of right-padded rows, computed at their real positions alone; zero at the padding."""
        rows = PaddedRows.of(mask_BL)
        states_1TD = rows.real(inputs_BLD)[None]
        angles = self.lm.model.rotary_emb(states_1TD, rows.positions_T[None])
        for layer in self.lm.model.layers:
            states_1TD = layer(states_1TD, position_embeddings=angles, documents=rows)
        return rows.padded(self.lm.model.norm(states_1TD)[0])

    def head(self, hidden: Tensor) -> Tensor:
        """The logits over the vocabulary for hidden states of any leading shape."""
        return self.lm.lm_head(hidden)

    def regress(self, hidden: Tensor) -> Tensor:
        """The next visual embedding predicted from hidden states of any leading shape."""
        return self.regress_head(hidden)

    def recompute_layers(self) -> None:
        """Trades time for memory in training: activations inside layers are computed again."""
        self.lm.gradient_checkpointing_enable({"use_reentrant": False})
        self.lm.disable_input_require_grads()  # only reentrant checkpoints need them


class RotaryAngles(nn.Module):
    """Cosines and sines of LLaMA's rotary positions, always from float32 frequencies.

    The library keeps the frequencies in a buffer, which `.to(bfloat16)` would round and the meta
    device would leave without values; here they are computed where they are used.
    """

    def __init__(self, head_width: int) -> None:
        super().__init__()
        self.head_width = head_width

    @torch.no_grad()
    def forward(self, states: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the positions, in the dtype of `states`."""
        steps = torch.arange(0, self.head_width, 2, device=states.device, dtype=torch.float32)
        frequencies = 1.0 / (ROPE_BASE ** (steps / self.head_width))
        with torch.autocast(states.device.type, enabled=False):
            angles = position_ids[..., None].float() * frequencies
            angles = torch.cat((angles, angles), dim=-1)
            return angles.cos().to(states.dtype), angles.sin().to(states.dtype)


def llama_config(config: EmuConfig) -> LlamaConfig:
    """The transformers configuration of the language model, added tokens included."""
    sizes = config.language
    return LlamaConfig(
        vocab_size=config.num_embeddings,
        hidden_size=sizes.hidden_size,
        intermediate_size=sizes.intermediate_size,
        num_hidden_layers=sizes.num_layers,
        num_attention_heads=sizes.num_heads,
        num_key_value_heads=sizes.num_heads,
        max_position_embeddings=sizes.max_positions,
        rms_norm_eps=sizes.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_BASE},
        pad_token_id=config.special.pad,
        bos_token_id=config.special.bos,
        eos_token_id=config.special.eos,
        tie_word_embeddings=False,
    )


LORA = ".lora_"


def add_adapter(language: LanguageModel, config: AdapterConfig) -> None:
    """Puts fresh, trainable adapters on the attention projections of every layer.

    An untrained adapter changes nothing. The weight it sits on is frozen and is then called
    `<projection>.base_layer.weight`; the rest of the model keeps its names and stays trainable.
    """
    from peft import LoraConfig, inject_adapter_in_model

    trainable = {name for name, weight in language.lm.named_parameters() if weight.requires_grad}
    inject_adapter_in_model(
        LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            target_modules=list(config.targets),
            bias="none",
        ),
        language.lm,
    )
    for name, weight in language.lm.named_parameters():  # peft freezes everything but adapters
        weight.requires_grad_(name in trainable or LORA in name)


def merge_adapter(language: LanguageModel) -> None:
    """Folds the adapters into the weights they sit on, which become plain and trainable again."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(language.lm.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, leaf = name.rpartition(".")
            merged = module.get_base_layer().requires_grad_(True)
            setattr(language.lm.get_submodule(parent), leaf, merged)
