"""A new adapter on a pretrained model: it alone is trained, and the weights beneath never change."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from emu.config import AdapterConfig
from emu.models.emu import Emu
from emu.models.objective import Objective
from emu.recipes import OptimConfig
from emu.train.optim import make_optimizer, set_learning_rates
from emu.train.start import train_adapter_alone, train_new_adapter
from emu.weights.layout import CONFIG
from emu.weights.released import config_from_released, from_released, our_names
from emu.weights.store import build_model, load_model, save_model, weights_hash
from tests.models.conftest import make_batch, micro_config

LORA = AdapterConfig(rank=4, alpha=8, dropout=0.0)


@pytest.fixture
def pretrained() -> Emu:
    model = Emu(micro_config())
    model.init_weights(seed=3)
    return model.eval()


def beneath(name: str) -> str:
    return name.replace(".base_layer.", ".")


def test_it_alone_is_trained(pretrained: Emu) -> None:
    before = {name: tensor.clone() for name, tensor in pretrained.state_dict().items()}
    places = {name: weight.data_ptr() for name, weight in pretrained.named_parameters()}
    batch = make_batch(pretrained.config, seed=1)
    with torch.no_grad():
        answer = pretrained(batch).logits_BLV
    train_new_adapter(pretrained, LORA, seed=5)
    with torch.no_grad():
        assert torch.equal(pretrained(batch).logits_BLV, answer)  # untrained, it changes nothing
    trained = {name for name, weight in pretrained.named_parameters() if weight.requires_grad}
    assert len(trained) == 2 * 4 * pretrained.config.language.num_layers
    assert all(".lora_" in name for name in trained)
    for name, weight in pretrained.named_parameters():
        if name not in trained:
            assert weight.data_ptr() == places[beneath(name)], name

    config = OptimConfig(language_lr=0.05, warmup_ratio=0.0)
    optimizer = make_optimizer(pretrained, config)  # takes what has a gradient, as finetuning does
    assert {n for group in optimizer.param_groups for n in group["weight_names"]} == trained
    objective = Objective(pretrained.config.objective)
    losses = []
    for step in range(5):
        set_learning_rates(optimizer, step, 5, config)
        loss = objective(pretrained.train()(batch), batch).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for name, tensor in pretrained.state_dict().items():
        if name not in trained:
            assert torch.equal(tensor, before[beneath(name)]), name

    pretrained.eval()
    with torch.no_grad():
        unmerged = pretrained(batch).logits_BLV
        assert not torch.allclose(unmerged, answer, atol=1e-3)
        pretrained.merge_adapter()
        torch.testing.assert_close(pretrained(batch).logits_BLV, unmerged, atol=1e-5, rtol=0)
    assert set(pretrained.state_dict()) == set(before)


def test_the_seed_draws_it(pretrained: Emu) -> None:
    hashes = []
    for seed in (1, 1, 2):
        model = build_model(pretrained.config, iter(pretrained.state_dict().items()))
        train_new_adapter(model, LORA, seed)
        hashes.append(weights_hash(model))
    assert hashes[0] == hashes[1] != hashes[2]


def test_it_is_kept_unmerged(pretrained: Emu, tmp_path: Path) -> None:
    train_new_adapter(pretrained, LORA, seed=5)
    save_model(tmp_path, pretrained)
    assert load_file(tmp_path / "model.safetensors").keys() == pretrained.state_dict().keys()
    assert '"rank": 4' in (tmp_path / CONFIG).read_text()
    with pytest.raises(ValueError, match=r"the model has an adapter.*merge_adapter"):
        train_new_adapter(pretrained, LORA, seed=5)
    pretrained.merge_adapter()
    with pytest.raises(ValueError, match="has no adapter to train"):
        train_adapter_alone(pretrained)


def test_emu_i_goes_on_training_its_adapter(golden: Path) -> None:
    meta = json.loads((golden / "emu1_small" / "meta.json").read_text())
    config = config_from_released(meta["config"], instruct=True)
    weights = load_file(golden / "emu1_small" / "instruct.safetensors")
    model = build_model(config, iter(from_released(weights.items(), config)))
    train_adapter_alone(model)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained == {ours for theirs, ours in our_names(config).items() if ".lora_" in theirs}


def test_no_weight_is_left_at_random_values(pretrained: Emu, golden: Path, tmp_path: Path) -> None:
    """A directory whose weights lack what lies beneath an adapter, or the adapter, is refused."""
    tokenizer = golden / "emu1_small" / "tokenizer" / "tokenizer.model"
    language = replace(pretrained.config.language, vocab_size=400)
    model = Emu(replace(pretrained.config, language=language, adapter=LORA))
    model.init_weights(1)
    save_model(tmp_path, model, tokenizer)
    whole = load_file(tmp_path / "model.safetensors")
    load_model(tmp_path)
    for part in ("q_proj.base_layer.weight", "v_proj.lora_B.default.weight"):
        name = f"language.lm.model.layers.1.self_attn.{part}"
        save_file({n: t for n, t in whole.items() if n != name}, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match=f"missing {name}"):
            load_model(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 0}, "rank is 0, give a whole number of at least 1"),
        ({"targets": ("gate",)}, r"targets.0 is 'gate', give one of 'q_proj'"),
        ({"targets": ()}, r"targets is \(\)"),
        ({"dropout": 1.0}, "dropout is 1.0"),
    ],
)
def test_adapters_that_cannot_be(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(LORA, **change)
