"""The Python API of a trained model: prompts in, texts and images out.

Shapes: B prompts, Q causal queries, D language width.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self, TypeVar

import torch
from PIL import Image
from torch import Tensor

from emu.config import EmuConfig
from emu.decoders import load_decoder
from emu.generate.adapters import Adapter, load_adapter
from emu.generate.batch_loop import BatchLoop, Outputs, run_requests
from emu.generate.conditions import NullConditions, condition_key
from emu.generate.image_loop import ImageBackend, ImageJob, ImageLoop
from emu.generate.int8 import check_weights, open_weights
from emu.generate.precision import check_device, dtype_of
from emu.generate.prefix import weights_key
from emu.generate.products import Products
from emu.generate.prompts import (
    EncodedPrompt,
    ImageOptions,
    NegativePromptTooLong,
    Prompt,
    PromptEncoder,
    PromptTooLong,
    Reply,
    TextOptions,
)
from emu.generate.replies import Event, reply_events
from emu.generate.request_state import Losses, Request
from emu.generate.sampling import Detokenizer
from emu.generate.scheduler import ScheduleOptions, Scheduler
from emu.generate.scoring import answered_prompts, rank_request
from emu.models.emu import Emu, add_instruct_tokens
from emu.tokenizer import EmuTokenizer
from emu.weights.layout import DECODER

if TYPE_CHECKING:
    from emu.decoders.base import VisualDecoder

P = TypeVar("P")
RankScore = Literal["released", "sum"]


@dataclass
class Shared:
    """What an engine and those of its adapters have in common."""

    adapters: dict[str, Adapter] = field(default_factory=dict)
    null_conditions: NullConditions = field(default_factory=NullConditions)
    loop: BatchLoop | None = None
    images: ImageBackend | None = None
    products: Products | None = None
    """The copy of the weights that calls without a loop use; made when several prompts first run together."""
    lock: threading.Lock = field(default_factory=threading.Lock)


class Engine:
    """A model, its tokenizer and its visual decoder, if it has one.

    Several threads may share an engine. A prompt is a text, an image (bytes, path, PIL image, normalised
    tensor) or a list of them in order; errors name the argument, its value and the limit.
    """

    def __init__(
        self, model: Emu, tokenizer: EmuTokenizer, decoder: VisualDecoder | None = None
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.decoder = decoder
        self.encode = PromptEncoder(tokenizer, model.config)
        self.adapter = ""
        """The name of the adapter that its requests use; empty for none."""
        self._shared = Shared()

    @classmethod
    def load(
        cls,
        directory: str | Path,
        device: str = "cpu",
        dtype: str = "float32",
        weights: str = "full",
    ) -> Self:
        """The engine of a model directory, as `emu.load`."""
        precision = dtype_of(dtype)
        check_weights(weights)
        check_device(device)
        model, tokenizer = open_weights(directory, device, precision, weights)
        folder = Path(directory) / DECODER
        decoder = load_decoder(folder, device, precision) if folder.is_dir() else None
        return cls(model, tokenizer, decoder)

    @property
    def config(self) -> EmuConfig:
        """The sizes and choices of the model."""
        return self.model.config

    def start_batching(self, options: ScheduleOptions = ScheduleOptions()) -> BatchLoop:
        """From now on `stream` and `generate` of all threads run together, over one pool of pages.

        Without it each call runs alone. `QueueFull` is raised where too many wait.
        """
        shared = self._shared
        if shared.loop is None:
            if self.adapter:
                raise ValueError(f"call it on the engine without adapter {self.adapter!r}")
            shared.loop = BatchLoop(self.scheduler(options))
        return shared.loop

    def scheduler(self, options: ScheduleOptions = ScheduleOptions()) -> Scheduler:
        """A new scheduler for this model and its adapters, with pages of its own."""
        return Scheduler(self.model, self.tokenizer, options, self._shared.adapters)

    def decode_images_with(self, backend: ImageBackend) -> None:
        """Images are decoded there; by default in a thread of this process, those of all requests together."""
        self._shared.images = backend

    def load_adapter(self, name: str, folder: str | Path) -> Engine:
        """The engine of a LoRA adapter on this model, from a folder that `emu train-instruct` saved.

        Both share weights, pages and batch; requests without the adapter give what they gave before. Load adapters
        before the first request: a pretrained model gets rows for `[USER]` and `[ASSISTANT]`. Raises
        FileNotFoundError, and ValueError for an adapter that does not fit and a name that is taken.
        """
        if self.adapter:
            raise ValueError(f"this is the engine of adapter {self.adapter!r}; load into its base")
        if not name or name in self._shared.adapters:
            raise ValueError(f"the adapter's name is {name!r}, give another than {self.adapters}")
        adapter = load_adapter(name, folder, self.model, self.tokenizer)
        if not self.config.instruct:
            add_instruct_tokens(self.model, self.tokenizer)
        self._shared.adapters[name] = adapter
        return self.with_adapter(name)

    @property
    def adapters(self) -> list[str]:
        """The names of the loaded adapters."""
        return sorted(self._shared.adapters)

    def with_adapter(self, name: str) -> Engine:
        """The engine of a loaded adapter; raises ValueError for an unknown name."""
        if name not in self._shared.adapters:
            raise ValueError(f"no adapter {name!r}; there are {self.adapters}")
        engine = Engine(self.model, self._shared.adapters[name].tokenizer, self.decoder)
        engine.adapter, engine._shared = name, self._shared
        return engine

    def generate_text(
        self, prompts: Sequence[Prompt], options: TextOptions = TextOptions()
    ) -> list[str]:
        """The text that follows each prompt, greedy by default.

        Prompts of different lengths run together, and each gives the same text as alone, to
        rounding; row i is sampled with `seed + i`.
        """
        return [text.text for text in self._texts(prompts, options)]

    def generate_ids(
        self, prompts: Sequence[Prompt | EncodedPrompt], options: TextOptions = TextOptions()
    ) -> list[list[int]]:
        """The ids of each text, with the start id in front as in the released code."""
        texts = self._texts(prompts, options)
        return [[self.config.special.bos, *text.ids] for text in texts]

    def regress_image(self, prompts: Sequence[Prompt]) -> Tensor:
        """The visual embeddings `BQD` of the image that follows each prompt."""
        num_queries = self.config.former.num_queries
        prompts = _listed(prompts)
        encoded = [self.encode(p, opens_image=True, num_reserved=num_queries) for p in prompts]
        if not encoded:
            return torch.empty(0, num_queries, self.config.language.hidden_size)
        images: dict[int, Tensor] = {}
        base = Request(encoded[0], None, image_first=True, adapter=self.adapter)
        requests = [replace(base, prompt=p, row=row) for row, p in enumerate(encoded)]
        for state, output in self._run(requests):
            if isinstance(output, Tensor):
                images[state.request.row] = output
        return torch.stack([images[row] for row in range(len(requests))])

    def generate_image(
        self,
        prompt: Prompt,
        options: ImageOptions = ImageOptions(),
        initial_latents: Tensor | None = None,
    ) -> Image.Image:
        """The image that follows the prompt.

        `initial_latents` replace the noise that the seed of the options determines.
        """
        self._decoder()  # before the embeddings, which could not be decoded
        if not isinstance(initial_latents, Tensor | None):
            raise TypeError(f"initial_latents is {type(initial_latents).__name__}, give a tensor")
        _check_kind("options", options, ImageOptions)
        self._negative(options.negative_prompt)
        (embeddings_QD,) = self.regress_image([prompt])
        return self._start_image(embeddings_QD, options, 0, initial_latents).result()

    def generate(
        self,
        prompt: Prompt | EncodedPrompt,
        text: TextOptions | None = TextOptions(),
        image: ImageOptions = ImageOptions(),
        image_first: bool = False,
        max_images: int | None = None,
    ) -> Reply:
        """An interleaved reply: text, and an image wherever the model opens one.

        With `image_first` the reply begins with an image; with `text=None` it has no text. At most
        `max_images` are generated: by default 1 if there is a visual decoder. After an image the
        text continues over the same cache, from the regressed embeddings. A model opens an image
        only if it was trained to (`ObjectiveConfig.train_image_start`).
        """
        *_, reply = self.stream(prompt, text, image, image_first, max_images)
        assert isinstance(reply, Reply)
        return reply

    def stream(
        self,
        prompt: Prompt | EncodedPrompt,
        text: TextOptions | None = TextOptions(),
        image: ImageOptions = ImageOptions(),
        image_first: bool = False,
        max_images: int | None = None,
        in_order: bool = True,
        is_wanted: Callable[[], bool] | None = None,
    ) -> Iterator[Event]:
        """The reply of `generate` as it is generated: pieces of text, images, at last the `Reply`.

        One piece per token, empty where the token completes no text yet. Text is generated while an image is decoded.
        With `in_order` it waits for the image; otherwise it comes at once, after an `ImagePosition`, and the image
        follows as a `DecodedImage`. The prompt is checked at the first step; generation stops when the caller stops
        iterating, and when `is_wanted` turns false, also between two events.
        """
        if max_images is None:
            max_images = 0 if self.decoder is None else 1
        if max_images < 0:
            raise ValueError(f"max_images is {max_images}, give 0 or more")
        has_images = image_first or max_images > 0
        if has_images:
            self._decoder()
            self._negative(image.negative_prompt)

        def start_image(embeddings_QD: Tensor, number: int) -> Future[Image.Image]:
            return self._start_image(embeddings_QD, image, number)

        num_reserved = self.config.former.num_queries + 1 if image_first else 1
        encoded = self.encode(prompt, opens_image=image_first, num_reserved=num_reserved)
        if text is None and not image_first:
            yield Reply((), "stop", len(encoded.ids), 0)
            return
        request = Request(encoded, text, image_first, max_images, adapter=self.adapter)
        outputs = self._outputs(request, is_wanted)
        yield from reply_events(outputs, start_image, in_order, is_wanted)

    def rank(
        self, prompt: Prompt, candidates: Sequence[str], score: RankScore = "released"
    ) -> list[int]:
        """The indices of the candidates, the likeliest answer first.

        Equal candidates keep their order. See `candidate_losses` for the scores.
        """
        losses = self.candidate_losses(prompt, candidates, score)
        return sorted(range(len(losses)), key=losses.__getitem__)

    def candidate_losses(
        self, prompt: Prompt, candidates: Sequence[str], score: RankScore = "released"
    ) -> list[float]:
        """The loss of each candidate as the answer to the prompt; lower is likelier.

        `released`: the sum over its tokens divided by the length of prompt and candidate, as in the
        released evaluation of VisDial; `sum`: the negative log-likelihood. A space separates prompt
        and candidate, as in the released code. The prompt and its images run once.
        """
        encoded = self.encode(prompt)
        answered = answered_prompts(self.encode, encoded, candidates)
        if score not in ("released", "sum"):
            raise ValueError(f"score is {score!r}, give 'released' or 'sum'")
        (losses,) = [
            list(output.losses)
            for _, output in self._outputs(rank_request(encoded, answered, self.adapter))
            if isinstance(output, Losses)
        ]
        if score == "sum":
            return losses
        return [loss / len(full.ids) for loss, full in zip(losses, answered, strict=True)]

    def _texts(
        self, prompts: Sequence[Prompt | EncodedPrompt], options: TextOptions
    ) -> list[Detokenizer]:
        _check_kind("options", options, TextOptions)
        num_tokens = self.config.num_embeddings
        if options.num_beams > num_tokens:
            raise ValueError(
                f"num_beams is {options.num_beams}, the vocabulary has {num_tokens} tokens"
            )
        encoded = [self.encode(prompt) for prompt in _listed(prompts)]
        if not encoded:
            return []
        requests = [
            Request(prompt, options, row=row, adapter=self.adapter)
            for row, prompt in enumerate(encoded)
        ]
        ended = {s.request.row: s.texts[0] for s, _ in self._run(requests) if s.texts}
        return [ended[row] for row in range(len(requests))]

    def _outputs(self, request: Request, is_wanted: Callable[[], bool] | None = None) -> Outputs:
        if self._shared.loop is not None:
            return self._shared.loop.outputs(request, is_wanted)
        return self._run([request])

    def _run(self, requests: Sequence[Request]) -> Outputs:
        shared = self._shared
        if len(requests) > 1 and shared.products is None:
            max_bytes = ScheduleOptions().max_packed_mb * 2**20
            shared.products = Products(self.model.language, max_bytes)
        products = shared.products if len(requests) > 1 else None
        return run_requests(self.model, self.tokenizer, requests, shared.adapters, products)

    def _decoder(self) -> VisualDecoder:
        if self.decoder is None:
            raise ValueError(
                "this model has no visual decoder and cannot generate images; its weights belong in "
                f"the folder {DECODER}/ of the model directory"
            )
        return self.decoder

    def _start_image(
        self,
        embeddings_QD: Tensor,
        options: ImageOptions,
        number: int,
        initial_latents: Tensor | None = None,
    ) -> Future[Image.Image]:
        _check_kind("options", options, ImageOptions)
        height, width = self._image_size(options)
        job = ImageJob(
            embeddings_QD,
            self._null_condition(options.negative_prompt),
            height,
            width,
            options.num_inference_steps,
            options.guidance_scale,
            options.seed + number,
            options.scheduler,
            initial_latents,
        )
        return self._image_backend().submit(job)

    def _image_backend(self) -> ImageBackend:
        decoder = self._decoder()
        with self._shared.lock:
            if self._shared.images is None:
                self._shared.images = ImageLoop(decoder)
            return self._shared.images

    def _image_size(self, options: ImageOptions) -> tuple[int, int]:
        side = None if self.config.decoder is None else self.config.decoder.image_size
        height, width = options.height or side, options.width or side
        if height is None or width is None:
            raise ValueError("give height and width: the model's configuration has no decoder")
        return height, width

    def _null_condition(self, negative_prompt: str) -> Tensor:
        """The embeddings `QD` regressed from the negative prompt; the empty one is that of the released pipeline."""
        adapter = self._shared.adapters[self.adapter].key if self.adapter else b""
        key = condition_key(weights_key(self.model, adapter), self._negative(negative_prompt).ids)
        return self._shared.null_conditions.of(
            key, lambda: self.regress_image([negative_prompt])[0]
        )

    def _negative(self, prompt: str) -> EncodedPrompt:
        """The encoded negative prompt; raises NegativePromptTooLong."""
        try:
            num_queries = self.config.former.num_queries
            return self.encode(prompt, opens_image=True, num_reserved=num_queries)
        except PromptTooLong as error:
            raise NegativePromptTooLong(f"negative_prompt: {error}") from error


def _listed(prompts: Sequence[P]) -> Sequence[P]:
    if not isinstance(prompts, list | tuple):
        raise TypeError(f"prompts is {type(prompts).__name__}, give a list of prompts")
    return prompts


def _check_kind(name: str, value: object, kind: type) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{name} is {value!r}, give {kind.__name__}(…)")
