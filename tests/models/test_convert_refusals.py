"""What does not fit is refused by name, before anything is written."""

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors.torch import load_file, save_file

from emu.weights.reader import WeightFiles, WeightsError
from jobs import convert_checkpoint
from tests.models.released_forms import FORMS, State, released_config, released_state

# damaged files make torch wonder about their pickle, before it refuses them
pytestmark = [
    pytest.mark.filterwarnings("ignore:Detected pickle protocol"),
    pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants"),
]

Refused = Callable[..., str]
QKV = "visual.blocks.1.attn.qkv.weight"


def option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


@pytest.fixture
def refused(golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs the job on files that it has to refuse; gives the message."""
    small = golden / "emu1_small"

    def run(weights: Path | State, *more: str, **given: str | Path | None) -> str:
        if isinstance(weights, dict):
            torch.save(weights, tmp_path / "w.bin")
            weights = tmp_path / "w.bin"
        options: dict[str, str | Path | None] = {
            "weights": weights,
            "model_config": released_config(golden, tmp_path),
            "tokenizer": small / "tokenizer",
            "out": tmp_path / "model",
        }
        options |= given
        words = [w for n, v in options.items() if v is not None for w in (option(n), str(v))]
        before = sorted(tmp_path.rglob("*"))
        assert convert_checkpoint.main([*words, *more]) == 2
        error = capsys.readouterr().err.rpartition("\rconvert")[2]
        assert "error: " in error and "Traceback" not in error
        assert sorted(tmp_path.rglob("*")) == before, "a refusal leaves no trace"
        return error

    return run


@pytest.fixture
def state(golden: Path) -> State:
    return released_state(golden, "pretrain")


def test_every_key_that_does_not_fit_is_named(refused: Refused, state: State) -> None:
    del state["ln_visual.bias"], state["decoder.lm.lm_head.weight"]
    state[QKV] = state[QKV].t()
    state["cformer.projection.bias"] = torch.zeros(31)
    state["visual.norm.bias"] = torch.zeros(64, dtype=torch.int64)
    state["optimizer.step"] = torch.zeros(1)
    error = refused(state)
    for words in (
        "2 misshapen",
        "missing ln_visual.bias",
        "missing decoder.lm.lm_head.weight",
        f"misshapen {QKV}: (64, 192), needs (192, 64) (transposed?)",
        "misshapen cformer.projection.bias: (31,), needs (32,)",
        "mistyped visual.norm.bias: torch.int64",
        "unexpected optimizer.step",
    ):
        assert words in error


def test_weights_of_another_kind(refused: Refused, golden: Path, state: State) -> None:
    instruct = golden / "emu1_small" / "instruct.safetensors"
    assert "kind=emu: but the keys" in refused(instruct, "--kind", "emu")
    assert "kind=emu-i: but the keys" in refused(state, "--kind", "emu-i")
    adapted = released_state(golden, "instruct")
    del adapted["decoder.lm.base_model.model.model.layers.1.self_attn.q_proj.weight"]
    error = refused(adapted)  # what a forgiving loader leaves at random values
    assert "(1 missing)" in error and "layers.1.self_attn.q_proj.weight" in error
    doubled = released_state(golden, "instruct")
    name = "decoder.lm.base_model.model.model.layers.1.self_attn.q_proj.weight"
    doubled[name.replace(".weight", ".base_layer.weight")] = doubled[name]
    assert f"doubled {name.replace('.weight', '.base_layer.weight')} and {name}" in refused(doubled)
    assert "holds other frequencies" in refused(
        state | {"decoder.lm.model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    )


class Bomb:
    """Unpickled carelessly, it writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_something(
    refused: Refused, state: State, tmp_path: Path, zipped: bool
) -> None:
    target = tmp_path / "ran"
    path = tmp_path / "evil.pt"
    torch.save(state | {"x": Bomb(target)}, path, _use_new_zipfile_serialization=zipped)
    error = refused(path)
    assert "holds more than tensors" in error and "system" in error
    path.write_bytes(pickle.dumps(Bomb(target)))
    assert "evil.pt: damaged, or holds more than tensors" in refused(path)
    assert not target.exists()


def test_small_files_that_would_become_large(
    refused: Refused, state: State, tmp_path: Path
) -> None:
    state[QKV] = torch.zeros(1).expand(1 << 20, 1 << 20)  # four terabytes in four bytes
    assert f"misshapen {QKV}: (1048576, 1048576)" in refused(state)
    plain, packed = tmp_path / "w.bin", tmp_path / "packed.bin"
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert "is compressed, which PyTorch never does with weights" in refused(packed)


@pytest.mark.parametrize("name", ["emu.safetensors", "emu.bin", "emu.pt"])
@pytest.mark.parametrize("kept", [0, 7, 0.3, 0.999])
def test_a_truncated_file(
    refused: Refused, state: State, tmp_path: Path, name: str, kept: float
) -> None:
    form = {"emu.bin": "plain_bin", "emu.pt": "legacy_pt"}.get(name, "safetensors")
    path = FORMS[form](state, tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if kept < 1 else int(kept)])
    error = refused(path)
    assert name in error and "damaged" in error


