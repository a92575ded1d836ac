import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from emu.models.cross_entropy import CHUNK_BYTES, chunked_cross_entropy, default_rows
from emu.models.emu import Emu
from emu.models.objective import Batch, Objective


def inputs_of(rows: int, width: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, width, generator=generator).requires_grad_()
    weight = torch.randn(classes, width, generator=generator).requires_grad_()
    return hidden, weight, torch.randint(0, classes, (rows,), generator=generator)


@given(rows=st.integers(1, 70), chunk=st.integers(1, 40), classes=st.integers(2, 300))
@settings(max_examples=60, deadline=None)
def test_loss_and_gradients_are_those_of_full_logits(rows: int, chunk: int, classes: int):
    hidden, weight, labels = inputs_of(rows, 12, classes)
    loss = chunked_cross_entropy(hidden, weight, labels, chunk)
    (loss * 0.37).backward()
    found = hidden.grad, weight.grad
    hidden.grad = weight.grad = None
    wanted = functional.cross_entropy(hidden @ weight.t(), labels, reduction="sum")
    (wanted * 0.37).backward()
    torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found[0], hidden.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[1], weight.grad, rtol=1e-5, atol=1e-5)


def test_logits_far_from_zero_stay_finite():
    hidden, weight, labels = inputs_of(9, 12, 50)
    loss = chunked_cross_entropy(hidden * 1e3, weight, labels, 4)
    wanted = functional.cross_entropy(hidden * 1e3 @ weight.t(), labels, reduction="sum")
    torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=0)


def test_no_target_gives_zero_and_zero_gradients():
    hidden, weight, labels = inputs_of(0, 12, 50)
    loss = chunked_cross_entropy(hidden, weight, labels)
    loss.backward()
    assert loss == 0 and hidden.grad is not None and weight.grad is not None
    assert not weight.grad.any()


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_frozen_parts_get_no_gradient(frozen: str):
    hidden, weight, labels = inputs_of(9, 12, 50)
    parts = {"hidden": hidden, "weight": weight}
    parts[frozen].requires_grad_(False)
    chunked_cross_entropy(hidden, weight, labels, 4).backward()
    assert [name for name, part in parts.items() if part.grad is None] == [frozen]


def test_without_gradients_it_is_a_number():
    hidden, weight, labels = inputs_of(9, 12, 50)
    with torch.no_grad():
        assert not chunked_cross_entropy(hidden, weight, labels).requires_grad


def test_a_second_backward_is_refused():
    loss = chunked_cross_entropy(*inputs_of(9, 12, 50))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="taken before"):
        loss.backward()


def test_bfloat16_products_are_summed_in_float32():
    hidden, weight, labels = inputs_of(600, 16, 80)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = chunked_cross_entropy(hidden, weight, labels, 64)
    loss.backward()
    logits = (hidden.bfloat16() @ weight.bfloat16().t()).float()
    wanted = functional.cross_entropy(logits, labels, reduction="sum")
    assert loss.dtype == torch.float32 and weight.grad is not None
    assert weight.grad.dtype == torch.float32
    torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=0)


def test_a_chunk_of_the_papers_vocabulary_fits_its_memory():
    assert default_rows(32_004, "cpu") * 4 * 32_004 <= CHUNK_BYTES["cpu"]
    assert default_rows(10**9, "cpu") == 16


def test_the_model_gives_the_same_losses_with_and_without_logits(model: Emu, batch: Batch):
    objective = Objective(model.config.objective)
    with_logits, without = model(batch), model(batch, with_logits=False)
    assert without.logits_BLV is None
    wanted, found = objective(with_logits, batch), objective(without, batch)
    torch.testing.assert_close(found.text, wanted.text, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.visual, wanted.visual, rtol=1e-6, atol=0)
