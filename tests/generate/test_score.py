"""`engine.model.score` against the published code, and what it says of wrong arguments."""

import pytest
import torch

from emu.generate.engine import Engine
from tests.generate.conftest import Golden


def test_scores_are_those_of_the_published_code(golden: Golden) -> None:
    expected = golden.expected
    scores = golden.engine.model.score(
        expected["input_ids"], expected["attention_mask"], expected["pixel_values"]
    )
    for found, name in (
        (scores.logits_BLV, "logits"),
        (scores.last_hidden_BLD, "last_hidden_state"),
        (scores.regressed_ND, "regress_predictions"),
        (scores.targets_ND, "regress_labels"),
    ):
        torch.testing.assert_close(found, expected[name], atol=1e-4, rtol=0)
    for found, name in ((scores.text_loss, "text_loss"), (scores.visual_loss, "regress_mse")):
        torch.testing.assert_close(found, expected[name][0], atol=1e-5, rtol=0)
    images = golden.engine.model.encode_images(expected["pixel_values"])
    torch.testing.assert_close(images, expected["causal_embeddings"], atol=1e-4, rtol=0)


def test_what_stands_at_the_padding_does_not_count(golden_pretrain: Golden) -> None:
    model, expected = golden_pretrain.engine.model, golden_pretrain.expected
    ids, mask = expected["input_ids"].clone(), expected["attention_mask"].bool()
    assert not mask.all()
    ids[~mask] = model.config.special.image  # rubbish, even the position of an image
    scores = model.score(ids, mask, expected["pixel_values"])
    torch.testing.assert_close(scores.text_loss, expected["text_loss"][0], atol=1e-5, rtol=0)
    torch.testing.assert_close(scores.visual_loss, expected["regress_mse"][0], atol=1e-5, rtol=0)


def test_text_alone_needs_no_pixels(engine: Engine) -> None:
    ids = torch.tensor([engine.encode("a red circle").ids])
    scores = engine.model.score(ids, torch.ones_like(ids))
    assert scores.text_loss > 0 and scores.visual_loss == 0
    assert scores.regressed_ND.shape == (0, engine.config.language.hidden_size)
    assert not scores.logits_BLV.requires_grad


@pytest.mark.parametrize(
    ("ids", "mask", "words"),
    [
        ([[1, 5, 6]], [[0, 1, 1]], "attention_mask_BL has padding before a token"),
        ([[1, 5, 6]], [[1, 0, 1]], "attention_mask_BL has padding before a token"),
        ([[1, 5, 6]], [[1, 1]], r"attention_mask_BL has shape \(1, 2\)"),
        ([[1, 5, 9999]], [[1, 1, 1]], r"input_ids_BL holds ids in 1\.\.9999"),
        ([1, 5], [1, 1], r"shape \(2,\), give whole numbers \(B, L\)"),
        ([[1.0, 5.0]], [[1, 1]], "input_ids_BL is torch.float32"),
        ([[]], [[]], r"shape \(1, 0\)"),
        ([[1] * 1025], [[1] * 1025], "1025 positions, the model has 1024"),
    ],
)
def test_wrong_arguments_are_named(
    engine: Engine, ids: list[object], mask: list[object], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        engine.model.score(torch.tensor(ids), torch.tensor(mask))


def test_images_must_fit_their_places(engine: Engine) -> None:
    ids = torch.tensor([engine.encode("a").ids])
    with pytest.raises(ValueError, match="0 <image> positions"):
        engine.model.score(ids, torch.ones_like(ids), torch.zeros(1, 3, 64, 64))
