"""Image decoding: a second loop beside that of the language model, which batches the denoising of all requests.

Embeddings come in, pixels go out. New images join between steps; images of one size share a forward of the U-Net, each
at its own step, with guidance as further rows. A reply's text goes on meanwhile, since it follows from the embeddings.

Shapes: Q embeddings of an image, D language width, Z latent channels, h w latent positions.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Protocol

import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from emu.generate.counters import ImageCounters
from emu.generate.scheduler import QueueFull
from emu.generate.step_thread import StepThread
from schemas.validation import Checked

if TYPE_CHECKING:
    from emu.decoders.base import Denoising, VisualDecoder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageJob:
    """One image to be decoded; holds all that a process with the visual decoder alone needs."""

    condition_QD: Tensor
    null_condition_QD: Tensor
    height: int
    width: int
    num_inference_steps: int
    guidance_scale: float
    seed: int
    scheduler: str | None = None
    initial_latents: Tensor | None = None
    """Noise `1Zhw`, instead of that of the seed."""


class ImageBackend(Protocol):
    """Decodes images: `ImageLoop` in this process, or replicas elsewhere."""

    def submit(self, job: ImageJob) -> Future[Image.Image]:
        """The image to come; cancelling it gives its place to others at the next step.

        Raises ValueError for what the decoder does not support and QueueFull where too many wait.
        """
        ...


@dataclass(frozen=True)
class ImageLoopOptions(Checked):
    """Sizes of the loop."""

    max_batch: Annotated[int, Field(ge=1)] = 4
    """Images in one forward, twice as many rows with guidance. More of them make each other wait and save little
    where a forward of so many rows fills the processor."""
    max_waiting: Annotated[int, Field(ge=0)] = 64
    """Images beyond those of one forward; further ones are refused."""


@dataclass
class Work:
    """An image that is being made."""

    denoising: Denoising
    result: Future[Image.Image]

    @property
    def size(self) -> Sequence[int]:
        """Of its latents: images of one size share a forward."""
        return self.denoising.latents_NZhw.shape[1:]


class ImageLoop:
    """A thread that decodes the images of all other threads with one visual decoder."""

    def __init__(
        self, decoder: VisualDecoder, options: ImageLoopOptions = ImageLoopOptions()
    ) -> None:
        self.decoder, self.options = decoder, options
        self._work: list[Work] = []
        self._last_size: Sequence[int] = ()
        self._num_steps = self._num_rows = self._num_images = 0
        self._thread = StepThread("image-loop", lambda: bool(self._work), self._step, self._end)
        self._thread.start()

    def submit(self, job: ImageJob) -> Future[Image.Image]:
        """As `ImageBackend.submit`; raises LoopClosed as well."""
        denoising = self.decoder.begin(
            job.condition_QD[None],
            job.null_condition_QD,
            job.height,
            job.width,
            job.num_inference_steps,
            job.guidance_scale,
            # noise from the CPU: the same seed gives the same image on every device
            torch.Generator().manual_seed(job.seed),
            job.initial_latents,
            job.scheduler,
        )
        work = Work(denoising, Future())
        with self._thread.adding():
            if len(self._work) >= self.options.max_batch + self.options.max_waiting:
                raise QueueFull(f"{len(self._work)} images wait, and no more may; try again soon")
            self._work.append(work)
        return work.result

    def counters(self) -> ImageCounters:
        """The counters as they are now."""
        return ImageCounters(len(self._work), self._num_steps, self._num_rows, self._num_images)

    def close(self) -> None:
        """Ends the thread after its step; images that are not finished are cancelled."""
        self._thread.close()

    def _end(self) -> None:
        for work in self._work:
            work.result.cancel()
        self._work.clear()

    def _step(self) -> None:
        with self._thread.lock:
            batch = self._next_batch()
        try:
            self._denoise(batch)
        except Exception as error:
            log.exception("images=failed")
            for work in batch:
                _settle(work.result, error)
            self._remove(batch)

    def _next_batch(self) -> list[Work]:
        """The oldest images of one size; sizes take turns."""
        self._work = [work for work in self._work if not work.result.cancelled()]
        if not self._work:
            return []
        others = [work for work in self._work if work.size != self._last_size]
        self._last_size = (others or self._work)[0].size
        own = [work for work in self._work if work.size == self._last_size]
        return own[: self.options.max_batch]

    @torch.inference_mode()
    def _denoise(self, batch: Sequence[Work]) -> None:
        if not batch:
            return
        self.decoder.denoise([work.denoising for work in batch])
        self._num_steps += 1
        self._num_rows += len(batch)
        done = [work for work in batch if work.denoising.is_done]
        if done:
            latents = torch.cat([work.denoising.latents_NZhw for work in done])
            images_NHWC = self.decoder.images(latents).cpu().numpy()
            self._remove(done)
            self._num_images += len(done)
            for work, pixels in zip(done, images_NHWC, strict=True):
                _settle(work.result, Image.fromarray(pixels))

    def _remove(self, gone: Sequence[Work]) -> None:
        with self._thread.lock:
            self._work = [work for work in self._work if work not in gone]


def _settle(result: Future[Image.Image], value: Image.Image | Exception) -> None:
    """Gives the result, unless the image was cancelled meanwhile."""
    if not result.set_running_or_notify_cancel():
        return
    if isinstance(value, Exception):
        result.set_exception(value)
    else:
        result.set_result(value)
