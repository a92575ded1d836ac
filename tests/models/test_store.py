import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import emu
from emu.models.emu import Emu
from emu.models.objective import Batch
from emu.tokenizer import EmuTokenizer
from emu.weights.layout import CONFIG, INDEX, WEIGHTS, load_config, read_config
from emu.weights.store import check_weights, load_model, save_model, weights_hash


@pytest.fixture(scope="module")
def tokenizer_path(golden: Path) -> Path:
    return golden / "emu1_small" / "tokenizer" / "tokenizer.model"  # 400 pieces


@pytest.fixture
def saved(model: Emu, tokenizer_path: Path, tmp_path: Path) -> Path:
    save_model(tmp_path / "model", model, tokenizer_path)
    return tmp_path / "model"


@torch.no_grad()
def test_a_saved_model_answers_the_same(
    saved: Path, model: Emu, tokenizer_path: Path, batch: Batch
) -> None:
    loaded, tokenizer = load_model(saved)
    assert not loaded.training
    assert loaded.config == model.config
    assert weights_hash(loaded) == weights_hash(model)
    # the loaded weights lie elsewhere in memory, which may change the order of the sums
    found, wanted = loaded(batch).logits_BLV, model(batch).logits_BLV
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    original = EmuTokenizer.load(tokenizer_path)
    assert tokenizer.encode("a [IMG] b") == original.encode("a [IMG] b")
    frozen = [name for name, weight in loaded.named_parameters() if not weight.requires_grad]
    assert frozen == [name for name, weight in model.named_parameters() if not weight.requires_grad]


def test_who_may_read_the_configuration_may_read_the_weights(saved: Path) -> None:
    modes = {path.name: path.stat().st_mode for path in saved.iterdir()}
    assert modes[WEIGHTS] == modes[CONFIG]


@pytest.mark.parametrize("keep", [0, 4, 5000])
def test_weights_that_were_cut_off_are_named(saved: Path, keep: int) -> None:
    os.truncate(saved / WEIGHTS, keep)
    with pytest.raises(ValueError, match=rf"{WEIGHTS} is broken .* it has {keep:,} bytes"):
        load_model(saved)


def test_a_large_model_is_cut_into_pieces(
    saved: Path, model: Emu, tokenizer_path: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "pieces"
    save_model(directory, model, tokenizer_path, max_shard_size="2MB")
    names = json.loads((directory / INDEX).read_text())["weight_map"]
    assert len(set(names.values())) > 2 and set(names) == set(model.state_dict())
    assert weights_hash(load_model(directory)[0]) == weights_hash(model)
    assert not (directory / WEIGHTS).exists()
    save_model(directory, model, tokenizer_path)  # over it, in one file: no piece stays
    assert sorted(path.name for path in directory.iterdir()) == sorted(
        path.name for path in saved.iterdir()
    )
    assert weights_hash(load_model(directory)[0]) == weights_hash(model)


def test_another_dtype(saved: Path) -> None:
    loaded, _ = load_model(saved, dtype=torch.bfloat16)
    assert {weight.dtype for weight in loaded.state_dict().values()} == {torch.bfloat16}


def test_weights_that_do_not_fit_are_named(saved: Path) -> None:
    weights = load_file(saved / WEIGHTS)
    weights["extra"] = weights.pop("former.queries")
    weights["ln_visual.bias"] = torch.zeros(3)
    save_file(weights, saved / WEIGHTS)
    with pytest.raises(ValueError) as error:
        load_model(saved)
    assert "unexpected extra" in str(error.value)
    width = load_config(saved).vision.width
    assert f"ln_visual.bias has shape (3,), needs ({width},)" in str(error.value)
    weights["ln_visual.bias"] = torch.zeros(width)
    del weights["extra"]
    save_file(weights, saved / WEIGHTS)
    with pytest.raises(ValueError, match=r"missing former\.queries"):
        load_model(saved)


def test_a_tokenizer_of_another_size_is_refused(saved: Path) -> None:
    text = (saved / CONFIG).read_text().replace('"vocab_size": 400', '"vocab_size": 401')
    (saved / CONFIG).write_text(text)
    with pytest.raises(ValueError, match="has 404 tokens, the configuration has 405"):
        load_model(saved)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, "tokenizer.model"])
