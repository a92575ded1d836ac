"""A pretrained model that gets the vocabulary of instructions, and an adapter, to be tuned."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import emu
from emu.config import AdapterConfig, EmuConfig
from emu.models.emu import Emu, add_instruct_tokens
from emu.recipes import TrainConfig
from emu.tokenizer import EmuTokenizer
from emu.train.start import start_model
from emu.weights.store import load_model, save_model
from tests.models.conftest import micro_config

CPU = torch.device("cpu")
TRAIN = TrainConfig(steps=1, batch_size=1, seed=3)


@pytest.fixture(scope="module")
def tokenizer(golden: Path) -> EmuTokenizer:
    return EmuTokenizer.load(golden / "emu1_small" / "tokenizer")


@pytest.fixture
def pretrained(tokenizer: EmuTokenizer) -> Emu:
    micro = micro_config()
    language = replace(micro.language, vocab_size=tokenizer.num_pieces)
    model = Emu(replace(micro, language=language))
    model.init_weights(seed=2)
    return model.eval()


@pytest.fixture
def saved(pretrained: Emu, golden: Path, tmp_path: Path) -> Path:
    save_model(tmp_path / "pre", pretrained, golden / "emu1_small/tokenizer/tokenizer.model")
    return tmp_path / "pre"


def rows(model: Emu) -> tuple[torch.Tensor, torch.Tensor]:
    return model.language.lm.model.embed_tokens.weight, model.language.lm.lm_head.weight


@torch.no_grad()
def test_the_rows_start_from_their_words_and_nothing_else_changes(
    pretrained: Emu, tokenizer: EmuTokenizer, tmp_path: Path
) -> None:
    ids_BL = torch.tensor([[1, 20, 30, 40]])
    before = pretrained.score(ids_BL, torch.ones_like(ids_BL)).logits_BLV
    old = [weight.clone() for weight in rows(pretrained)]
    add_instruct_tokens(pretrained, tokenizer)
    after = pretrained.score(ids_BL, torch.ones_like(ids_BL)).logits_BLV
    # to rounding: the head has more rows, so the processor may take its sums in another order
    torch.testing.assert_close(after[..., : before.shape[-1]], before, atol=1e-6, rtol=1e-5)
    special = pretrained.config.special
    for new, was in zip(rows(pretrained), old, strict=True):
        assert torch.equal(new[: len(was)], was) and len(new) == len(was) + 2
        for token, word in ((special.user, "user"), (special.assistant, "assistant")):
            wanted = was[tokenizer.encode_text(word)].mean(0)
            assert token is not None
            torch.testing.assert_close(new[token], wanted)
    source = tmp_path / "tokenizer.model"
    tokenizer.save(source)
    save_model(tmp_path / "grown", pretrained, source)
    loaded, with_tokens = load_model(tmp_path / "grown")
    assert with_tokens.instruct and loaded.config.instruct
    assert emu.load(tmp_path / "grown").generate_text(["it [USER]: is [ASSISTANT]:"])


def test_a_model_that_has_them_and_a_foreign_tokenizer_are_refused(
    pretrained: Emu, tokenizer: EmuTokenizer
) -> None:
    language = replace(pretrained.config.language, vocab_size=399)
    other = Emu(replace(pretrained.config, language=language))
    with pytest.raises(ValueError, match="the tokenizer has 400 pieces, the model 399"):
        add_instruct_tokens(other, tokenizer)
    add_instruct_tokens(pretrained, tokenizer)
    with pytest.raises(ValueError, match="already"):
        add_instruct_tokens(pretrained, tokenizer)


def test_tuning_starts_from_a_pretrained_model(saved: Path, pretrained: Emu) -> None:
    tuned: EmuConfig = replace(
        pretrained.config, instruct=True, adapter=AdapterConfig(rank=4, alpha=4)
    )
    model = start_model(tuned, TRAIN, saved, CPU)
    assert model.config == tuned
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained and all(".lora_" in name for name in trained)
    assert rows(model)[0].shape[0] == tuned.num_embeddings
    again = start_model(tuned, TRAIN, saved, CPU)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name


def test_tokens_alone_leave_everything_trainable(saved: Path, pretrained: Emu) -> None:
    model = start_model(replace(pretrained.config, instruct=True), TRAIN, saved, CPU)
    assert model.config.instruct and rows(model)[0].requires_grad
    same = start_model(pretrained.config, TRAIN, saved, CPU)
    assert rows(same)[0].shape[0] == pretrained.config.num_embeddings
