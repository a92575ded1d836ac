"""A model of about 100 million random parameters, and prompts of exact lengths for it."""

import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from emu.config import CausalFormerConfig, EmuConfig, LanguageConfig, VisionConfig
from emu.generate.engine import Engine
from emu.models.emu import Emu
from emu.tokenizer import EmuTokenizer, train_tokenizer

TEXT = (
    "a the red blue green yellow man woman dog cat bus tree house street photo picture of on in under beside "
    "is are there it yes no not two three many small large old young sitting standing running holding wearing "
    "what colour how where can you see anything else maybe probably sunny cloudy indoors outside"
)
WORDS = TEXT.split()


def random_sentences(number: int, num_words: int, seed: int) -> list[str]:
    """Sentences of random words, all with the same number of words."""
    generator = random.Random(seed)
    return [" ".join(generator.choices(WORDS, k=num_words)) for _ in range(number)]


def random_config(vocab_size: int, width: int = 1024, layers: int = 8) -> EmuConfig:
    """In the paper's proportions: a width of 128 per layer, heads of 128, a feed-forward of 2.7 widths in LLaMA."""
    return EmuConfig(
        vision=VisionConfig(
            image_size=224, patch_size=14, width=256, layers=4, heads=4, mlp_hidden=1117
        ),
        former=CausalFormerConfig(
            d_model=192, d_kv=48, num_heads=4, num_layers=4, d_ff=768, dropout=0.0
        ),
        language=LanguageConfig(
            hidden_size=width,
            num_layers=layers,
            num_heads=max(1, width // 128),
            intermediate_size=width * 43 // 16,
            vocab_size=vocab_size,
        ),
    )


def random_engine(seed: int = 0, width: int = 1024, layers: int = 8) -> Engine:
    """An engine with random weights, without visual decoder."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.model"
        train_tokenizer([*WORDS, *random_sentences(400, 12, seed=1)], 1000, path)
        tokenizer = EmuTokenizer.load(path)
    model = Emu(random_config(tokenizer.num_pieces, width, layers))
    model.init_weights(seed)
    return Engine(model.eval(), tokenizer)


def text_of(engine: Engine, num_ids: int, seed: int) -> str:
    """A text of exactly `num_ids` ids, including the start id."""
    words = random_sentences(1, num_ids, seed)[0].split()
    low, high = 0, len(words)
    while low < high:
        middle = (low + high + 1) // 2
        fits = len(engine.encode(" ".join(words[:middle])).ids) <= num_ids
        low, high = (middle, high) if fits else (low, middle - 1)
    text = " ".join(words[:low])
    while len(engine.encode(text).ids) < num_ids:
        text += "?"
    assert len(engine.encode(text).ids) == num_ids, (num_ids, text)
    return text


def random_answers(number: int, seed: int) -> list[str]:
    """Answers of 1 to 8 words, 3 on average, as in visual dialogues."""
    generator = random.Random(seed)
    lengths = [min(8, 1 + int(generator.expovariate(0.45))) for _ in range(number)]
    return [" ".join(generator.choices(WORDS, k=length)) for length in lengths]


def synthetic_image() -> Image.Image:
    """An image with structure."""
    ramp = Image.linear_gradient("L")
    return Image.merge("RGB", (ramp, ramp.rotate(90), ramp.rotate(180)))


def num_parameters(engine: Engine, parts: Sequence[str] = ("",)) -> int:
    """Parameters of the model whose names begin with one of `parts`."""
    named = engine.model.named_parameters()
    return sum(weight.numel() for name, weight in named if name.startswith(tuple(parts)))
