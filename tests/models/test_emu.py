import copy
import dataclasses

import pytest
import torch

from emu.config import AdapterConfig, EmuConfig, tiny_config
from emu.models.emu import Emu
from emu.models.objective import Batch, Objective
from emu.weights.store import weights_hash
from tests.models.conftest import make_batch, micro_config


@torch.no_grad()
def test_shapes_and_places(model: Emu, batch: Batch) -> None:
    output = model(batch)
    size, length = batch.input_ids_BL.shape
    config = model.config
    width, queries = config.language.hidden_size, config.former.num_queries
    assert output.logits_BLV.shape == (size, length, config.num_embeddings)
    assert output.hidden_BLD.shape == output.inputs_BLD.shape == (size, length, width)
    assert output.regressed_ND.shape == output.targets_ND.shape == (3 * (queries + 1), width)
    assert batch.pixels_NCHW is not None
    embeddings = model.encode_images(batch.pixels_NCHW)
    images = output.inputs_BLD[batch.input_ids_BL == config.special.image]
    torch.testing.assert_close(images, embeddings.flatten(0, 1))  # in reading order
    words = batch.input_ids_BL != config.special.image
    wanted = model.language.embed(batch.input_ids_BL)[words]
    assert torch.equal(output.inputs_BLD[words], wanted)


@torch.no_grad()
def test_precomputed_patches_give_the_same(model: Emu, batch: Batch) -> None:
    assert batch.pixels_NCHW is not None
    patches = model.visual(batch.pixels_NCHW)
    precomputed = dataclasses.replace(batch, pixels_NCHW=None, patches_NPV=patches)
    torch.testing.assert_close(model(precomputed).logits_BLV, model(batch).logits_BLV)
    half = dataclasses.replace(precomputed, patches_NPV=patches.half())
    torch.testing.assert_close(
        model(half).logits_BLV, model(batch).logits_BLV, atol=1e-2, rtol=1e-2
    )


@torch.no_grad()
def test_nothing_looks_ahead(model: Emu, batch: Batch) -> None:
    before = model(batch).hidden_BLD[0]
    ids = batch.input_ids_BL.clone()
    place = (
        int((ids[0] == model.config.special.image_end).nonzero()[0]) + 3
    )  # a word between images
    ids[0, place] = 5
    after = model(dataclasses.replace(batch, input_ids_BL=ids)).hidden_BLD[0]
    torch.testing.assert_close(before[:place], after[:place])
    assert not torch.allclose(before[place:], after[place:])


def test_images_and_places_must_agree(model: Emu, batch: Batch) -> None:
    assert batch.pixels_NCHW is not None
    fewer = dataclasses.replace(batch, pixels_NCHW=batch.pixels_NCHW[:2])
    with pytest.raises(
        ValueError, match="hold 24 <image> positions, the images give 16 embeddings"
    ):
        model(fewer)
    with pytest.raises(ValueError, match="hold 24 <image> positions, the images give 0 embeddings"):
        model(dataclasses.replace(batch, pixels_NCHW=None))


def test_patches_of_another_size_are_refused(model: Emu) -> None:
    width = model.config.vision.width
    with pytest.raises(
        ValueError, match=rf"patches have shape \(1, 4, 5\), needed is \(N, 17, {width}\)"
    ):
        model.encode_patches(torch.zeros(1, 4, 5))


