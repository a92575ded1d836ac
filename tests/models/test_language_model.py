import copy

import torch
from transformers import DynamicCache, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from emu.models.emu import Emu
from emu.models.language_model import RotaryAngles


@torch.no_grad()
def test_a_cache_gives_the_same_as_one_pass(model: Emu) -> None:
    language = model.language
    inputs = torch.randn(2, 12, model.config.language.hidden_size)
    whole = language(inputs)
    cache = DynamicCache()
    parts = [language(inputs[:, a:b], cache=cache) for a, b in ((0, 7), (7, 8), (8, 12))]
    assert cache.get_seq_length() == 12
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_left_padding_with_positions_changes_nothing(model: Emu) -> None:
    language = model.language
    inputs = torch.randn(1, 6, model.config.language.hidden_size)
    whole = language(inputs)
    padded = torch.cat([torch.randn_like(inputs[:, :3]), inputs], dim=1)
    mask = torch.tensor([[False] * 3 + [True] * 6])
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    cache = DynamicCache()
    first = language(padded[:, :7], mask[:, :7], cache, positions[:, :7])
    rest = language(padded[:, 7:], mask, cache, positions[:, 7:])
    found = torch.cat([first[:, 3:], rest], dim=1)
    torch.testing.assert_close(found, whole, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_padding_in_the_middle_with_positions_changes_nothing(model: Emu) -> None:
    language = model.language
    inputs = torch.randn(1, 6, model.config.language.hidden_size)
    whole = language(inputs)
    padded = torch.cat([inputs[:, :2], torch.randn_like(inputs[:, :3]), inputs[:, 2:]], dim=1)
    mask = torch.tensor([[True] * 2 + [False] * 3 + [True] * 4])
    found = language(padded, mask, positions_BL=mask.long().cumsum(1) - 1)
    kept = torch.cat([found[:, :2], found[:, 5:]], dim=1)
    torch.testing.assert_close(kept, whole, atol=1e-5, rtol=1e-5)
    unplaced = language(padded, mask)  # positions count the padding too
    assert not torch.allclose(unplaced[:, 5:], whole[:, 2:], atol=1e-4)


@torch.no_grad()
def test_right_padding_changes_nothing(model: Emu) -> None:
    inputs = torch.randn(1, 6, model.config.language.hidden_size)
    padded = torch.cat([inputs, torch.randn_like(inputs[:, :3])], dim=1)
    mask = torch.tensor([[True] * 6 + [False] * 3])
    found = model.language(padded, mask)[:, :6]
    torch.testing.assert_close(found, model.language(inputs), atol=1e-5, rtol=1e-5)


def test_packed_rows_give_the_states_and_gradients_of_padded_ones(model: Emu) -> None:
    lengths = torch.tensor([9, 1, 4])
    mask = torch.arange(9) < lengths[:, None]
    inputs = torch.randn(3, 9, model.config.language.hidden_size)
    packed_inputs, padded_inputs = (inputs.clone().requires_grad_() for _ in range(2))
    packed = model.language.forward_unpadded(packed_inputs, mask)
    padded = model.language.lm.model(inputs_embeds=padded_inputs, attention_mask=mask)[0]
    assert torch.equal(packed[~mask], torch.zeros_like(packed[~mask]))
    torch.testing.assert_close(packed[mask], padded[mask], atol=1e-5, rtol=1e-5)
    for states in (packed, padded):
        states[mask].square().sum().backward()
    torch.testing.assert_close(packed_inputs.grad, padded_inputs.grad, atol=1e-4, rtol=1e-4)


def test_rotary_angles_are_those_of_llama() -> None:
    config = LlamaConfig(hidden_size=64, num_attention_heads=4, max_position_embeddings=2048)
    states, positions = torch.zeros(1, 2048, 64), torch.arange(2048)[None]
    wanted = LlamaRotaryEmbedding(config)(states, positions)
    torch.testing.assert_close(RotaryAngles(16)(states, positions), wanted, atol=1e-6, rtol=0)


def test_rotary_angles_stay_exact_in_bfloat16() -> None:
    exact, _ = RotaryAngles(16)(torch.zeros(1), torch.tensor([[1999]]))
    low, _ = RotaryAngles(16).to(torch.bfloat16)(
        torch.zeros(1, dtype=torch.bfloat16), torch.tensor([[1999]])
    )
    torch.testing.assert_close(low.float(), exact, atol=2**-8, rtol=0)


def test_recomputation_gives_the_same_gradients(model: Emu) -> None:
    language = copy.deepcopy(model.language).train()
    inputs = torch.randn(1, 6, model.config.language.hidden_size)
    gradients = []
    for recompute in (False, True):
        if recompute:
            language.recompute_layers()
        language.zero_grad()
        language(inputs).square().mean().backward()
        gradients.append([w.grad.clone() for w in language.parameters() if w.grad is not None])
    torch.testing.assert_close(gradients[0], gradients[1])
