import dataclasses

import pytest
import torch
from transformers.models.t5.modeling_t5 import T5Attention, T5Config, T5Stack

from emu.config import CausalFormerConfig
from emu.models.visual import CausalFormer, distance_buckets

SIZES = CausalFormerConfig(
    d_model=24, d_kv=5, num_heads=3, num_layers=2, d_ff=40, num_queries=40, dropout=0.0
)


@pytest.fixture
def former() -> CausalFormer:
    torch.manual_seed(0)
    former = CausalFormer(SIZES, vision_width=18, language_width=20).eval()
    torch.nn.init.normal_(former.queries)
    return former


def test_buckets_are_those_of_t5() -> None:
    distance = torch.arange(300)[:, None] - torch.arange(300)[None, :]
    ours = distance_buckets(distance, 32, 128)
    theirs = T5Attention._relative_position_bucket(-distance, False, 32, 128)
    assert torch.equal(ours, theirs)
    assert ours.unique().tolist() == list(range(32))


@torch.no_grad()
def test_it_is_the_decoder_stack_of_t5() -> None:
    """With as many queries as fall into the logarithmic buckets, against the library's T5."""
    torch.manual_seed(0)
    sizes = {"d_model": 24, "d_kv": 5, "num_heads": 3, "d_ff": 40, "num_layers": 2}
    stack = T5Stack(T5Config(**sizes, is_decoder=True, use_cache=False, vocab_size=8)).eval()
    for weight in stack.parameters():
        weight.copy_(torch.randn_like(weight) * 0.3)
    former = CausalFormer(SIZES, vision_width=24, language_width=20).eval()
    names = {
        "self_norm": "layer.0.layer_norm",
        "self_attention": "layer.0.SelfAttention",
        "cross_norm": "layer.1.layer_norm",
        "cross_attention": "layer.1.EncDecAttention",
        "feed_norm": "layer.2.layer_norm",
        "feed_forward": "layer.2.DenseReluDense",
    }
    for ours, theirs in zip(former.blocks, stack.block, strict=True):
        for our_name, their_name in names.items():
            weights = theirs.get_submodule(their_name).state_dict()
            weights.pop("relative_attention_bias.weight", None)
            ours.get_submodule(our_name).load_state_dict(weights)
    bias = stack.get_parameter("block.0.layer.0.SelfAttention.relative_attention_bias.weight")
    former.relative_bias.weight.copy_(bias)
    former.final_norm.load_state_dict(stack.final_layer_norm.state_dict())
    patches = torch.randn(2, 7, 24)
    theirs = stack(
        inputs_embeds=former.queries.expand(2, -1, -1), encoder_hidden_states=patches
    ).last_hidden_state
    torch.testing.assert_close(former(patches), former.projection(theirs), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_an_embedding_does_not_see_later_queries(former: CausalFormer) -> None:
    patches = torch.randn(2, 9, 18)
    before = former(patches)
    former.queries[:, 25:] += 1
    after = former(patches)
    assert torch.equal(before[:, :25], after[:, :25])
    assert not torch.isclose(before[:, 25:], after[:, 25:]).all(dim=-1).any()


@torch.no_grad()
def test_every_embedding_sees_every_patch(former: CausalFormer) -> None:
    patches = torch.randn(1, 9, 18)
    before = former(patches)
    patches[:, 4] += 1
    assert not torch.isclose(before, former(patches)).all(dim=-1).any()


def test_dropout_works_in_training_only(former: CausalFormer) -> None:
    config = dataclasses.replace(SIZES, dropout=0.5)
    noisy = CausalFormer(config, vision_width=18, language_width=20)
    noisy.load_state_dict(former.state_dict())
    patches = torch.randn(1, 9, 18)
    assert torch.equal(noisy.eval()(patches), former(patches))
    noisy.train()
    assert not torch.allclose(noisy(patches), noisy(patches))


def test_recomputation_gives_the_same_gradients(former: CausalFormer) -> None:
    patches = torch.randn(1, 9, 18)
    gradients = []
    for recompute in (False, True):
        former.train()
        former.recompute_blocks = recompute
        former.zero_grad()
        former(patches).square().mean().backward()
        gradients.append([weight.grad.clone() for weight in former.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])
