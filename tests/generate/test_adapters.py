"""Adapters chosen per request: each gives what its own model gives alone, whatever runs beside it."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import emu
from emu.config import AdapterConfig
from emu.generate.engine import Engine
from emu.generate.prompts import Prompt, TextOptions
from emu.generate.request_state import PromptScores, Request
from emu.generate.scheduler import ScheduleOptions
from emu.models.emu import add_instruct_tokens
from emu.models.language_model import LORA, add_adapter
from emu.weights.adapter import export_adapter
from emu.weights.store import load_model, save_model

OPTIONS = TextOptions(max_new_tokens=8)


def write_adapter(base: Path, folder: Path, seed: int, rank: int) -> Path:
    """An adapter with random weights on the model in `base`, as instruction tuning saves it."""
    model, tokenizer = load_model(base)
    add_instruct_tokens(model, tokenizer)
    config = AdapterConfig(rank=rank, alpha=32)
    add_adapter(model.language, config)
    model.config = replace(model.config, adapter=config)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if LORA in name:
            weight.data.normal_(std=0.1, generator=generator)
    save_model(folder / "model", model, base / "tokenizer.model")
    export_adapter(folder / "model", folder / "adapter", base)
    return folder / "adapter"


@pytest.fixture(scope="module")
def folders(tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("adapters")
    return [write_adapter(tiny_dir, root / str(n), n, rank=2 + n) for n in (1, 2)]


@pytest.fixture(scope="module")
def served(tiny_dir: Path, folders: list[Path]) -> Engine:
    engine = emu.load(tiny_dir)
    for number, folder in enumerate(folders):
        engine.load_adapter(f"tuned{number}", folder)
    return engine


@pytest.fixture(scope="module")
def alone(tiny_dir: Path, folders: list[Path]) -> list[Engine]:
    """The base model and each adapter's, every one opened for itself."""
    return [emu.load(tiny_dir), *map(emu.load, folders)]


def views(engine: Engine) -> list[Engine]:
    return [engine, engine.with_adapter("tuned0"), engine.with_adapter("tuned1")]


def test_each_adapter_gives_what_its_own_model_gives(
    served: Engine, alone: list[Engine], photo: Image.Image
) -> None:
    prompt: Prompt = [photo, "what colour is the triangle? [USER]"]
    texts, images, ranks = set(), [], []
    for view, own in zip(views(served), alone, strict=True):
        assert view.generate_ids([prompt], OPTIONS) == own.generate_ids([prompt], OPTIONS)
        searched = replace(OPTIONS, num_beams=3)
        assert view.generate_ids(["a red"], searched) == own.generate_ids(["a red"], searched)
        texts.add(tuple(view.generate_ids([prompt], OPTIONS)[0]))
        images.append(view.regress_image([prompt]))
        assert (images[-1] - own.regress_image([prompt])).abs().max() < 1e-4
        losses = view.candidate_losses(prompt, ["red", "a blue square"])
        assert losses == pytest.approx(
            own.candidate_losses(prompt, ["red", "a blue square"]), abs=1e-4
        )
        ranks.append(tuple(losses))
    assert len(texts) == 3 and len(set(ranks)) == 3, "the adapters change nothing"
    assert (images[1] - images[2]).abs().max() > 1e-2


@pytest.mark.parametrize("deterministic", [False, True])
def test_rows_of_all_adapters_share_a_batch(
    tiny_dir: Path, folders: list[Path], alone: list[Engine], deterministic: bool
) -> None:
    engine = emu.load(tiny_dir)
    for number, folder in enumerate(folders):
        engine.load_adapter(f"tuned{number}", folder)
    loop = engine.start_batching(ScheduleOptions(256, deterministic=deterministic))
    prompt = "what colour is the triangle in the picture? it is green"
    expected = [own.generate_text([prompt], OPTIONS)[0] for own in alone]
    found: dict[int, str] = {}

    def ask(number: int) -> None:
        found[number] = views(engine)[number % 3].generate(prompt, OPTIONS).text

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[number] for number in range(9)] == expected * 3
    assert loop.scheduler.pool.num_used == 0
    loop.close()


def test_pages_of_one_adapter_are_none_of_another(served: Engine) -> None:
    scheduler_hits = []
    loop = served.start_batching(ScheduleOptions(256))
    prompt = "describe the image in detail. " * 4
    for view in [*views(served), *views(served)]:
        before = loop.scheduler.pool.num_hits
        view.generate(prompt, OPTIONS)
        scheduler_hits.append(loop.scheduler.pool.num_hits - before)
    assert scheduler_hits[:3] == [0, 0, 0] and all(scheduler_hits[3:])
    loop.close()


def test_a_prompt_whose_last_position_is_a_chunk_is_scored(served: Engine) -> None:
    length = len(served.encode("a red circle").ids)
    options = TextOptions(max_new_tokens=1, num_logprobs=0, prompt_logprobs=True)
    request = Request(served.encode("a red circle"), options)
    found = []
    for chunk in (length - 1, length):
        scheduler = served.scheduler(ScheduleOptions(64, chunk=chunk))
        scheduler.submit(request)
        outputs = [out for _ in range(3) for _, out in scheduler.step()]
        found.append([out.scores for out in outputs if isinstance(out, PromptScores)])
    assert [len(scores) for (scores,) in found] == [length, length]


def test_wrong_adapters_are_named(tiny_dir: Path, folders: list[Path], served: Engine) -> None:
    with pytest.raises(ValueError, match="no adapter 'none'; there are \\['tuned0', 'tuned1'\\]"):
        served.with_adapter("none")
    with pytest.raises(ValueError, match="the adapter's name is 'tuned0'"):
        served.load_adapter("tuned0", folders[0])
    with pytest.raises(FileNotFoundError, match=r"no adapter at .*needed are adapter_config.json"):
        served.load_adapter("other", tiny_dir)
    with pytest.raises(ValueError, match="has one already"):
        emu.load(folders[0]).load_adapter("twice", folders[1])
