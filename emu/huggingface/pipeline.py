"""The folder of a Stable Diffusion decoder as a pipeline of diffusers."""

from __future__ import annotations

from typing import ClassVar

import diffusers
from diffusers import StableDiffusionPipeline


class EmuDecoderPipeline(StableDiffusionPipeline):
    """Stable Diffusion without a text encoder: `prompt_embeds` are the embeddings that the model regresses.

    `negative_prompt_embeds` are those of the empty prompt (released pipeline); `Engine.regress_image` gives both.
    """

    _optional_components: ClassVar[list[str]] = [
        *StableDiffusionPipeline._optional_components,
        "text_encoder",
        "tokenizer",
    ]


setattr(
    diffusers, EmuDecoderPipeline.__name__, EmuDecoderPipeline
)  # where diffusers looks classes up
