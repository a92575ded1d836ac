"""A tiny model with random weights and a decoder, and the engines of the golden record."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import emu
from emu.decoders.stable_diffusion import StableDiffusionDecoder
from emu.generate.engine import Engine
from emu.tokenizer import EmuTokenizer
from emu.weights.released import config_from_released, from_released
from emu.weights.store import build_model
from tests.generate.tiny import write_tiny_model


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory: tiny sizes, random weights, a decoder."""
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def engine(tiny_dir: Path) -> Engine:
    return emu.load(tiny_dir)


@pytest.fixture(scope="session")
def photo() -> Image.Image:
    """An image with structure: a gradient in each channel."""
    ramp = Image.linear_gradient("L").resize((90, 70))
    return Image.merge(
        "RGB", (ramp, ramp.rotate(180), ramp.transpose(Image.Transpose.ROTATE_90).resize(ramp.size))
    )


class Golden:
    """One family of the golden record: an engine on its weights, and what is expected."""

    def __init__(self, folder: Path, family: str) -> None:
        record = json.loads((folder / "meta.json").read_text())
        self.meta = record[family]
        self.expected = load_file(folder / f"{family}.expected.safetensors")
        instruct = family == "instruct"
        config = config_from_released(record["config"], instruct)
        weights = load_file(folder / f"{family}.safetensors")
        model = build_model(config, iter(from_released(weights.items(), config)))
        tokenizer = EmuTokenizer.load(folder / "tokenizer", instruct)
        decoder = None if instruct else StableDiffusionDecoder.load(folder / "decoder")
        self.engine = Engine(model, tokenizer, decoder)

    def pieces(self, text: str, images: list[torch.Tensor]) -> list[str | torch.Tensor]:
        """The text with its image blocks replaced by images."""
        block = "[IMG]" + "<image>" * self.engine.config.former.num_queries + "[/IMG]"
        texts = text.split(block)
        pieces: list[str | torch.Tensor] = [texts[0]]
        for image, following in zip(images, texts[1:], strict=True):
            pieces += [image, following]
        return pieces


@pytest.fixture(scope="session")
def golden_pretrain(repository: Path) -> Golden:
    return Golden(repository / "tests/golden/emu1_small", "pretrain")


@pytest.fixture(scope="session")
def golden_instruct(repository: Path) -> Golden:
    return Golden(repository / "tests/golden/emu1_small", "instruct")


@pytest.fixture(params=["pretrain", "instruct"])
def golden(request: pytest.FixtureRequest) -> Golden:
    return request.getfixturevalue(f"golden_{request.param}")
