"""A second visual decoder, registered in one file: configuration, training, files, engine, server, conversion."""

import dataclasses
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import emu
from emu.config import DecoderConfig, EmuConfig, emu_14b_config, tiny_config
from emu.decoder_recipe import DecoderTrainConfig
from emu.decoders import DECODERS, plan_decoder_conversion
from emu.generate.engine import Engine
from emu.generate.prompts import ImageOptions
from emu.serve.backend import ModelCard
from emu.serve.errors import ApiError
from emu.serve.limits import Limits
from emu.serve.requests import check_limits
from emu.serve.sampling import image_options
from emu.serve.schema import parse_request
from emu.train.decoder import DecoderPlan, publish_decoder
from emu.train.loop import train as train_decoder
from emu.train.run_folder import read_metrics
from jobs import train_decoder as train_decoder_job
from tests.data.small_dataset import pair, write_dataset
from tests.models import linear_decoder
from tests.train.test_decoder import write_model

SIZES = DecoderConfig(image_size=32, kind=linear_decoder.KIND)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DECODERS, linear_decoder.KIND, linear_decoder.ENTRY)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model of this kind of decoder, and in `data` a dataset to train it on."""
    write_dataset(tmp_path / "data", [pair(number) for number in range(8)])
    return write_model(tmp_path, SIZES)


def train(model: Path, **options: Any) -> Path:
    config = DecoderTrainConfig(steps=5, batch_size=4, log_every=1)
    data, run = model.parent / "data", model.parent / "run"
    out = options.pop("out", model / "decoder")
    plan = DecoderPlan(str(model), str(data), str(run / out.name), options=config)
    plan = replace(plan, **options)
    train_decoder(plan)
    assert not (run / out.name / "autoencoder").exists()
    return publish_decoder(plan.out, out)


def asked(image: dict[str, Any]) -> Any:
    message = {"role": "user", "content": "a red square"}
    return parse_request({"messages": [message], "modalities": ["image"], "image": image})


def test_it_is_trained_saved_loaded_and_generates(model: Path) -> None:
    decoder = train(model)
    assert [row["step"] for row in read_metrics(decoder)] == [1, 2, 3, 4, 5]
    assert json.loads((decoder / "decoder.json").read_text()) == {
        "kind": "linear",
        "image_multiple": 8,
    }
    engine = emu.load(model)
    assert isinstance(engine.decoder, linear_decoder.LinearDecoder)
    one, again, other = (
        engine.generate_image("a red square", ImageOptions(num_inference_steps=2, seed=s))
        for s in (1, 1, 2)
    )
    assert one.size == (32, 32) and one.tobytes() == again.tobytes() != other.tobytes()
    with pytest.raises(ValueError, match="no scheduler 'pndm'; there are"):
        engine.generate_image("a", ImageOptions(num_inference_steps=2, scheduler="pndm"))


def test_it_starts_from_its_own_pretrained_weights(model: Path) -> None:
    first = train(model)
    second = train(model, pretrained=str(first), out=model.parent / "second")
    assert (second / "weights.safetensors").read_bytes() != b""
    assert json.loads((second / "decoder.json").read_text())["kind"] == "linear"


def test_the_job_trains_it(model: Path) -> None:
    data = model.parent / "data"
    words = f"--model {model} --data {data} --steps 2 --batch-size 2".split()
    assert train_decoder_job.main(words) == 0
    assert Engine.load(model).decoder is not None


def test_the_server_asks_the_registry_for_sizes_and_schedulers(model: Path) -> None:
    train(model)
    card = ModelCard.of(model, emu.load(model).config)
    assert (
        card.generates_images
        and card.image_multiple == 8
        and card.schedulers == ("straight", "halved")
    )
    limits = Limits()
    good = asked({"height": 24, "width": 32, "scheduler": "halved", "num_inference_steps": 2})
    check_limits(good, card, limits)
    options = image_options(good.image)
    image = emu.load(model).generate("a red square", None, options, image_first=True).images[0]
    assert image.image is not None
    for wrong, words in (
        ({"height": 20}, "image.height is 20, give a multiple of 8"),
        ({"scheduler": "pndm"}, 'give one of "straight", "halved"'),
    ):
        with pytest.raises(ApiError, match=words):
            check_limits(asked(wrong), card, limits)


def test_the_configuration_names_the_kind(model: Path) -> None:
    config = EmuConfig.from_json((model / "config.json").read_text())
    assert config.decoder == SIZES
    paper = emu_14b_config()
    values = json.loads(paper.to_json())
    added = {"kind", "prediction", "snr_gamma", "noise_shift"}
    added |= {"num_block_embeddings", "contrast_weight"}
    assert not added & set(values["decoder"]), "as it was before there were these fields"
    assert EmuConfig.from_json(json.dumps(values)) == paper
    assert EmuConfig.from_json(tiny_config().to_json()) == tiny_config()
    broken = replace(config, decoder=dataclasses.replace(SIZES, kind="crayon"))
    (model / "config.json").write_text(broken.to_json())
    with pytest.raises(ValueError, match=r"no visual decoder 'crayon'; there are \['linear', 'pix"):
        train(model)


def test_a_folder_of_an_unknown_kind_is_named(model: Path) -> None:
    file = train(model) / "decoder.json"
    file.write_text('{"kind": "crayon", "image_multiple": 8}')
    with pytest.raises(ValueError, match=rf"{file}: kind is 'crayon', give one of"):
        emu.load(model)
    file.write_text('{"kind": "linear"}')
    with pytest.raises(ValueError, match=rf"{file}: image_multiple is None"):
        ModelCard.of(model, tiny_config())


def test_a_kind_without_a_conversion_is_refused(model: Path) -> None:
    with pytest.raises(ValueError, match="kind 'linear', which has no conversion; copy the folder"):
        plan_decoder_conversion(train(model), 48)


def test_the_registry_is_light() -> None:
    """The server's ingress and command lines read it without torch."""
    code = "import sys, emu.decoders; print(sorted({'torch', 'diffusers'} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
