"""A model directory of tiny sizes and random weights, for the tests of replies."""

from dataclasses import replace
from pathlib import Path

from benchmarks.device_limits import SMALL_DECODER
from emu.config import tiny_config
from emu.decoders.stable_diffusion import StableDiffusionDecoder
from emu.models.emu import Emu
from emu.tokenizer import EmuTokenizer, train_tokenizer
from emu.weights.store import save_model

WORDS = (
    "a red circle above two blue squares",
    "what colour is the triangle in the picture? it is green",
    "describe the image in detail. the image shows three yellow stars and a small black square",
)


def write_tiny_model(directory: Path, instruct: bool = False) -> Path:
    """Writes the model with its decoder; gives its directory."""
    directory.mkdir(parents=True)
    words = directory.parent / f"{directory.name}-words.model"
    train_tokenizer(WORDS, 300, words)
    pieces = EmuTokenizer.load(words).num_pieces
    config = replace(tiny_config(vocab_size=pieces, instruct=instruct), decoder=SMALL_DECODER)
    model = Emu(config)
    model.init_weights(seed=1)
    save_model(directory, model, words)
    decoder = StableDiffusionDecoder.from_config(SMALL_DECODER, config.language.hidden_size, 2)
    decoder.save(directory / "decoder")
    return directory
