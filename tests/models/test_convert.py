"""Released weights in every form to a model directory, and back, through the job."""

import json
import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, GenerationConfig

import emu
from emu.config import (
    AdapterConfig,
    CausalFormerConfig,
    EmuConfig,
    LanguageConfig,
    VisionConfig,
)
from emu.decoders.base import decode
from emu.models.emu import Emu
from emu.models.objective import Batch
from emu.tokenizer import EmuTokenizer
from emu.weights.layout import load_config, read_index
from emu.weights.reader import WeightFiles
from emu.weights.released import is_unused, to_released
from emu.weights.released_config import config_to_released
from emu.weights.store import load_model, read_weights, save_model
from emu.weights.writer import TensorSpec, split_into_shards, write_safetensors
from jobs import convert_checkpoint
from jobs.conversion import convert
from jobs.convert_checkpoint import ConvertCheckpoint
from tests.models.released_forms import FORMS, State, released_config, released_state

FAMILIES = ("pretrain", "instruct")


def convert_to(out: Path, weights: Path, config: Path, golden: Path, *more: str) -> Path:
    tokenizer = golden / "emu1_small" / "tokenizer" / "tokenizer.model"
    given = [
        "--weights",
        str(weights),
        "--model-config",
        str(config),
        "--tokenizer",
        str(tokenizer),
    ]
    assert convert_checkpoint.main([*given, "--out", str(out), *more]) == 0
    return out


def back(out: Path, model: Path, *more: str) -> Path:
    given = ["--to", "released", "--weights", str(model), "--out", str(out)]
    assert convert_checkpoint.main([*given, *more]) == 0
    return out


def check_equal(found: State, wanted: State) -> None:
    """The same bits under every released name; unused ones are filled in for the published code."""
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        if name == "cformer.cformer.embed_tokens.weight":
            assert found[name].shape == (32128, tensor.shape[1])
        else:
            assert torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype, name


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_every_form_there_and_back(golden: Path, tmp_path: Path, family: str, form: str) -> None:
    state = released_state(golden, family)
    (tmp_path / "in").mkdir()
    weights = FORMS[form](state, tmp_path / "in")
    config = released_config(golden, tmp_path)
    model_dir = convert_to(tmp_path / "model", weights, config, golden)
    model, _ = load_model(model_dir)
    expected = load_file(golden / "emu1_small" / f"{family}.expected.safetensors")
    ids, mask = expected["input_ids"], expected["attention_mask"].bool()
    logits = model(Batch(ids, mask, ids, expected["pixel_values"])).logits_BLV
    torch.testing.assert_close(logits, expected["logits"], atol=1e-4, rtol=0)
    report = json.loads((model_dir / "conversion.json").read_text())
    assert set(report["dropped"]) >= {n for n in state if is_unused(n)}
    assert report["family"] == ("emu-i" if family == "instruct" else "emu")
    if form == "wrapped_pt":
        assert report["beside_the_weights"] == ["global_steps", "dp_world_size"]
    released = back(tmp_path / "released", model_dir) / "multimodal_encoder" / "pytorch_model.bin"
    check_equal(torch.load(released, weights_only=True), state)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_written_back_is_read_again(golden: Path, tmp_path: Path, family: str) -> None:
    """In pieces, with the decoder, through the configuration and tokenizer that the way back wrote."""
    small = golden / "emu1_small"
    weights, config = small / f"{family}.safetensors", released_config(golden, tmp_path)
    decoder = ["--decoder", str(small / "decoder")]
    pieces = ["--shard-size-gb", "0.0002"]
    first = convert_to(tmp_path / "first", weights, config, golden, *decoder, *pieces)
    assert len(list(first.glob("model-*.safetensors"))) > 3
    out = back(tmp_path / "released", first, "--form", "safetensors", "--no-fill-unused", *pieces)
    assert len(list((out / "multimodal_encoder").glob("pytorch_model-*.safetensors"))) > 3
    for part in ("unet", "vae"):  # the names of old diffusers too, as in the golden record
        name = f"{part}/diffusion_pytorch_model.safetensors"
        check_equal(load_file(out / name), load_file(small / "decoder" / name))
    again = tmp_path / "again"
    given = [
        "--weights",
        out,
        "--model-config",
        out / "Emu.json",
        "--tokenizer",
        out,
        "--decoder",
        out,
    ]
    assert convert_checkpoint.main([*map(str, given), *pieces, "--out", str(again)]) == 0
    names = sorted(p.relative_to(first) for p in first.rglob("*") if p.is_file())
    assert names == sorted(p.relative_to(again) for p in again.rglob("*") if p.is_file())
    for name in names:
        if name.name != "conversion.json":
            assert (again / name).read_bytes() == (first / name).read_bytes(), name


