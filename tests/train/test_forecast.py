import weakref
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from emu.config import AdapterConfig, EmuConfig, LanguageConfig, tiny_config
from emu.models.attention import documents_of
from emu.models.emu import Emu
from emu.models.objective import IGNORED, Batch, Objective, text_labels
from emu.recipes import INSTRUCT_RECIPES, TrainConfig, emu_14b, tiny
from emu.train.forecast import Cluster, alternatives, forecast, typical_sequence
from emu.train.memory import MicroBatch, plan_memory
from emu.train.optim import make_optimizer
from emu.train.start import train_adapter_alone

PAPER = [("laion", 1.0), ("mmc4", 1.0), ("webvid", 1.0), ("yt_storyboard", 1.0)]


class PeakMemory(TorchDispatchMode):
    """The largest sum of the bytes of all live tensors; `start` are those that exist before."""

    def __init__(self, start: list[torch.Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.live: dict[int, int] = {}
        for tensor in start:
            self.note(tensor)

    def note(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.live:
            self.live[storage._cdata] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.forget, storage._cdata)

    def forget(self, key: int) -> None:
        self.now -= self.live.pop(key)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, torch.Tensor):
                self.note(tensor)
        return out


def small_config() -> EmuConfig:
    """Larger than tiny, so that no constant of a few kilobytes counts."""
    config = tiny_config(2000)
    language = LanguageConfig(256, 3, 4, 688, vocab_size=2000, max_positions=1024)
    vision = replace(config.vision, layers=4)
    return replace(config, language=language, vision=vision, decoder=None)


def batch_of(config: EmuConfig) -> Batch:
    special = config.special
    block = [special.image_start, *[special.image] * config.former.num_queries, special.image_end]
    document = [special.bos, *(block + list(range(5, 25))) * 6, special.eos]
    ids = torch.tensor([document * 5])
    labels = text_labels(ids, special, config.objective)
    labels[0, :: len(document)] = IGNORED
    pixels = torch.randn(30, 3, config.vision.image_size, config.vision.image_size)
    documents = documents_of([[len(document)] * 5], ids.shape[1])
    return Batch(ids, torch.ones_like(ids, dtype=torch.bool), labels, pixels, None, documents)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("trained", ["all", "no_vision", "adapter"])
def test_the_planned_memory_is_that_of_a_real_step(recompute: bool, trained: str):
    config, frozen = small_config(), trained != "all"
    train = TrainConfig(
        steps=1, batch_size=1, recompute_activations=recompute, freeze_vision=frozen
    )
    if trained == "adapter":
        objective = replace(config.objective, visual_weight=0.0)
        config = replace(config, adapter=AdapterConfig(), objective=objective)
    model = Emu(config)
    model.init_weights(0)
    model.train()
    if recompute:
        model.recompute_activations()
    model.visual.requires_grad_(not frozen)
    if trained == "adapter":
        train_adapter_alone(model)
    optimizer, batch = make_optimizer(model, train.optim), batch_of(config)

    def step() -> None:
        output = model(batch, with_logits=False)
        Objective(config.objective)(output, batch).total.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()  # the optimizer has its state
    moments = [v for state in optimizer.state.values() for v in state.values()]
    memory = PeakMemory([*model.parameters(), *moments])
    with memory:
        step()
    targets = int((batch.labels_BL[:, 1:] != IGNORED).sum())
    sizes = MicroBatch(batch.input_ids_BL.numel(), batch.num_images, targets)
    planned = plan_memory(config, train, sizes, device="cpu")
    assert planned.peak == pytest.approx(memory.peak, rel=0.1)


def test_the_14b_model_fits_sharded_and_not_otherwise():
    recipe = emu_14b()
    asked = (recipe.model, recipe.train, recipe.sequence)
    whole = forecast(*asked, Cluster(8), PAPER)
    assert not whole.fits and whole.memory.weights == pytest.approx(4 * 14.18e9, rel=0.01)
    assert forecast(*asked, Cluster(8), PAPER, is_sharded=True).fits
    (found,) = alternatives(*asked, Cluster(8), PAPER)
    assert found.startswith("weights sharded over")


def test_the_papers_run_takes_about_two_days_on_its_cards():
    recipe = emu_14b()
    a100 = Cluster(128, peak_tflops=312.0)
    days = forecast(recipe.model, recipe.train, recipe.sequence, a100, PAPER).days
    assert 1 < days < 4


def test_tiny_fits_anywhere():
    recipe = tiny()
    found = forecast(recipe.model, recipe.train, recipe.sequence, Cluster(1, 8.0), [("mmc4", 1.0)])
    assert found.fits and found.memory.peak < 1e9


def test_dialogues_are_planned_by_kind():
    recipe = INSTRUCT_RECIPES["emu_14b"]()
    sizes = {
        name: typical_sequence(name, recipe.model, recipe.sequence)
        for name in ("sharegpt", "llava", "videochat")
    }
    assert {name: size.images for name, size in sizes.items()} == {
        "sharegpt": 0,
        "llava": 1,
        "videochat": 8,
    }
    corpora = [(name, 1.0) for name in sizes]
    asked = (recipe.model, recipe.train, recipe.sequence)
    found = forecast(*asked, Cluster(16), corpora)
    assert found.fits and found.memory.gradients < 1e9, "LoRA alone is trained"
