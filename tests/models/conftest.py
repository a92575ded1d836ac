"""Small models, built once, that the tests of the model only read."""

from pathlib import Path

import pytest
import torch

from emu.config import EmuConfig, LanguageConfig, VisionConfig, tiny_config
from emu.models.emu import Emu
from emu.models.objective import Batch, text_labels

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden(repository: Path) -> Path:
    return repository / "tests" / "golden"


@pytest.fixture(scope="session")
def config() -> EmuConfig:
    return tiny_config(vocab_size=400)


@pytest.fixture(scope="session")
def model(config: EmuConfig) -> Emu:
    """A tiny model in evaluation mode."""
    model = Emu(config)
    model.init_weights(seed=7)
    return model.eval()


@pytest.fixture
def batch(config: EmuConfig) -> Batch:
    """Two sequences with three images, the second one padded."""
    return make_batch(config, seed=0)


def make_batch(config: EmuConfig, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    special, side = config.special, config.vision.image_size
    words = torch.randint(3, special.pad, (60,), generator=generator).tolist()
    block = [special.image_start, *[special.image] * config.former.num_queries, special.image_end]
    first = [special.bos, *block, *words[:6], *block, *words[6:12], special.eos]
    second = [special.bos, *words[12:20], *block, special.eos]
    second += [special.pad] * (len(first) - len(second))
    ids = torch.tensor([first, second])
    return Batch(
        input_ids_BL=ids,
        attention_mask_BL=ids != special.pad,
        labels_BL=text_labels(ids, special, config.objective),
        pixels_NCHW=torch.randn(3, 3, side, side, generator=generator),
    )


def micro_config() -> EmuConfig:
    """Smaller than tiny, for tests that build many models."""
    tiny = tiny_config(vocab_size=300)
    return EmuConfig(
        vision=VisionConfig(16, 8, width=16, layers=1, heads=2, mlp_hidden=20, embed_dim=8),
        former=tiny.former,
        language=LanguageConfig(16, 2, 2, 24, vocab_size=300, max_positions=64),
    )