def test_an_absent_file_is_named(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        load_model(saved)


def test_the_hash_sees_values_names_shapes_and_types() -> None:
    one = {"a": torch.zeros(4), "b": torch.ones(2)}
    others = [
        {"a": torch.zeros(4), "b": torch.tensor([1.0, 1.0000001])},
        {"a": torch.zeros(4), "c": torch.ones(2)},
        {"a": torch.zeros(2, 2), "b": torch.ones(2)},
        {"a": torch.zeros(4, dtype=torch.int32), "b": torch.ones(2)},
    ]
    hashes = {weights_hash(state) for state in (one, *others)}
    assert len(hashes) == 5
    assert weights_hash(dict(reversed(one.items()))) == weights_hash(one)
    assert weights_hash({"x": torch.tensor(1.0)}) != weights_hash({"x": torch.tensor(2.0)})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"config\.json: config: not JSON"),
        ("{}", r"config\.json: config lacks the keys vision, former, language"),
        ("[1]", r"config\.json: config is \[1\], give an object"),
        ("\udcff", r"config\.json: 'utf-8' codec can't decode byte 0xff"),
    ],
)
def test_a_broken_configuration_is_named_with_its_path(
    saved: Path, text: str, message: str
) -> None:
    (saved / CONFIG).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=f"^{saved}/{message}"):
        emu.load(saved)


def test_where_no_model_is_the_nearest_one_is_told(saved: Path, tmp_path: Path) -> None:
    run = saved.parent
    with pytest.raises(FileNotFoundError, match=f"but there is a model in {saved}; a model is a"):
        emu.load(run)
    with pytest.raises(FileNotFoundError, match=r"there is no such folder; a model is a folder"):
        emu.load(tmp_path / "nope")
    with pytest.raises(FileNotFoundError, match=r"it is a file; .* and tokenizer.model"):
        emu.load(saved / WEIGHTS)
    (saved / CONFIG).unlink()
    (saved / "state.json").touch()
    with pytest.raises(FileNotFoundError, match=r"it is a checkpoint, from which its run resumes"):
        emu.load(saved)
    (run / "checkpoints").mkdir()
    with pytest.raises(FileNotFoundError, match=r"it is a run that has not finished"):
        emu.load(run)


@pytest.mark.parametrize("text", ["{", "{}", '{"weight_map": 3}'])
def test_a_broken_index_is_named(saved: Path, text: str) -> None:
    (saved / INDEX).write_text(text)
    with pytest.raises(ValueError, match=rf"{INDEX} is no index of weights"):
        load_model(saved)
    with pytest.raises(ValueError, match=rf"{INDEX} is no index of weights"):
        read_config(saved)


def test_a_stale_tensor_in_another_shard_is_refused(
    model: Emu, tokenizer_path: Path, tmp_path: Path
) -> None:
    """The last shard must not win: a shard of an earlier save may hold another tensor of the same name."""
    save_model(tmp_path, model, tokenizer_path, max_shard_size="2MB")
    file_of = json.loads((tmp_path / INDEX).read_text())["weight_map"]
    name = "ln_visual.bias"
    other = next(file for file in sorted(file_of.values(), reverse=True) if file != file_of[name])
    stale = load_file(tmp_path / other) | {name: model.state_dict()[name] + 1}
    save_file(stale, tmp_path / other)
    problem = f"{name} is in {other}, where the index has {file_of[name]}"
    for read in (emu.load, read_config, lambda folder: check_weights(model.config, folder)):
        with pytest.raises(ValueError, match=problem):
            read(tmp_path)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("gone.safetensors", r"names shards that are absent: \['gone.safetensors'\]"),
        ("../model.safetensors", r"names shards outside its folder: \['../model.safetensors'\]"),
        (WEIGHTS, rf"ln_visual.bias is in {WEIGHTS}, where the index has no such name"),
    ],
)
def test_an_index_that_does_not_fit_its_shards(saved: Path, file: str, message: str) -> None:
    names = set(load_file(saved / WEIGHTS)) - {"ln_visual.bias"}
    index = {"weight_map": dict.fromkeys(names, WEIGHTS) | {"former.queries": file}}
    (saved / INDEX).write_text(json.dumps(index))
    for read in (emu.load, read_config):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            read(saved)
