"""The safety checker of Stable Diffusion, used where its weights are present."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Self

import numpy
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from torch import Tensor, nn
from transformers import CLIPImageProcessor

from emu.decoders.base import load_part

CHECKER, PROCESSOR = "safety_checker", "feature_extractor"

log = logging.getLogger(__name__)


class SafetyChecker(nn.Module):
    """Replaces images that match the checker's concepts by black ones."""

    def __init__(
        self, checker: StableDiffusionSafetyChecker, processor: CLIPImageProcessor
    ) -> None:
        super().__init__()
        self.checker = checker.eval().requires_grad_(False)
        self.processor = processor

    @classmethod
    def find(cls, directory: Path, device: torch.device | str, dtype: torch.dtype) -> Self | None:
        """The checker beside a decoder's weights, or None with one warning where there is none."""
        if not (directory / CHECKER).is_dir():
            log.warning(
                "safety_checker=absent decoder=%s hint=put the folders %s and %s there",
                directory,
                CHECKER,
                PROCESSOR,
            )
            return None
        checker = load_part(StableDiffusionSafetyChecker, directory / CHECKER, dtype)
        if not (directory / PROCESSOR).is_dir():
            raise FileNotFoundError(
                f"{directory} has a {CHECKER} without the folder {PROCESSOR}, which prepares its images"
            )
        processor = CLIPImageProcessor.from_pretrained(directory / PROCESSOR, local_files_only=True)
        return cls(checker, processor).to(device)

    def save(self, directory: Path) -> None:
        """Writes checker and processor beside a decoder's weights."""
        self.checker.save_pretrained(directory / CHECKER)
        self.processor.save_pretrained(directory / PROCESSOR)

    @torch.no_grad()
    def forward(self, images_BHWC: Tensor) -> Tensor:
        """The uint8 images, those that matched in black."""
        images = images_BHWC.cpu().numpy()
        first = next(self.checker.parameters())
        inputs = self.processor(list(images), return_tensors="pt")["pixel_values"]
        kept, matched = self.checker(
            images=images.astype(numpy.float32) / 255, clip_input=inputs.to(first)
        )
        if any(matched):
            log.warning("safety_checker=matched images=%d of=%d", sum(matched), len(matched))
        kept = torch.from_numpy(numpy.rint(kept * 255).astype(numpy.uint8))
        return kept.to(images_BHWC.device)
