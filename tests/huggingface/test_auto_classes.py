"""A model directory opens with transformers' `Auto` classes after `import emu`, and gives what the engine gives."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import emu
from emu.config import IMAGE, EmuConfig, emu_14b_config, image_block
from emu.generate.engine import Engine
from emu.generate.prompts import TextOptions
from emu.models.visual import normalise
from emu.serve.requests import EncodedImage, Turn, to_prompt
from tests.generate.tiny import write_tiny_model

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """Model directories by whether they are tuned on instructions."""
    root = tmp_path_factory.mktemp("models")
    return {kind: write_tiny_model(root / f"m{kind:d}", kind) for kind in (False, True)}


@pytest.fixture(scope="module")
def engine(folders: dict[bool, Path]) -> Engine:
    return emu.load(folders[False])


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return Image.linear_gradient("L").resize((90, 70)).convert("RGB")


def test_the_configuration_is_ours_and_is_written_as_ours(
    folders: dict[bool, Path], tmp_path: Path
):
    config = transformers.AutoConfig.from_pretrained(folders[True])
    ours = EmuConfig.from_json((folders[True] / "config.json").read_text())
    assert config.emu() == ours
    assert (config.vocab_size, config.hidden_size) == (ours.num_embeddings, 128)
    config.save_pretrained(tmp_path)
    assert (tmp_path / "config.json").read_text() == (folders[True] / "config.json").read_text()


def test_a_wrong_size_in_the_configuration_is_named(folders: dict[bool, Path], tmp_path: Path):
    values = json.loads((folders[False] / "config.json").read_text())
    values["language"]["num_heads"] = 7
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"hidden_size is 128, give a multiple of num_heads = 7"):
        transformers.AutoConfig.from_pretrained(tmp_path)


TEXTS = (
    "a red circle",
    "",
    "  two  spaces ",
    f"look: {image_block(8)} what is it?",
    "a<s> b </s>c[PAD] [IMG] d[/IMG]",
    "ünïcode 😀 \n tab\t",
    " [USER]: hello [ASSISTANT]:",
)


@pytest.mark.parametrize("instruct", [False, True])
def test_ids_are_ours(folders: dict[bool, Path], instruct: bool):
    ours = emu.load(folders[instruct]).tokenizer
    theirs = transformers.AutoTokenizer.from_pretrained(folders[instruct])
    assert len(theirs) == len(ours)
    for text in TEXTS:
        ids = ours.encode(text)
        assert theirs(text)["input_ids"] == ids, text
        assert theirs.decode(ids, skip_special_tokens=True) == ours.decode(ids), text
        assert theirs.decode(ids) == ours.decode(ids, skip_special=False), text
    assert theirs.pad_token_id == ours.special.pad
    assert (theirs.bos_token_id, theirs.eos_token_id) == (1, 2)
    batch = theirs(["a", "a red circle above"], padding=True, return_tensors="pt")
    assert batch["input_ids"][0, -1] == ours.special.pad
    assert batch["attention_mask"][0].tolist().count(0) > 0


PIECES = st.sampled_from(
    ["a", " ", "red", "<s>", "</s>", "[IMG]", "[/IMG]", "<image>", "[PAD]", "é", "\n", "[USER]"]
)


@settings(max_examples=150, deadline=None)
@given(st.lists(PIECES, max_size=12).map("".join))
def test_ids_are_ours_whatever_stands_side_by_side(
    engine: Engine, shared_tokenizer: Any, text: str
):
    assert shared_tokenizer(text)["input_ids"] == engine.tokenizer.encode(text)


@pytest.fixture(scope="module")
def shared_tokenizer(folders: dict[bool, Path]) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folders[False])


def test_the_tokenizer_and_the_processor_are_saved_and_opened_again(
    folders: dict[bool, Path], tmp_path: Path
):
    processor = transformers.AutoProcessor.from_pretrained(folders[True])
    processor.save_pretrained(tmp_path / "p")
    transformers.AutoModel.from_pretrained(folders[True]).save_pretrained(tmp_path / "p")
    again = transformers.AutoProcessor.from_pretrained(tmp_path / "p")
    text = " [USER]: what colour? [ASSISTANT]:"
    assert again(text=text)["input_ids"] == processor(text=text)["input_ids"]
    assert again.num_queries == 8
    assert again.chat_template == processor.chat_template
    assert emu.load(tmp_path / "p").config == emu.load(folders[True]).config


def test_pixels_are_ours(folders: dict[bool, Path], photo: Image.Image):
    processor = transformers.AutoImageProcessor.from_pretrained(folders[False])
    pixels = processor(photo, return_tensors="pt")["pixel_values"]
    assert torch.equal(pixels, normalise(photo, 64)[None])
    array = torch.from_numpy(np.asarray(photo).copy()).permute(2, 0, 1)
    assert torch.equal(processor(array, return_tensors="pt")["pixel_values"], pixels)


@pytest.mark.parametrize(
    "options", [{"num_beams": 1}, {"num_beams": 5}, {"do_sample": True, "seed": 4, "top_p": 0.9}]
)
def test_replies_are_those_of_the_engine(
    folders: dict[bool, Path], engine: Engine, photo: Image.Image, options: dict[str, float]
):
    model = transformers.AutoModel.from_pretrained(folders[False])
    processor = transformers.AutoProcessor.from_pretrained(folders[False])
    inputs = processor(
        text=["a red circle", f"{IMAGE} the picture shows"],
        images=[photo],
        padding=True,
        return_tensors="pt",
    )
    given = options if options != {"num_beams": 5} else {}  # the default of generation_config.json
    ids = model.generate(**inputs, max_new_tokens=6, **given)
    replies = processor.batch_decode(
        ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
    )
    prompts = ["a red circle", [photo, " the picture shows"]]
    wanted = engine.generate_text(prompts, TextOptions(max_new_tokens=6, **options))  # type: ignore[arg-type]
    assert replies == wanted


def test_logits_losses_and_gradients(folders: dict[bool, Path], engine: Engine, photo: Image.Image):
    model = transformers.AutoModelForImageTextToText.from_pretrained(
        folders[False], dtype="float32"
    )
    processor = transformers.AutoProcessor.from_pretrained(folders[False])
    inputs = processor(text=f"{IMAGE} a red circle", images=photo, return_tensors="pt")
    scores = engine.model.score(
        inputs["input_ids"], inputs["attention_mask"], inputs["pixel_values"]
    )
    output = model(**inputs, labels=inputs["input_ids"].masked_fill(inputs["input_ids"] < 3, -100))
    torch.testing.assert_close(output.logits, scores.logits_BLV)
    torch.testing.assert_close(output.visual_loss, scores.visual_loss)
    output.loss.backward()
    assert model.get_input_embeddings().weight.grad.abs().sum() > 0
    assert model(**inputs).loss is None


def test_saved_models_are_ours(folders: dict[bool, Path], tmp_path: Path):
    model = transformers.AutoModel.from_pretrained(folders[False])
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(2)
    model.save_pretrained(tmp_path / "m", max_shard_size="1MB", state_dict=model.state_dict())
    assert len(list((tmp_path / "m").glob("*.safetensors"))) > 1
    doubled = emu.load(tmp_path / "m").model.language.lm.lm_head.weight
    assert torch.equal(doubled, model.get_output_embeddings().weight)
    assert "Causal Transformer" in (tmp_path / "m/README.md").read_text()
    (tmp_path / "m/README.md").write_text("mine")
    model.save_pretrained(tmp_path / "m")
    assert (tmp_path / "m/README.md").read_text() == "mine"


def test_options_that_do_not_exist_are_named(folders: dict[bool, Path]):
    with pytest.raises(TypeError, match="load_in_8bit"):
        transformers.AutoModel.from_pretrained(folders[False], load_in_8bit=True)
    model = transformers.AutoModel.from_pretrained(folders[False])
    with pytest.raises(TypeError, match="max_nwe_tokens"):
        model.generate(torch.tensor([[1, 5]]), max_nwe_tokens=3)
    with pytest.raises(ValueError, match="8 <image> positions for 0 images"):
        model.generate(torch.tensor([[1, *[model.config.image_token_id] * 8]]), max_new_tokens=1)
    processor = transformers.AutoProcessor.from_pretrained(folders[False])
    with pytest.raises(ValueError, match="text holds 1 <image> for 0 images"):
        processor(text=f"{IMAGE} what?")


CONVERSATIONS = (
    [("user", ["hello"])],
    [("user", [None, "what is it?"])],
    [
        ("system", ["be short"]),
        ("user", ["what", None]),
        ("assistant", ["a cat"]),
        ("user", ["sure?"]),
    ],
    [("user", [None, None, "which?"]), ("assistant", ["the second"]), ("user", ["why?"])],
    [("user", ["begin"]), ("assistant", ["once upon"])],
)


@pytest.mark.parametrize("instruct", [False, True])
@pytest.mark.parametrize("number", range(len(CONVERSATIONS)))
def test_conversations_are_the_prompts_of_the_server(
    folders: dict[bool, Path], photo: Image.Image, number: int, instruct: bool
):
    turns: Any = CONVERSATIONS[number]
    processor = transformers.AutoProcessor.from_pretrained(folders[instruct])
    messages = [
        {"role": role, "content": [_part(p, photo) for p in parts]} for role, parts in turns
    ]
    is_open = turns[-1][0] == "user"
    text = processor.apply_chat_template(messages, add_generation_prompt=is_open, tokenize=False)
    image = EncodedImage(b"", "")
    given = [Turn(role, tuple(image if p is None else p for p in parts)) for role, parts in turns]
    pieces = [IMAGE if isinstance(p, EncodedImage) else p for p in to_prompt(given, instruct)]
    assert text == "".join(map(str, pieces))
    inputs = processor.apply_chat_template(
        messages,
        add_generation_prompt=is_open,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    wanted = processor(text=text, images=[photo] * text.count(IMAGE) or None, return_tensors="pt")
    assert inputs["input_ids"].tolist() == wanted["input_ids"].tolist()
    assert ("pixel_values" in inputs) == (IMAGE in text)


def _part(piece: str | None, photo: Image.Image) -> dict[str, object]:
    return {"type": "image", "image": photo} if piece is None else {"type": "text", "text": piece}


def test_the_pipeline_of_transformers_answers(
    folders: dict[bool, Path], engine: Engine, photo: Image.Image
):
    pipeline = transformers.pipeline("image-text-to-text", model=str(folders[False]))
    answers = pipeline(
        text=f"{IMAGE} the picture shows", images=photo, max_new_tokens=5, return_full_text=False
    )
    wanted = engine.generate_text(
        [[photo, " the picture shows"]], TextOptions(max_new_tokens=5, num_beams=5)
    )
    assert answers[0]["generated_text"].strip() == wanted[0].strip()


def test_the_paper_s_sizes_are_the_defaults():
    from emu.huggingface.config import EmuPreTrainedConfig

    assert EmuPreTrainedConfig().emu() == EmuConfig()
    assert EmuPreTrainedConfig.of(emu_14b_config(True)).emu() == emu_14b_config(True)


ORDERS = (
    "import emu; from transformers import AutoModel, AutoProcessor",
    "from transformers import AutoModel, AutoProcessor; import emu",
    "import emu.models.emu; from transformers import AutoModel, AutoProcessor",
    "import emu; import emu.generate.engine; from transformers import AutoProcessor, AutoModel",
)


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_in_whatever_order_they_are_imported(folders: dict[bool, Path], order: str):
    code = (
        f"{order}\nm = AutoModel.from_pretrained({str(folders[False])!r})\nprint(type(m).__name__)"
    )
    code += f"\nprint(type(AutoProcessor.from_pretrained({str(folders[False])!r})).__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["EmuForConditionalGeneration", "EmuProcessor"], done.stderr


def test_importing_emu_imports_no_transformers():
    code = "import emu, sys; print('transformers' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
