"""What a training of the visual decoder costs: its operations, its plan, and the conditions on disk."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from emu.config import DecoderConfig, EmuConfig, tiny_config
from emu.data.dataset import Dataset
from emu.decoder_recipe import ConditionPrecision, DecoderTrainConfig, PromptRules
from emu.decoders import decoder_class
from emu.generate.engine import Engine
from emu.train.conditions import kept_in, prepare, some_conditions
from emu.train.decoder_data import DecoderLosses, PromptedBatch
from emu.train.decoder_plan import forecast_decoder
from emu.train.forecast import Cluster
from emu.train.loop import train
from emu.train.run_folder import read_metrics
from emu.train.step import Ranks
from jobs.train_decoder import main
from tests.train.test_decoder import SIZES, plan, write_model
from tests.train.test_decoder import world as world
from tests.train.test_forecast import PeakMemory

KINDS = {"stable_diffusion": SIZES, "pixel_diffusion": tiny_config().decoder}
SMALL = DecoderConfig(
    image_size=64,
    unet_channels=(32, 64),
    unet_attention=(True, True),
    unet_layers=1,
    unet_heads=2,
    unet_groups=8,
    vae_channels=(16, 16),
    vae_layers=1,
    vae_groups=4,
)


def model_with(sizes: DecoderConfig | None) -> EmuConfig:
    return replace(tiny_config(), decoder=sizes)


def real_losses(model: EmuConfig) -> DecoderLosses:
    sizes, width = model.decoder, model.language.hidden_size
    assert sizes is not None
    decoder = decoder_class(sizes.kind).from_config(sizes, width, 0)
    _, network = decoder.trained_network()
    null_QD = torch.randn(model.former.num_queries, width)
    return DecoderLosses(network.train(), decoder.loss, null_QD, 0.1, "float32")


def batch_of(model: EmuConfig, number: int) -> PromptedBatch:
    sizes = model.decoder
    assert sizes is not None
    shape = (number, 3, sizes.image_size, sizes.image_size)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8)
    conditions = torch.randn(number, model.former.num_queries, model.language.hidden_size)
    return PromptedBatch(pixels, conditions, tuple(range(number)))


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_count_is_that_of_torch(kind: str) -> None:
    """Of a plan, which has no weights and one image, and of three real images, frozen autoencoder included."""
    model = model_with(KINDS[kind])
    losses, one = real_losses(model), torch.ones(())
    with FlopCounterMode(display=False) as counter:
        total, *_ = losses(batch_of(model, 3), one, one)
        forward = counter.get_total_flops()
        total.backward()
    cost = forecast_decoder(model, DecoderTrainConfig(batch_size=8), Cluster(1)).cost
    assert 3 * cost.forward.images == pytest.approx(forward, rel=1e-3)
    assert 3 * cost.model_of_images == pytest.approx(counter.get_total_flops(), rel=1e-3)


def test_the_log_of_a_run_has_its_operations(world: Path, tmp_path: Path) -> None:
    run = plan(world, tmp_path / "run", steps=2, autoencoder_steps=1, peak_tflops=1e-3)
    train(run)
    for folder in (Path(run.out), Path(run.out) / "autoencoder"):
        for row in read_metrics(folder):
            assert row["tflops_per_s"] > 0
            assert row["mfu"] == pytest.approx(row["tflops_per_s"] / 1e-3)


def test_the_planned_memory_bounds_that_of_a_real_step() -> None:
    model = model_with(SMALL)
    losses, one = real_losses(model), torch.ones(())
    decoder = losses._loss.__self__  # type: ignore[attr-defined]
    assert isinstance(decoder, nn.Module)
    optimizer = torch.optim.AdamW(losses.network.parameters(), foreach=False)
    batch = batch_of(model, 4)
    memory = PeakMemory(list(decoder.parameters()))
    with memory:
        for _ in range(2):  # the optimizer has its state after the first
            total, *_ = losses(batch, one, one)
            total.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    planned = forecast_decoder(model, DecoderTrainConfig(batch_size=4), Cluster(1)).peak
    assert 0.95 * memory.peak < planned < 1.3 * memory.peak, (planned, memory.peak)


@pytest.mark.parametrize(("precision", "bound"), [("float16", 2**-11), ("bfloat16", 2**-8)])
def test_conditions_in_half_precision(
    world: Path, tmp_path: Path, precision: ConditionPrecision, bound: float
) -> None:
    engine, data = Engine.load(world / "model"), Dataset(world / "data")
    found = [
        prepare(
            tmp_path / name,
            "pairs",
            data,
            PromptRules(),
            DecoderTrainConfig(condition_precision=name),
            lambda: engine,
            4,
            Ranks(),
        )
        for name in ("float32", precision)
    ]
    whole, half = (each.shards[0] for each in found)
    wanted, kept = whole.condition(3), half.condition(3)
    assert kept.dtype == torch.float32 and not torch.equal(kept, wanted)
    assert ((kept - wanted).abs() <= bound * wanted.abs() + 1e-7).all()
    assert some_conditions(found[1:]).dtype == torch.float32
    assert load_file(half.path)["conditions_UQD"].dtype == getattr(torch, precision)


def test_a_condition_beyond_float16_is_refused() -> None:
    conditions_UQD = torch.tensor([[[1.0, 7e4]]])
    with pytest.raises(ValueError, match=r"value of 7e\+04, the limit of float16 is 6\.55e\+04"):
        kept_in(conditions_UQD, "float16")
    assert kept_in(conditions_UQD, "bfloat16").isfinite().all()


def test_half_precision_moves_a_training_little(world: Path, tmp_path: Path) -> None:
    """The losses of four steps from scratch, by the precision of the conditions; the weights differ a little."""
    losses = {}
    for precision in ("float32", "float16"):
        run = plan(world, tmp_path / precision, condition_precision=precision)
        train(run)
        losses[precision] = [row["visual_loss"] for row in read_metrics(Path(run.out))]
    assert losses["float16"] != losses["float32"]
    assert losses["float16"] == pytest.approx(losses["float32"], rel=1e-3)


def test_the_command_plans_without_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_model(tmp_path)
    options = ["--model", str(folder), "--plan", "--num-workers", "2", "--batch-size", "6"]
    assert main(options) == 0
    shown = capsys.readouterr().out
    assert "full copies, 3 images at once" in shown and "per million prompts (float32)" in shown
    assert main([*options, "--gpu-memory-gb", "4.001"]) == 1
    assert "the run does not fit" in capsys.readouterr().err
    assert main([*options, "--num-workers", "9"]) == 2
    assert "batch_size is 6 for 9 workers" in capsys.readouterr().err