@pytest.mark.parametrize("form", ["plain_bin", "legacy_pt", "safetensors"])
def test_damaged_bytes_are_refused_or_read(tmp_path: Path, form: str) -> None:
    """Whatever stands in a file, nothing but a WeightsError comes out of it."""
    random = Random(0)
    path = FORMS[form]({"a": torch.randn(9, 5), "b": torch.arange(4.0)}, tmp_path)
    whole = path.read_bytes()
    refusals = 0
    for _ in range(80):
        damaged = bytearray(whole)
        for _ in range(random.randint(1, 4)):
            place = random.randrange(len(damaged))
            damaged[place : place + random.randint(0, 3)] = random.randbytes(random.randint(0, 3))
        path.write_bytes(damaged)
        try:
            files = WeightFiles(path)
            assert sum(1 for _ in files.read(list(files.entries))) == len(files.entries)
        except WeightsError:
            refusals += 1
    assert refusals > 20


def test_rubbish(refused: Refused, state: State, tmp_path: Path) -> None:
    (tmp_path / "text.bin").write_text("no weights at all")
    assert "text.bin: damaged" in refused(tmp_path / "text.bin")
    (tmp_path / "text.ckpt").write_text("no weights at all")
    assert "weights end in .safetensors, .bin" in refused(tmp_path / "text.ckpt")
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    assert "holds a list, needed are tensors by name" in refused(tmp_path / "list.pt")
    torch.save({"state": state, "epoch": 3}, tmp_path / "other.pt")
    assert "'state' holds dict, needed are tensors by name" in refused(tmp_path / "other.pt")
    sparse = state | {"ln_visual.bias": torch.zeros(64).to_sparse()}
    assert "ln_visual.bias is no plain tensor" in refused(sparse)
    torch.jit.script(torch.nn.Linear(1, 1)).save(tmp_path / "script.pt")
    assert "script.pt: 'script/code" in refused(tmp_path / "script.pt")
    save_file({}, tmp_path / "empty.safetensors")
    assert "128 missing" not in (error := refused(tmp_path / "empty.safetensors"))
    assert "124 missing" in error


def test_folders(refused: Refused, state: State, tmp_path: Path) -> None:
    assert "neither a file nor a folder" in refused(tmp_path / "nowhere")
    folder = tmp_path / "in"
    (folder / "later").mkdir(parents=True)
    assert "no weights in" in refused(folder)
    save_file(state, folder / "later" / "a.safetensors")
    assert "there are some in its folders ['later']" in refused(folder)
    torch.save({"ln_visual.bias": state["ln_visual.bias"]}, folder / "later" / "b.bin")
    assert "ln_visual.bias in a.safetensors, b.bin" in refused(folder / "later")


def test_an_index_that_is_wrong(refused: Refused, state: State, tmp_path: Path) -> None:
    folder = FORMS["indexed_safetensors"](state, tmp_path)
    index = folder / "pytorch_model.safetensors.index.json"
    right = json.loads(index.read_text())["weight_map"]

    def with_map(changed: dict[str, str]) -> str:
        index.write_text(json.dumps({"weight_map": changed}))
        return refused(index)

    assert "names shards that are absent: ['x.bin']" in with_map(
        right | {"ln_visual.bias": "x.bin"}
    )
    assert "names shards outside its folder" in with_map(
        right | {"ln_visual.bias": "../secret.bin"}
    )
    second = right["ln_visual.bias"]
    other = next(file for file in right.values() if file != second)
    assert f"ln_visual.bias is not in {other}" in with_map(right | {"ln_visual.bias": other})
    del right["ln_visual.bias"]
    assert f"ln_visual.bias is in {second}, where the index has no such name" in with_map(right)
    index.write_text("[]")
    assert "is no index of weights" in refused(index)


