"""Sharded models from the meta device: the bits of an ordinary start, and no rank ever holds all of it."""

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from emu.config import AdapterConfig, EmuConfig
from emu.data.batches import Share
from emu.models.emu import Emu
from emu.recipes import TrainConfig
from emu.tokenizer import EmuTokenizer
from emu.train.parallel import Ranks, shard, whole
from emu.train.sharded_start import start_sharded
from emu.train.start import start_model
from emu.train.step import EmuLosses
from emu.weights.store import save_model
from tests.data.small_dataset import small_tokenizer
from tests.models.llama_folders import write_llama
from tests.train.plans import mini_config
from tests.train.processes import CPU, start

TRAIN = TrainConfig(steps=1, batch_size=2, parallel="fsdp")


def anonymous_bytes() -> int:
    """Memory of this process that is no file's."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if "RssAnon" in line) * 1024


class Peak:
    """The greatest growth of memory inside a block."""

    def __enter__(self) -> "Peak":
        self.before = anonymous_bytes()
        self.growth = 0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._is_over.is_set():
            self.growth = max(self.growth, anonymous_bytes() - self.before)
            time.sleep(0.002)


def check_starts(
    rank: int, folder: Path, starts: list[tuple[EmuConfig, str | None, str | None, str | None]]
) -> None:
    """Compare a sharded start with an ordinary one on one of two ranks."""
    torch.set_num_threads(1)
    meeting = f"file://{folder / 'meeting'}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    assert Ranks(Share(rank, 2)).is_parallel

    def sharded(model: Emu) -> nn.Module:
        losses = EmuLosses(model, TRAIN.precision)
        shard(losses, model, TRAIN, CPU)
        return losses

    for config, init, vision, language in starts:
        with Peak() as peak:
            ours = start_sharded(config, TRAIN, init, CPU, sharded, vision, language)
        ordinary = start_model(config, TRAIN, init, CPU, vision, language)
        wanted = ordinary.state_dict()
        total = sum(weight.nbytes for weight in wanted.values())
        found = ours.state_dict()
        assert list(found) == list(wanted)
        for name, weight in found.items():
            assert torch.equal(whole(weight), wanted[name]), name
        trained = {name for name, weight in ours.named_parameters() if weight.requires_grad}
        assert trained == {
            name for name, weight in ordinary.named_parameters() if weight.requires_grad
        }
        assert peak.growth < 0.75 * total, (init, peak.growth, total)
        del ours, ordinary, wanted, found
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_sharded_start_has_the_bits_of_an_ordinary_one_in_a_bounded_memory(tmp_path: Path):
    small_tokenizer(tmp_path / "tokenizer.model")
    mini = mini_config(EmuTokenizer.load(tmp_path / "tokenizer.model").num_pieces)
    language = replace(mini.language, hidden_size=512, num_layers=14, intermediate_size=1408)
    config = replace(mini, language=language)
    model = Emu(config)
    model.init_weights(5)
    save_model(tmp_path / "init", model, tmp_path / "tokenizer.model", max_shard_size="20MB")
    tower = {f"visual.{name}": weight for name, weight in model.visual.state_dict().items()}
    torch.save(tower, tmp_path / "tower.pt")
    write_llama(tmp_path / "llama", language, tmp_path / "tokenizer.model", "20MB")
    init = str(tmp_path / "init")
    tuned = replace(config, instruct=True, adapter=AdapterConfig(rank=4))
    starts = [
        (config, None, None, None),
        (config, init, None, None),
        (tuned, init, None, None),
        (replace(config, instruct=True), init, None, None),
        (config, None, str(tmp_path / "tower.pt"), str(tmp_path / "llama")),
    ]
    ranks = [start(check_starts, rank, tmp_path, starts) for rank in range(2)]
    for rank in ranks:
        rank.join(300)
        assert rank.exitcode == 0
