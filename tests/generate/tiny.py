"""A model directory of tiny sizes and random weights, for the tests of replies."""

from dataclasses import replace
from pathlib import Path

from emu.config import DecoderConfig, tiny_config
from emu.decoders.stable_diffusion import StableDiffusionDecoder
from emu.models.emu import Emu
from emu.tokenizer import EmuTokenizer, train_tokenizer
from emu.weights.store import save_model

WORDS = (
    "a red circle above two blue squares",
    "what colour is the triangle in the picture? it is green",
    "describe the image in detail. the image shows three yellow stars and a small black square",
)


STABLE_DIFFUSION = DecoderConfig(
    image_size=64,
    unet_channels=(32, 64),
    unet_attention=(True, True),
    unet_layers=1,
    unet_heads=4,
    unet_groups=8,
    vae_channels=(16, 32, 32),
    vae_layers=1,
    vae_groups=1,
)
"""The paper's kind of decoder at tiny sizes."""


def write_tiny_model(directory: Path, instruct: bool = False) -> Path:
    """Writes the model with its decoder; gives its directory."""
    directory.mkdir(parents=True)
    words = directory.parent / f"{directory.name}-words.model"
    train_tokenizer(WORDS, 300, words)
    pieces = EmuTokenizer.load(words).num_pieces
    config = replace(tiny_config(vocab_size=pieces, instruct=instruct), decoder=STABLE_DIFFUSION)
    model = Emu(config)
    model.init_weights(seed=1)
    save_model(directory, model, words)
    decoder = StableDiffusionDecoder.from_config(STABLE_DIFFUSION, config.language.hidden_size, 2)
    decoder.save(directory / "decoder")
    return directory