def test_configuration_and_tokenizer(refused: Refused, state: State, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    assert "model_config=None: give the released" in refused(state, model_config=None)
    assert "no configuration at" in refused(state, model_config=path)
    path.write_text("{")
    assert "other.json is not JSON" in refused(state, model_config=path)
    path.write_text("[]")
    assert "holds list, needed is an object" in refused(state, model_config=path)
    assert "no tokenizer at" in refused(state, tokenizer=tmp_path / "t.model")
    (tmp_path / "t.model").write_bytes(b"rubbish")
    error = refused(state, tokenizer=tmp_path / "t.model")
    assert "t.model: 7 bytes are not a sentencepiece model" in error


def test_a_tokenizer_of_another_size(refused: Refused, golden: Path, tmp_path: Path) -> None:
    from emu.tokenizer import train_tokenizer

    train_tokenizer(["two dogs", "on the grass"], 300, tmp_path / "t.model")
    path = golden / "emu1_small" / "pretrain.safetensors"
    error = refused(path, tokenizer=tmp_path / "t.model")
    assert "pieces, the configuration says 400" in error


def test_values_that_a_dtype_cannot_hold(
    refused: Refused, state: State, golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state["ln_visual.bias"][3] = 7e4
    assert "ln_visual.bias holds 7e+04" in refused(state, "--dtype", "float16")
    state["ln_visual.bias"][3] = float("nan")
    torch.save(state, tmp_path / "nan.bin")
    config, out = released_config(golden, tmp_path), tmp_path / "out"
    words = ["--weights", tmp_path / "nan.bin", "--model-config", config, "--out", out]
    assert convert_checkpoint.main(list(map(str, words))) == 0
    assert "WARNING    ln_visual.bias" in capsys.readouterr().out


def test_a_folder_in_the_way(refused: Refused, golden: Path, tmp_path: Path) -> None:
    weights = golden / "emu1_small" / "pretrain.safetensors"
    taken = tmp_path / "model"
    taken.mkdir()
    (taken / "notes.txt").write_text("mine")
    assert "is no directory of this kind and not empty" in refused(weights, "--overwrite")
    (taken / "notes.txt").rename(taken / "config.json")  # as any model of another kind has one
    (taken / "config.json").write_text('{"model_type": "llama"}')
    assert "is no directory of this kind and not empty" in refused(weights, "--overwrite")
    assert "is a mount point" in refused(weights, "--overwrite", out="/proc")
    (taken / "config.json").unlink()
    words = [
        "--weights",
        weights,
        "--model-config",
        released_config(golden, tmp_path),
        "--out",
        taken,
    ]
    assert convert_checkpoint.main(list(map(str, words))) == 0
    (taken / "notes.txt").write_text("mine")
    assert "exists already; give another --out, or --overwrite" in refused(weights)
    assert "lies inside out" in refused(taken / "model.safetensors", "--overwrite", out=taken)
    assert "a model directory already" in refused(taken, out=tmp_path / "other")
    assert convert_checkpoint.main([*map(str, words), "--overwrite"]) == 0
    assert not (taken / "notes.txt").exists() and (taken / "config.json").exists()


def test_lora_of_another_rank_needs_its_scale(
    refused: Refused, golden: Path, tmp_path: Path
) -> None:
    state = released_state(golden, "instruct")
    for name in [name for name in state if "lora_" in name]:
        state[name] = state[name][:4].clone() if "lora_A" in name else state[name][:, :4].clone()
    error = refused(state)
    assert "LoRA has ranks [4], Emu-I has 16; its alpha is not in the weights" in error
    values = json.loads(released_config(golden, tmp_path).read_text())
    path = tmp_path / "ranked.json"
    path.write_text(json.dumps(values | {"lora": {"r": 4, "lora_alpha": 8}}))
    out = tmp_path / "out"
    words = ["--weights", tmp_path / "w.bin", "--model-config", path, "--out", out]
    assert convert_checkpoint.main(list(map(str, words))) == 0
    adapter = json.loads((out / "config.json").read_text())["adapter"]
    assert (adapter["rank"], adapter["alpha"]) == (4, 8)
    assert len(load_file(out / "model.safetensors")) == len(state) - 4