def test_a_converted_directory_is_whole(golden: Path, tmp_path: Path) -> None:
    small = golden / "emu1_small"
    config = released_config(golden, tmp_path)
    decoder = ["--decoder", str(small / "decoder")]
    out = convert_to(tmp_path / "model", small / "pretrain.safetensors", config, golden, *decoder)
    engine = emu.load(out)
    expected = load_file(small / "pretrain.expected.safetensors")
    call = json.loads((small / "meta.json").read_text())["pretrain"]["decoder"]
    prompt, empty = expected["image_embeds_text"]
    assert engine.decoder is not None and engine.config.decoder is not None
    assert engine.config.decoder.image_size == call["height"]
    image = decode(
        engine.decoder,
        prompt[None],
        empty,
        call["height"],
        call["width"],
        call["num_inference_steps"],
        call["guidance_scale"],
        initial_latents=expected["decoder_initial_latents"],
    )
    difference = image[0].int() - expected["decoder_image_uint8"].int()
    assert difference.abs().max() <= 1
    special = engine.config.special
    generation = GenerationConfig.from_pretrained(out)
    assert (generation.pad_token_id, generation.num_beams) == (special.pad, 5)
    ours, theirs = EmuTokenizer.load(out), AutoTokenizer.from_pretrained(out)
    for text in ("[PAD]", "[IMG]", "[/IMG]", "<image>", "<s>", "</s>"):
        assert theirs.convert_tokens_to_ids(text) == ours.encode(text, bos=False)[0], text
    assert theirs("two dogs on the grass")["input_ids"] == ours.encode("two dogs on the grass")


def test_the_golden_record_converts_by_its_own_file(golden: Path, tmp_path: Path) -> None:
    small = golden / "emu1_small"
    out = convert_to(tmp_path / "m", small / "pretrain.safetensors", small / "meta.json", golden)
    same = convert_to(
        tmp_path / "n", small / "pretrain.safetensors", released_config(golden, tmp_path), golden
    )
    assert load_config(out) == load_config(same)


def test_another_dtype(golden: Path, tmp_path: Path) -> None:
    weights = golden / "emu1_small" / "pretrain.safetensors"
    config = released_config(golden, tmp_path)
    out = convert_to(tmp_path / "model", weights, config, golden, "--dtype", "bfloat16")
    found, wanted = load_file(out / "model.safetensors"), released_state(golden, "pretrain")
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    name = "cformer.projection.weight"
    assert torch.equal(found["former.projection.weight"], wanted[name].bfloat16())