def test_the_same_seed_gives_the_same_weights() -> None:
    models = [Emu(micro_config()) for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        torch.rand(seed)  # the global generator does not matter
        model.init_weights(seed)
    first, second, third = map(weights_hash, models)
    assert first == second != third


def test_initial_weights_are_sensible(model: Emu, batch: Batch) -> None:
    state = dict(model.named_parameters())
    assert 0.015 < state["former.queries"].std() < 0.025
    former = model.config.former
    queries = state["former.blocks.0.self_attention.q.weight"].std().item()
    assert queries == pytest.approx((former.d_model * former.d_kv) ** -0.5, rel=0.1)
    first, second = (state[f"visual.trunk.blocks.{i}.mlp.fc2.weight"].std() for i in (0, 1))
    assert (first / second).item() == pytest.approx(2**0.5, rel=0.1)
    assert not state["language.lm.model.embed_tokens.weight"][model.config.special.pad].any()
    assert all(weight.isfinite().all() for weight in state.values())
    losses = Objective(model.config.objective)(model(batch), batch)
    chance = torch.tensor(float(model.config.num_embeddings)).log()
    assert abs(losses.text.item() - chance.item()) < 0.3  # an untrained model guesses evenly
    assert 0.01 < losses.visual < 5


def test_gradient_reaches_every_trained_part(config: EmuConfig, batch: Batch) -> None:
    model = Emu(config).train()
    model.init_weights(0)
    Objective(config.objective)(model(batch), batch).total.backward()
    without = [n for n, w in model.named_parameters() if w.requires_grad and w.grad is None]
    assert without == []
    frozen = {name for name, weight in model.named_parameters() if not weight.requires_grad}
    assert frozen == {
        f"visual.trunk.{part}.{k}" for part in ("norm", "head") for k in ("weight", "bias")
    }


def test_recomputation_gives_the_same_gradients(config: EmuConfig, batch: Batch) -> None:
    former = dataclasses.replace(config.former, dropout=0.0)
    model = Emu(dataclasses.replace(config, former=former)).train()
    model.init_weights(0)
    gradients = []
    for recompute in (False, True):
        if recompute:
            model.recompute_activations()
        model.zero_grad()
        Objective(config.objective)(model(batch), batch).total.backward()
        gradients.append([w.grad.clone() for w in model.parameters() if w.grad is not None])
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("whole", [True, False])
def test_losses_hold_in_bfloat16(model: Emu, batch: Batch, whole: bool) -> None:
    """Under autocast, and with every weight in bfloat16."""
    objective = Objective(model.config.objective)
    exact = objective(model(batch), batch)
    low = copy.deepcopy(model).to(torch.bfloat16) if whole else copy.deepcopy(model)
    with torch.autocast("cpu", torch.bfloat16, enabled=not whole):
        losses = objective(low(batch), batch)
    assert losses.text.dtype == losses.visual.dtype == torch.float32
    assert losses.text.item() == pytest.approx(exact.text.item(), rel=0.01)
    assert losses.visual.item() == pytest.approx(exact.visual.item(), rel=0.05)
    losses.total.backward()
    gradient = low.get_parameter("visual.trunk.pos_embed").grad
    assert gradient is not None and gradient.isfinite().all() and gradient.any()


def test_a_fresh_adapter_changes_nothing_and_trains_alone(batch: Batch) -> None:
    plain = Emu(tiny_config(400))
    plain.init_weights(3)
    adapted = Emu(dataclasses.replace(plain.config, adapter=AdapterConfig(rank=4)))
    adapted.init_weights(4)
    state = adapted.state_dict()
    for name, weight in plain.state_dict().items():
        where = name if name in state else name.replace("_proj.weight", "_proj.base_layer.weight")
        state[where].copy_(weight)
    with torch.no_grad():
        torch.testing.assert_close(adapted.eval()(batch).logits_BLV, plain.eval()(batch).logits_BLV)
    weights = dict(adapted.named_parameters())
    assert all(w.requires_grad for name, w in weights.items() if ".lora_" in name)
    assert not any(w.requires_grad for name, w in weights.items() if ".base_layer." in name)
    assert sum(".lora_A" in name for name in weights) == 4 * plain.config.language.num_layers


def test_sixty_steps_learn_a_fixed_batch() -> None:
    config = tiny_config(vocab_size=400)
    model = Emu(config).train()
    model.init_weights(0)
    torch.manual_seed(0)  # for dropout
    batch = make_batch(config, seed=1)
    objective = Objective(config.objective)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.98), eps=1e-6)
    history = []
    for _ in range(60):
        losses = objective(model(batch), batch)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        history.append((losses.text.item(), losses.visual.item()))
    (text, visual), (last_text, last_visual) = history[0], history[-1]
    assert last_text < 0.2 * text
    assert last_visual < 0.7 * visual
    assert losses.target_variance > 1e-3  # no collapse
