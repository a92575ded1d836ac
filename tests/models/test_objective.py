import dataclasses

import pytest
import torch
from torch.nn import functional

from emu.config import ObjectiveConfig, SpecialTokens
from emu.models.emu import Emu
from emu.models.objective import (
    Batch,
    EmuOutput,
    Objective,
    regression_positions,
    text_labels,
    text_loss,
    variance,
)

SPECIAL = SpecialTokens.after(100, instruct=False)
PAD, START, END, IMAGE = SPECIAL.pad, SPECIAL.image_start, SPECIAL.image_end, SPECIAL.image
#       bos  word [IMG]  z1     z2    [/IMG] word eos padding
IDS = torch.tensor([[1, 50, START, IMAGE, IMAGE, END, 60, 2, PAD]])


def places(mask: torch.Tensor) -> list[int]:
    return mask[0].nonzero().flatten().tolist()


def test_each_embedding_predicts_the_next_and_the_last_the_closing() -> None:
    predicts, predicted = regression_positions(IDS, SPECIAL, ObjectiveConfig())
    assert (places(predicts), places(predicted)) == ([2, 3, 4], [3, 4, 5])


def test_the_closing_can_be_left_out() -> None:
    choice = ObjectiveConfig(regress_closing=False)
    predicts, predicted = regression_positions(IDS, SPECIAL, choice)
    assert (places(predicts), places(predicted)) == ([2, 3], [3, 4])


@pytest.mark.parametrize("content", [[], [70], [70, 71]])
def test_a_literal_image_mark_without_an_image_is_no_pair(content: list[int]) -> None:
    ids = torch.tensor([[1, START, *content, END, 2]])
    predicts, predicted = regression_positions(ids, SPECIAL, ObjectiveConfig())
    assert not predicts.any() and not predicted.any()


def test_an_image_cut_off_at_the_end_pairs_what_is_there() -> None:
    ids = torch.tensor([[1, START, IMAGE, IMAGE]])
    predicts, predicted = regression_positions(ids, SPECIAL, ObjectiveConfig())
    assert (places(predicts), places(predicted)) == ([1, 2], [2, 3])


def test_labels_hide_images_and_padding() -> None:
    labels = text_labels(IDS, SPECIAL, ObjectiveConfig())
    assert labels.tolist() == [[1, 50, -100, -100, -100, -100, 60, 2, -100]]
    labels = text_labels(IDS, SPECIAL, ObjectiveConfig(train_image_start=True))
    assert labels.tolist() == [[1, 50, START, -100, -100, -100, 60, 2, -100]]


def test_text_loss_is_the_mean_over_all_targets_of_the_batch() -> None:
    logits = torch.randn(2, 9, 104)
    labels = torch.cat([text_labels(IDS, SPECIAL, ObjectiveConfig()), torch.full((1, 9), 7)])
    output = output_of(torch.zeros(0, 4), torch.zeros(0, 4))
    loss, number = text_loss(dataclasses.replace(output, logits_BLV=logits), labels)
    chances = functional.log_softmax(logits, dim=-1)
    terms = [-chances[0, t - 1, IDS[0, t]] for t in (1, 6, 7)]
    terms += [-chances[1, t - 1, 7] for t in range(1, 9)]
    assert number == 11
    torch.testing.assert_close(loss, torch.stack(terms).mean())


def output_of(regressed: torch.Tensor, targets: torch.Tensor) -> EmuOutput:
    logits = torch.zeros(1, 9, 104)
    return EmuOutput(logits, torch.zeros(1, 9, 4), torch.zeros(1, 9, 4), regressed, targets)


def batch_of(ids: torch.Tensor) -> Batch:
    return Batch(ids, ids != PAD, text_labels(ids, SPECIAL, ObjectiveConfig()))


def test_visual_loss_weight_and_variance() -> None:
    regressed, targets = torch.randn(3, 4), torch.randn(3, 4)
    losses = Objective(ObjectiveConfig(visual_weight=2.5))(
        output_of(regressed, targets), batch_of(IDS)
    )
    wanted = ((regressed - targets) ** 2).sum() / 12
    torch.testing.assert_close(losses.visual, wanted)
    torch.testing.assert_close(losses.total, losses.text + 2.5 * wanted)
    torch.testing.assert_close(losses.target_variance, targets.var(0, correction=0).mean())
    assert (losses.num_visual, losses.num_text) == (3, 3)


def test_visual_loss_is_computed_in_float32() -> None:
    regressed = torch.full((3, 4), 300.0, dtype=torch.float16)  # 300 squared is beyond float16
    losses = Objective(ObjectiveConfig())(
        output_of(regressed, torch.zeros(3, 4, dtype=torch.float16)), batch_of(IDS)
    )
    assert losses.visual.dtype == torch.float32
    assert losses.visual == 90_000


@pytest.mark.parametrize("detach", [True, False])
def test_targets_carry_gradient_only_when_asked(detach: bool) -> None:
    regressed = torch.randn(3, 4, requires_grad=True)
    targets = torch.randn(3, 4, requires_grad=True)
    config = ObjectiveConfig(detach_targets=detach)
    Objective(config)(output_of(regressed, targets), batch_of(IDS)).total.backward()
    assert regressed.grad is not None and regressed.grad.abs().sum() > 0
    assert (targets.grad is None) == detach


def test_a_batch_without_images_has_no_visual_loss(model: Emu) -> None:
    ids = torch.tensor([[1, 50, 51, 2]])
    labels = text_labels(ids, model.config.special, model.config.objective)
    batch = Batch(ids, torch.ones_like(ids, dtype=torch.bool), labels)
    losses = Objective(model.config.objective)(model(batch), batch)
    assert losses.visual == 0 and losses.num_visual == 0 and losses.target_variance == 0
    model.zero_grad()
    losses.total.backward()
    gradient = model.language.regress_head.weight.grad
    assert gradient is not None and not gradient.any()  # zero, not None: all ranks reduce it
    model.zero_grad()


def test_a_batch_without_text_targets_has_no_text_loss(model: Emu, batch: Batch) -> None:
    silent = dataclasses.replace(batch, labels_BL=torch.full_like(batch.labels_BL, -100))
    losses = Objective(model.config.objective)(model(silent), silent)
    assert losses.text == 0 and losses.num_text == 0
    assert losses.visual > 0 and losses.total.isfinite()


def test_variance_of_too_few_positions_is_zero() -> None:
    assert variance(torch.randn(1, 5)) == 0
    assert variance(torch.randn(0, 5)) == 0
