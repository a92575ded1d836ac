"""Instruction tuning: adapters alone are trained, resumed to the bit, and open with peft, with emu.load and merged."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel

import emu
from emu.config import AdapterConfig, SequenceConfig
from emu.data.batches import collate, images_of
from emu.data.sequence import SequenceMaker
from emu.generate.prompts import TextOptions
from emu.models.emu import Emu, add_instruct_tokens
from emu.models.objective import Batch
from emu.recipes import INSTRUCT_RECIPES, OptimConfig, TrainConfig
from emu.tokenizer import EmuTokenizer
from emu.train.checkpoint import read_tensors
from emu.train.loop import TrainPlan, train
from emu.train.run_folder import read_metrics
from emu.train.start import learned_tokenizer, start_model
from emu.weights.adapter import export_adapter, open_model, publish_adapter
from emu.weights.store import load_model, save_model
from jobs import build_instruct, convert_checkpoint, train_instruct
from pipelines.miniworld.config import MiniworldConfig
from pipelines.miniworld.dialogues import write_dialogues
from tests.data.small_dataset import dialogue, pair, small_tokenizer, write_dataset
from tests.train.plans import are_equal, mini_config, newest, same_state, weights_of
from tests.train.test_resume import elsewhere, stopped_after

CPU = torch.device("cpu")
LORA = ".lora_"


def pretrained(folder: Path, tokenizer: Path) -> Path:
    """A model of the smallest sizes with random weights, without instruction tokens."""
    model = Emu(mini_config(EmuTokenizer.load(tokenizer).num_pieces))
    model.init_weights(seed=4)
    save_model(folder, model, tokenizer)
    return folder


def tuning_plan(root: Path) -> TrainPlan:
    """A plan on dialogues of text, of images and of videos."""
    small_tokenizer(root / "tokenizer.model")
    init = pretrained(root / "init", root / "tokenizer.model")
    talks = [dialogue(n, n % 3) for n in range(12)]
    talks += [dialogue(n, 8, is_video=True) for n in range(12, 18)]
    data = write_dataset(root / "talks", talks, 7)
    pieces = EmuTokenizer.load(init).num_pieces
    config = replace(mini_config(pieces), instruct=True, adapter=AdapterConfig(rank=4))
    optim = OptimConfig(language_lr=1e-2, warmup_ratio=0.05)
    train = TrainConfig(
        steps=4, batch_size=6, row_length=512, checkpoint_every=1, num_threads=0, optim=optim
    )
    return TrainPlan(
        data=str(data),
        out=str(root / "out"),
        tokenizer=str(init / "tokenizer.model"),
        model=replace(config, objective=replace(config.objective, visual_weight=0.0)),
        sequence=SequenceConfig(dialogue_length=512),
        train=train,
        init=str(init),
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> TrainPlan:
    """A run of four steps that was never interrupted."""
    plan = tuning_plan(tmp_path_factory.mktemp("tuned"))
    train(plan)
    return plan


@pytest.fixture(scope="module")
def adapter(whole: TrainPlan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    assert whole.init is not None
    export_adapter(Path(whole.out) / "model", folder, whole.init)
    return folder


def a_batch(plan: TrainPlan) -> Batch:
    tokenizer = EmuTokenizer.load(plan.tokenizer, instruct=True)
    maker = SequenceMaker(plan.sequence, plan.model, tokenizer, 0)
    sequences = [maker.make(dialogue(n, n), 0) for n in range(3)]
    images = [images_of(s, plan.model.vision.image_size, None) for s in sequences]
    return collate(sequences, images, plan.model.special.pad, False)


@torch.no_grad()
def logits(model: Emu, batch: Batch) -> torch.Tensor:
    found = model.eval()(batch).logits_BLV
    assert found is not None
    return found[batch.attention_mask_BL]


def test_only_the_adapters_change(whole: TrainPlan):
    assert whole.init is not None
    before, tokenizer = load_model(whole.init)
    add_instruct_tokens(before, tokenizer)
    after = weights_of(Path(whole.out) / "model")
    beneath = {n.replace(".base_layer.", "."): w for n, w in after.items() if LORA not in n}
    assert are_equal(beneath, before.state_dict())
    tuned = {n: w for n, w in after.items() if LORA in n}
    assert len(tuned) == 2 * 4 * whole.model.language.num_layers
    assert all(w.any() for w in tuned.values()), "B starts at zero"
    rows = read_metrics(Path(whole.out))
    assert rows[-1]["text_loss"] < rows[0]["text_loss"] == rows[0]["loss"], "no regression loss"


def test_frozen_parts_run_as_at_serving(whole: TrainPlan):
    model = start_model(whole.model, whole.train, whole.init, CPU)
    assert model.config.former.dropout > 0 and not model.former.training
    assert not model.visual.training and model.language.training
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained and all(LORA in name for name in trained)


@pytest.mark.parametrize("steps", [1, 3])
def test_a_stopped_run_ends_with_the_same_bits(whole: TrainPlan, tmp_path: Path, steps: int):
    plan = elsewhere(whole, tmp_path / "out")
    stopped_after(plan, steps)
    saved = read_tensors(newest(plan))
    assert saved and all(LORA in name for name in saved), "a checkpoint holds the adapters alone"
    train(replace(plan, train=replace(plan.train, num_threads=2)))
    assert are_equal(weights_of(tmp_path / "out" / "model"), weights_of(Path(whole.out) / "model"))
    assert same_state(plan, whole)


def test_a_tuned_model_goes_on_training_its_adapters(whole: TrainPlan, tmp_path: Path):
    plan = replace(whole, init=str(Path(whole.out) / "model"), out=str(tmp_path / "out"))
    train(replace(plan, train=replace(plan.train, steps=1)))
    before, after = weights_of(Path(whole.out) / "model"), weights_of(tmp_path / "out" / "model")
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed == {name for name in after if LORA in name}


def test_the_adapter_alone_is_the_model_merged(whole: TrainPlan, adapter: Path, tmp_path: Path):
    batch = a_batch(whole)
    merged, _ = load_model(Path(whole.out) / "model")
    wanted = logits(merged, batch)
    merged.merge_adapter()
    torch.testing.assert_close(logits(merged, batch), wanted, atol=1e-5, rtol=0)
    assert whole.init is not None
    with_peft, tokenizer = load_model(whole.init)
    add_instruct_tokens(with_peft, tokenizer)
    assert not torch.allclose(logits(with_peft, batch), wanted, atol=1e-3)
    tuned = PeftModel.from_pretrained(with_peft.language.lm, str(adapter))
    assert tuned.peft_config["default"].base_model_name_or_path == whole.init
    torch.testing.assert_close(logits(with_peft, batch), wanted, atol=1e-5, rtol=0)
    opened, with_tokens = open_model(adapter)
    assert with_tokens.instruct and opened.config.adapter == whole.model.adapter
    assert torch.equal(logits(opened, batch), wanted)
    assert sorted(p.name for p in adapter.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_an_adapter_of_another_model_is_refused(whole: TrainPlan, adapter: Path, tmp_path: Path):
    broken = tmp_path / "adapter"
    broken.mkdir()
    values = json.loads((adapter / "adapter_config.json").read_text()) | {"r": 2}
    (broken / "adapter_config.json").write_text(json.dumps(values))
    (broken / "adapter_model.safetensors").write_bytes(
        (adapter / "adapter_model.safetensors").read_bytes()
    )
    with pytest.raises(ValueError, match=r"does not fit.*lora_A.weight has shape \(4, 48\)"):
        open_model(broken)


def test_merging_is_done_once_and_keeps_the_adapter(whole: TrainPlan, tmp_path: Path):
    train(elsewhere(whole, tmp_path / "out"))
    assert whole.init is not None
    folder = publish_adapter(tmp_path / "out", whole.init, merge=True)
    model, _ = load_model(tmp_path / "out" / "model")
    assert model.config.adapter is None and model.config.instruct
    unmerged, _ = load_model(Path(whole.out) / "model")
    batch = a_batch(whole)
    torch.testing.assert_close(logits(model, batch), logits(unmerged, batch), atol=1e-5, rtol=0)
    before = (folder / "adapter_model.safetensors").read_bytes()
    assert publish_adapter(tmp_path / "out", whole.init, merge=True) == folder
    assert (folder / "adapter_model.safetensors").read_bytes() == before
    with pytest.raises(ValueError, match="has no adapter"):
        export_adapter(tmp_path / "out" / "model", tmp_path / "again", whole.init)


def test_a_tuned_model_has_the_released_layout(whole: TrainPlan, tmp_path: Path):
    model = Path(whole.out) / "model"
    out = tmp_path / "released"
    options = ["--weights", str(model), "--to", "released", "--out", str(out)]
    assert convert_checkpoint.main(options) == 0
    (file,) = out.rglob("pytorch_model.bin")
    weights = torch.load(file, weights_only=True)
    name = "decoder.lm.base_model.model.model.layers.0.self_attn.q_proj"
    ours = weights_of(model)
    for theirs, part in (
        ("weight", "base_layer.weight"),
        ("lora_A.default.weight",) * 2,
        ("lora_B.default.weight",) * 2,
    ):
        found = weights[f"{name}.{theirs}"].float()
        wanted = ours[f"language.lm.model.layers.0.self_attn.q_proj.{part}"]
        torch.testing.assert_close(found, wanted, atol=1e-2, rtol=1e-2)


def test_the_job_from_a_synthetic_world_to_an_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    world, data = tmp_path / "world", tmp_path / "dialogues"
    write_dialogues(MiniworldConfig(seed=2, num_documents=24, bad_share=0.0), world)
    build = ["--dialogues", f"{world}/dialogues/*", "--media", f"{world}/images"]
    assert build_instruct.main([*build, "--out", str(data), "--runner", "local"]) == 0
    learned_tokenizer([str(data)], tmp_path / "tokenizer.model", 500)
    init = pretrained(tmp_path / "init", tmp_path / "tokenizer.model")
    out = tmp_path / "tuned"
    options = ["--init", init, "--data", data, "--out", out, "--num-workers", 0, "--steps", 3]
    options = [*map(str, options), "--batch-size", "4"]
    assert train_instruct.main(options) == 0
    assert f"adapter    {out}/adapter" in capsys.readouterr().out
    sample = next(iter(open_samples(data)))
    engines = [emu.load(out / "model"), emu.load(out / "adapter")]
    prompt = [" [USER]: ", sample, "What is it? [ASSISTANT]:"]
    replies = [e.generate_text([prompt], TextOptions(max_new_tokens=8)) for e in engines]
    assert replies[0] == replies[1] and len(replies[0]) == 1
    assert train_instruct.main([*options, "--merge"]) == 0
    assert "has finished before" in capsys.readouterr().out
    assert emu.load(out / "model").config.adapter is None

    pairs = write_dataset(tmp_path / "pairs", [pair(n) for n in range(8)])
    other = [*options, "--data", str(pairs), "--out", str(tmp_path / "none")]
    assert train_instruct.main(other) == 2
    assert "has no roles; instruction tuning trains on dialogues" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def open_samples(data: Path) -> list[bytes]:
    """The images of a dataset."""
    from emu.data.dataset import ShardReader

    reader = ShardReader(str(data), 0)
    visits = (reader.visit(n).sample for n in range(len(reader)))
    return [s.image for sample in visits for s in sample.segments if s.image is not None]


def test_the_recipes_are_those_of_the_paper():
    recipe = INSTRUCT_RECIPES["emu_14b"]()
    assert recipe.model.adapter == AdapterConfig(16, 16, 0.05)
    assert recipe.train.steps * recipe.train.optim.warmup_ratio == 500
    assert recipe.train.optim.language_lr == 1e-5 and recipe.train.batch_size * 16 == 128


def test_a_step_without_any_answer_changes_nothing(
    whole: TrainPlan, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    short = replace(whole.sequence, dialogue_length=12)  # the first question takes all of it
    data = write_dataset(tmp_path / "talks", [dialogue(n, 1) for n in range(6)])
    plan = replace(whole, data=str(data), out=str(tmp_path / "out"), sequence=short)
    decay = replace(whole.train.optim, weight_decay=0.0)
    train(replace(plan, train=replace(plan.train, steps=1, optim=decay)))
    tuned = weights_of(tmp_path / "out" / "model")
    assert not any(w.any() for n, w in tuned.items() if "lora_B" in n), "still as they started"
    assert "so no answer is learned" in caplog.text
