"""LLaMA's own weights in the language model: in every form people hold them in, every key accounted for."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from emu.config import EmuConfig
from emu.models.emu import Emu
from emu.recipes import TrainConfig
from emu.tokenizer import EmuTokenizer
from emu.train.start import start_model, start_tower
from emu.weights.llama import check_llama, llama_sizes, load_llama, with_llama
from tests.models.conftest import micro_config
from tests.models.llama_folders import change_config, write_llama

WEIGHTS = "model.safetensors"
ROWS = ("model.embed_tokens.weight", "lm_head.weight")


@pytest.fixture(scope="module")
def tokenizer_path(golden: Path) -> Path:
    return golden / "emu1_small" / "tokenizer" / "tokenizer.model"


@pytest.fixture(scope="module")
def config(tokenizer_path: Path) -> EmuConfig:
    pieces = EmuTokenizer.load(tokenizer_path).num_pieces
    micro = micro_config()
    return replace(micro, language=replace(micro.language, vocab_size=pieces))


@pytest.fixture
def folder(tmp_path: Path, config: EmuConfig, tokenizer_path: Path) -> Path:
    write_llama(tmp_path / "llama", config.language, tokenizer_path)
    return tmp_path / "llama"


def llama_of(folder: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(folder, local_files_only=True)


def as_bin(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    torch.save(weights, folder / "pytorch_model.bin")


def as_bin_pieces(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(weights)
    files = {name: f"pytorch_model-0000{1 + i % 2}-of-00002.bin" for i, name in enumerate(names)}
    for file in set(files.values()):
        torch.save({n: weights[n] for n in names if files[n] == file}, folder / file)
    index = {"metadata": {}, "weight_map": files}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def with_old_constants(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    for layer in (0, 1):
        name = f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"
        weights[name] = 1 / 10000 ** (torch.arange(0, 8, 2) / 8)
    save_file(weights, folder / WEIGHTS)


def with_other_files(folder: Path) -> None:
    torch.save({"arguments": 1}, folder / "training_args.bin")
    as_bin_pieces_of = load_file(folder / WEIGHTS)
    torch.save(as_bin_pieces_of, folder / "pytorch_model.bin")


FORMS = (as_bin, as_bin_pieces, with_old_constants, with_other_files, lambda folder: None)


@pytest.mark.parametrize("change", FORMS)
def test_every_form_gives_the_same_language_model(
    folder: Path, config: EmuConfig, change: Any
) -> None:
    theirs = llama_of(folder).state_dict()
    change(folder)
    model = Emu(config)
    load_llama(model, folder)
    ours = model.language.lm.state_dict()
    assert set(ours) == set(theirs)
    for name, weight in theirs.items():
        assert torch.equal(ours[name][: len(weight)], weight), name
    for name in ROWS:
        mean = theirs[name].float().mean(0)
        assert torch.equal(ours[name][len(theirs[name]) :], mean.expand(4, -1))


@torch.no_grad()
def test_pieces_of_safetensors_answer_as_the_llama_does(
    tmp_path: Path, config: EmuConfig, tokenizer_path: Path
) -> None:
    llama = write_llama(tmp_path / "pieces", config.language, tokenizer_path, "20KB")
    assert len(list((tmp_path / "pieces").glob("*.safetensors"))) > 2
    fitted = with_llama(config, tmp_path / "pieces")
    assert fitted.language.rms_norm_eps == 1e-5  # the folder's, not the recipe's 1e-6
    start = start_model(
        fitted,
        TrainConfig(steps=1, batch_size=1),
        None,
        torch.device("cpu"),
        language_weights=str(tmp_path / "pieces"),
    )
    ids_BL = torch.tensor([[1, 17, 33, 5, 9]])
    ours = start.language.head(start.language(start.language.embed(ids_BL)))
    theirs = llama(ids_BL).logits
    torch.testing.assert_close(ours[..., : theirs.shape[-1]], theirs, atol=1e-6, rtol=1e-5)


def test_the_other_parts_are_those_of_the_seed(folder: Path, config: EmuConfig) -> None:
    train = TrainConfig(steps=1, batch_size=1, seed=4)
    device = torch.device("cpu")
    started = start_model(config, train, None, device, language_weights=str(folder))
    again = start_model(config, train, None, device, language_weights=str(folder))
    initial = start_model(config, train, None, device)
    for name, weight in started.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
        if name.startswith(("visual.", "ln_visual.", "former.")):
            assert torch.equal(weight, initial.state_dict()[name]), name
    assert started.language.regress_head.weight.std() > 0.01
    tower = start_tower(config, 4, None)
    assert torch.equal(tower.state_dict()["trunk.pos_embed"], started.visual.trunk.pos_embed)


def test_a_model_that_is_given_has_a_language_model(folder: Path, config: EmuConfig) -> None:
    with pytest.raises(ValueError, match=r"language_weights=.*has a language model; give one of"):
        start_model(
            config,
            TrainConfig(steps=1, batch_size=1),
            "somewhere",
            torch.device("cpu"),
            language_weights=str(folder),
        )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "mistral"}, r"config\.json: model_type is 'mistral', needed is 'llama'"),
        ({"hidden_size": None}, r"config\.json: lacks \['hidden_size'\]"),
        ({"num_key_value_heads": 1}, r"num_key_value_heads is 1, this model has 2"),
        ({"tie_word_embeddings": True}, r"tie_word_embeddings is True, this model has False"),
        ({"rope_parameters": {"rope_theta": 5e5}}, r"rope_theta is 500000.0, this model has 1"),
        ({"rope_parameters": {"rope_type": "llama3"}}, r"scales no positions"),
        ({"rope_scaling": {"type": "linear"}}, r"rope_scaling is"),
        ({"quantization_config": {}}, r"unknown keys \['quantization_config'\]"),
        ({"hidden_act": "gelu"}, r"hidden_act is 'gelu'"),
    ],
)
def test_another_kind_of_model_is_refused(
    folder: Path, values: dict[str, Any], message: str
) -> None:
    change_config(folder, **values)
    with pytest.raises(ValueError, match=message):
        llama_sizes(folder)


def test_sizes_that_differ_are_all_named(folder: Path, config: EmuConfig) -> None:
    other = replace(config.language, num_layers=3, vocab_size=299, max_positions=9999)
    with pytest.raises(ValueError) as error:
        with_llama(replace(config, language=other), folder)
    for words in (
        "num_layers is 2, needed is 3",
        "vocab_size is 400, needed is 299",
        "max_positions is 64, needed are 9999",
    ):
        assert words in str(error.value)


def test_a_folder_that_is_none_is_refused(folder: Path, config: EmuConfig) -> None:
    with pytest.raises(FileNotFoundError, match=r"no LLaMA at .*nope: config.json is absent; give"):
        llama_sizes(folder / "nope")
    (folder / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match=r"no weights in .*llama; looked for model"):
        check_llama(config, folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json: Expecting"):
        llama_sizes(folder)


def test_every_key_that_does_not_fit_is_named(folder: Path, config: EmuConfig) -> None:
    weights = load_file(folder / WEIGHTS)
    weights["extra.weight"] = weights.pop("model.norm.weight")
    weights["lm_head.weight"] = torch.zeros(401, 16)
    weights["model.layers.0.mlp.up_proj.weight"] = torch.zeros(24, 16, dtype=torch.int8)
    save_file(weights, folder / WEIGHTS)
    model = Emu(config)
    before = model.language.lm.model.embed_tokens.weight.clone()
    with pytest.raises(ValueError) as error:
        load_llama(model, folder)
    for words in (
        "missing model.norm.weight",
        "unexpected extra.weight",
        "misshapen lm_head.weight: (401, 16), needs (400, 16)",
        "mistyped model.layers.0.mlp.up_proj.weight: torch.int8",
    ):
        assert words in str(error.value)
    assert torch.equal(before, model.language.lm.model.embed_tokens.weight), "nothing was changed"


def test_constants_of_another_rotary_base_are_refused(folder: Path, config: EmuConfig) -> None:
    weights = load_file(folder / WEIGHTS)
    weights["model.layers.1.self_attn.rotary_emb.inv_freq"] = torch.tensor([1.0, 0.5, 0.2, 0.1])
    save_file(weights, folder / WEIGHTS)
    with pytest.raises(ValueError, match="other frequencies than LLaMA's"):
        check_llama(config, folder)