def test_merged_emu_i_goes_out_and_comes_in(golden: Path, tmp_path: Path) -> None:
    """Without LoRA's keys, Emu-I is told by the rows of its embedding."""
    weights, config = (
        golden / "emu1_small" / "instruct.safetensors",
        released_config(golden, tmp_path),
    )
    model, _ = load_model(convert_to(tmp_path / "model", weights, config, golden))
    model.merge_adapter()
    save_model(tmp_path / "merged", model, golden / "emu1_small" / "tokenizer")
    released = back(tmp_path / "released", tmp_path / "merged")
    again = convert_to(tmp_path / "again", released, released / "Emu.json", golden)
    loaded, tokenizer = load_model(again)
    assert loaded.config.instruct and loaded.config.adapter is None
    assert tokenizer.special.assistant == 405
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def _killed(options: ConvertCheckpoint, after: int) -> None:
    left = [after]

    def advance(num_bytes: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    convert(options, advance)


@pytest.mark.parametrize(
    "after", [0, 60, 123, 124, 455]
)  # in the model, between, in the decoder, last
def test_a_killed_conversion_leaves_no_model(golden: Path, tmp_path: Path, after: int) -> None:
    small = golden / "emu1_small"
    options = ConvertCheckpoint(
        weights=str(small / "pretrain.safetensors"),
        out=str(tmp_path / "model"),
        model_config=str(released_config(golden, tmp_path)),
        tokenizer=str(small / "tokenizer"),
        decoder=str(small / "decoder"),
    )
    child = multiprocessing.get_context("fork").Process(target=_killed, args=(options, after))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert not (tmp_path / "model").exists()
    for left in tmp_path.iterdir():
        with pytest.raises(FileNotFoundError):
            load_model(left)
    convert(options)
    load_model(tmp_path / "model")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["Emu-small.json", "model"]


def test_a_killed_replacement_leaves_the_old_model(golden: Path, tmp_path: Path) -> None:
    small = golden / "emu1_small"
    options = ConvertCheckpoint(
        weights=str(small / "pretrain.safetensors"),
        out=str(tmp_path / "model"),
        model_config=str(released_config(golden, tmp_path)),
        tokenizer=str(small / "tokenizer"),
    )
    convert(options)
    before = (tmp_path / "model" / "model.safetensors").read_bytes()
    other = replace(options, dtype="bfloat16", overwrite=True)
    child = multiprocessing.get_context("fork").Process(target=_killed, args=(other, 100))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == before
    load_model(tmp_path / "model")
    convert(other)
    assert (tmp_path / "model" / "model.safetensors").stat().st_size < len(before)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["Emu-small.json", "model"]


OTHERS = {
    "wider": (
        VisionConfig(28, 7, width=36, layers=2, heads=3, mlp_hidden=157, embed_dim=10),
        CausalFormerConfig(24, 6, 4, 1, 40, num_queries=5, num_buckets=8, max_distance=20),
        LanguageConfig(48, 4, 6, 100, vocab_size=333, max_positions=99, rms_norm_eps=1e-5),
    ),
    "one of each": (
        VisionConfig(8, 8, width=8, layers=1, heads=1, mlp_hidden=8, embed_dim=1),
        CausalFormerConfig(8, 8, 1, 1, 8, num_queries=1, dropout=0.0),
        LanguageConfig(8, 1, 1, 8, vocab_size=300, max_positions=16),
    ),
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("adapter", [None, AdapterConfig(rank=3, alpha=7, targets=("v_proj",))])
@pytest.mark.parametrize("sizes", OTHERS)
def test_architectures_that_nobody_released(
    tmp_path: Path, sizes: str, adapter: AdapterConfig | None, dtype: torch.dtype
) -> None:
    config = EmuConfig(*OTHERS[sizes], instruct=adapter is not None, adapter=adapter)
    model = Emu(config)
    model.init_weights(seed=1)
    ours = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    torch.save({"module": dict(to_released(ours.items(), config))}, tmp_path / "w.pt")
    (tmp_path / "e.json").write_text(json.dumps(config_to_released(config)))
    out = tmp_path / "model"
    words = ["--weights", tmp_path / "w.pt", "--model-config", tmp_path / "e.json", "--out", out]
    assert convert_checkpoint.main([*map(str, words), "--shard-size-gb", "0.00001"]) == 0
    assert load_config(out) == config
    found = dict(read_weights(out))
    assert found.keys() == ours.keys()
    for name, tensor in ours.items():
        assert torch.equal(found[name], tensor) and found[name].dtype == dtype, name


def test_a_tensor_larger_than_a_shard_gets_its_own(tmp_path: Path) -> None:
    """The order of the tensors in the other shards is kept, though values arrive in the order of the specs."""
    sizes = {"a": 2, "large": 9, "b": 2, "c": 2}
    specs = [TensorSpec(name, (size,), torch.float32) for name, size in sizes.items()]
    tensors = {spec.name: torch.randn(spec.shape) for spec in specs}
    files = write_safetensors(tmp_path, "w", specs, tensors.values(), shard_bytes=16)
    held = [list(load_file(file)) for file in files]
    assert [sorted(names) for names in held] == [["large"], ["a", "b"], ["c"]]
    found = WeightFiles(tmp_path)
    for name, tensor in zip(sizes, found.read(list(sizes)), strict=True):
        assert torch.equal(tensor, tensors[name])
    index = read_index(tmp_path / "w.safetensors.index.json")
    assert index.file_of["large"] == "w-00001-of-00003.safetensors"
    with pytest.raises(ValueError, match="a shard of 0 bytes: give at least 1"):
        split_into_shards(specs, "w", 0)
