"""The folder of a Stable Diffusion decoder opens as a pipeline of diffusers, and generates the engine's images."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

import emu
from emu.decoders.diffusion import noise_schedule
from emu.generate.prompts import ImageOptions
from tests.generate.tiny import write_tiny_model


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_pipeline_generates_the_images_of_the_engine(tmp_path: Path, guidance: float):
    engine = emu.load(write_tiny_model(tmp_path / "model"))
    pipeline: Any = DiffusionPipeline.from_pretrained(
        tmp_path / "model/decoder", local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = noise_schedule("ddim", pipeline.scheduler, 3)
    assert engine.decoder is not None and engine.config.decoder is not None
    side = engine.config.decoder.image_size
    options = ImageOptions(side, side, 3, guidance, seed=5, scheduler="ddim")
    wanted = engine.generate_image("a red circle", options)
    embeddings = engine.regress_image(["a red circle", ""])
    factor = pipeline.vae_scale_factor
    shape = (1, pipeline.unet.config.in_channels, side // factor, side // factor)
    image = pipeline(
        prompt_embeds=embeddings[:1],
        negative_prompt_embeds=embeddings[1:],
        latents=torch.randn(shape, generator=torch.Generator().manual_seed(5)),
        height=side,
        width=side,
        num_inference_steps=3,
        guidance_scale=guidance,
    ).images[0]
    difference = np.abs(np.asarray(image, np.int16) - np.asarray(wanted, np.int16))
    assert difference.max() <= 1


def test_classes_of_diffusers_are_imported_after_emu_as_before() -> None:
    code = "import emu\nfrom diffusers import StableDiffusionPipeline, DiffusionPipeline"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=240
    )
    assert ended.returncode == 0, ended.stderr
