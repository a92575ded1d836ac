"""The Python door to a trained model: prompts in, texts and pictures out.

Shapes: B prompts, Q causal queries, D language width.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import torch
from PIL import Image
from torch import Tensor

from emu.config import IMAGE, EmuConfig
from emu.generate.beam import beam_search
from emu.generate.interleaved import Draw, Event, Interleaver, regress
from emu.generate.kv_cache import Continuation
from emu.generate.options import ImageOptions, Reply, TextOptions
from emu.generate.prompts import EncodedPrompt, Prompt, PromptEncoder
from emu.generate.sampling import RunningText, write
from emu.generate.scoring import summed_losses
from emu.models.emu import Emu
from emu.tokenizer import EmuTokenizer
from emu.weights.store import load_model

if TYPE_CHECKING:
    from emu.decoders.base import VisualDecoder

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DECODER = "decoder"
RankScore = Literal["released", "sum"]


class Engine:
    """A model, its tokenizer and, where there is one, its visual decoder.

    Several threads may use one engine. A prompt is a text, an image (bytes, path, PIL, normalised
    tensor) or a list of them in order; errors name the wrong argument and the limit.
    """

    def __init__(
        self, model: Emu, tokenizer: EmuTokenizer, decoder: VisualDecoder | None = None
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.decoder = decoder
        self.encode = PromptEncoder(tokenizer, model.config)
        self._null_condition_QD: Tensor | None = None
        self._null_lock = threading.Lock()

    @classmethod
    def load(cls, directory: str | Path, device: str = "cpu", dtype: str = "float32") -> Self:
        """The engine of a model directory; `dtype` is `float32`, `bfloat16` or `float16`."""
        if dtype not in DTYPES:
            raise ValueError(f"dtype is {dtype!r}, give one of {sorted(DTYPES)}")
        _check_device(device)
        model, tokenizer = load_model(directory, device, DTYPES[dtype])
        decoder = None
        if (Path(directory) / DECODER).is_dir():
            from emu.decoders import DECODERS

            kind = DECODERS["stable_diffusion"]
            decoder = kind.load(Path(directory) / DECODER, device, DTYPES[dtype])
        return cls(model, tokenizer, decoder)

    @property
    def config(self) -> EmuConfig:
        """The sizes and choices of the model."""
        return self.model.config

    def generate_text(
        self,
        prompts: Sequence[Prompt],
        num_beams: int = 1,
        max_new_tokens: int = 64,
        min_length: int = 0,
        length_penalty: float = 1.0,
        do_sample: bool = False,
        top_p: float = 1.0,
        temperature: float = 1.0,
        seed: int = 0,
        stop: Sequence[str] = (),
    ) -> list[str]:
        """The answer to each prompt, greedy by default; `TextOptions` explains the arguments.

        Prompts of different lengths run together, and each gives what it gives alone; row i draws
        with `seed + i`.
        """
        options = TextOptions(
            max_new_tokens,
            min_length,
            num_beams,
            length_penalty,
            do_sample,
            temperature,
            top_p,
            seed,
            _stops(stop),
        )
        return [text.text for text in self._texts(prompts, options)]

    def generate_ids(
        self,
        prompts: Sequence[Prompt],
        num_beams: int = 1,
        max_new_tokens: int = 64,
        min_length: int = 0,
        length_penalty: float = 1.0,
        do_sample: bool = False,
        top_p: float = 1.0,
        temperature: float = 1.0,
        seed: int = 0,
        stop: Sequence[str] = (),
    ) -> list[list[int]]:
        """The ids of each answer, led by the start id as in the released code."""
        options = TextOptions(
            max_new_tokens,
            min_length,
            num_beams,
            length_penalty,
            do_sample,
            temperature,
            top_p,
            seed,
            _stops(stop),
        )
        texts = self._texts(prompts, options)
        return [[self.config.special.bos, *text.ids] for text in texts]

    def regress_image(self, prompts: Sequence[Prompt]) -> Tensor:
        """The visual embeddings `BQD` of the image that follows each prompt."""
        room = self.config.former.num_queries
        encoded = [self.encode(prompt, draw=True, room=room) for prompt in _listed(prompts)]
        if not encoded:
            return torch.empty(0, room, self.config.language.hidden_size)
        return regress(self.model, encoded)

    def generate_image(
        self,
        prompt: Prompt,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        seed: int = 0,
        initial_latents: Tensor | None = None,
        scheduler: str = "pndm",
    ) -> Image.Image:
        """The picture that the prompt asks for; `ImageOptions` explains the arguments.

        `initial_latents` take the place of the noise that the seed draws.
        """
        options = ImageOptions(height, width, num_inference_steps, guidance_scale, seed, scheduler)
        self._decoder()  # no use in regressing what cannot be drawn
        if not isinstance(initial_latents, Tensor | None):
            raise TypeError(f"initial_latents is {type(initial_latents).__name__}, give a tensor")
        return self._picture(self.regress_image([prompt]), options, 0, initial_latents)

    def generate(
        self,
        prompt: Prompt,
        text: TextOptions | None = TextOptions(),  # noqa: B008 (frozen)
        image: ImageOptions = ImageOptions(),  # noqa: B008 (frozen)
        ask_image: bool = False,
        max_images: int | None = None,
    ) -> Reply:
        """An interleaved reply. An image is drawn where the model chooses to (or at once, if asked).

        With `text=None` no text is written: an asked image stands alone.
        At most `max_images` are drawn: by default 1 where there is a visual decoder. The text goes
        on after an image, over the same cache, from the regressed embeddings. A model chooses to
        draw only if it was trained to (`ObjectiveConfig.train_image_start`).
        """
        *_, reply = self.stream(prompt, text, image, ask_image, max_images)
        assert isinstance(reply, Reply)
        return reply

    def stream(
        self,
        prompt: Prompt,
        text: TextOptions | None = TextOptions(),  # noqa: B008 (frozen)
        image: ImageOptions = ImageOptions(),  # noqa: B008 (frozen)
        ask_image: bool = False,
        max_images: int | None = None,
    ) -> Iterator[Event]:
        """The reply of `generate` as it comes: pieces of text, pictures, at last the `Reply`.

        A piece a token, empty where the token settles no text yet. The prompt is checked at the
        first step; whoever stops iterating stops the work.
        """
        if max_images is None:
            max_images = 0 if self.decoder is None else 1
        if max_images < 0:
            raise ValueError(f"max_images is {max_images}, give 0 or more")
        draw = None
        if ask_image or max_images > 0:
            self._decoder()

            def picture(embeddings_BQD: Tensor, number: int) -> Image.Image:
                return self._picture(embeddings_BQD, image, number)

            draw = Draw(picture, ask_image, max_images)
        room = self.config.former.num_queries + 1 if ask_image else 1
        encoded = self.encode(prompt, draw=ask_image, room=room)
        with torch.inference_mode():
            interleaver = Interleaver(self.model, self.tokenizer, encoded, text, draw)
        yield from interleaver.events()

    def rank(
        self, prompt: Prompt, candidates: Sequence[str], score: RankScore = "released"
    ) -> list[int]:
        """The places of the candidates in the list, the likeliest answer first.

        Equal candidates keep their order. See `candidate_losses` for the scores.
        """
        losses = self.candidate_losses(prompt, candidates, score)
        return sorted(range(len(losses)), key=losses.__getitem__)

    def candidate_losses(
        self, prompt: Prompt, candidates: Sequence[str], score: RankScore = "released"
    ) -> list[float]:
        """The loss of each candidate as the answer to the prompt; the lower, the likelier.

        `released`: summed over its tokens and divided by the length of prompt and candidate, as in
        the released evaluation of VisDial; `sum`: the negative log-likelihood. A space stands
        between prompt and candidate, as in the released code. The prompt and its images run once.
        """
        if isinstance(candidates, str) or not candidates:
            raise ValueError(f"candidates is {candidates!r}, give a list of at least one text")
        if score not in ("released", "sum"):
            raise ValueError(f"score is {score!r}, give 'released' or 'sum'")
        encoded = self.encode(prompt)
        answered = [self._answered(encoded, *entry) for entry in enumerate(candidates)]
        losses = summed_losses(self.model, encoded, answered)
        if score == "sum":
            return losses
        return [loss / len(full.ids) for loss, full in zip(losses, answered, strict=True)]

    def _answered(self, prompt: EncodedPrompt, number: int, candidate: str) -> EncodedPrompt:
        if not isinstance(candidate, str) or not candidate.strip() or IMAGE in candidate:
            raise ValueError(
                f"candidates[{number}] is {candidate!r}, give a text of at least one visible "
                f"character and without {IMAGE}"
            )
        return self.encode.encode_joined(f"{prompt.text} {candidate}", prompt.pixels, room=0)

    def _texts(self, prompts: Sequence[Prompt], options: TextOptions) -> list[RunningText]:
        rows = self.config.num_embeddings
        if options.num_beams > rows:
            raise ValueError(f"num_beams is {options.num_beams}, the vocabulary has {rows} tokens")
        encoded = [self.encode(prompt) for prompt in _listed(prompts)]
        if not encoded:
            return []
        limits = [self._limit(prompt, options) for prompt in encoded]
        texts = [RunningText(self.tokenizer, limit, options.stop) for limit in limits]
        with torch.inference_mode():
            rows = Continuation(self.model, encoded)
        if options.num_beams > 1:
            for text, ids in zip(texts, beam_search(rows, limits, options), strict=True):
                text.push_all(ids)
        else:
            for _ in write(rows, texts, options):
                pass
        return texts

    def _limit(self, prompt: EncodedPrompt, options: TextOptions) -> int:
        return min(options.max_new_tokens, self.config.language.max_positions - len(prompt.ids))

    def _decoder(self) -> VisualDecoder:
        if self.decoder is None:
            raise ValueError(
                f"this model has no visual decoder, so it cannot draw; its weights belong in the "
                f"folder {DECODER}/ of the model directory"
            )
        return self.decoder

    @torch.inference_mode()
    def _picture(
        self,
        embeddings_BQD: Tensor,
        options: ImageOptions,
        number: int,
        initial_latents: Tensor | None = None,
    ) -> Image.Image:
        decoder = self._decoder()
        height, width = self._picture_size(options)
        pictures_BHWC = decoder.decode(
            embeddings_BQD,
            self._null_condition(),
            height,
            width,
            options.num_inference_steps,
            options.guidance_scale,
            # noise from the processor: the same seed draws the same picture on every device
            torch.Generator().manual_seed(options.seed + number),
            initial_latents,
            options.scheduler,
        )
        return Image.fromarray(pictures_BHWC[0].cpu().numpy())

    def _picture_size(self, options: ImageOptions) -> tuple[int, int]:
        side = None if self.config.decoder is None else self.config.decoder.image_size
        height, width = options.height or side, options.width or side
        if height is None or width is None:
            raise ValueError("give height and width: the model's configuration has no decoder")
        return height, width

    def _null_condition(self) -> Tensor:
        """The embeddings `QD` regressed from the empty prompt (released pipeline); kept."""
        with self._null_lock:
            if self._null_condition_QD is None:
                self._null_condition_QD = self.regress_image([""])[0]
            return self._null_condition_QD


def _listed(prompts: Sequence[Prompt]) -> Sequence[Prompt]:
    if not isinstance(prompts, list | tuple):
        raise TypeError(f"prompts is {type(prompts).__name__}, give a list of prompts")
    return prompts


def _stops(stop: Sequence[str]) -> tuple[str, ...]:
    if isinstance(stop, str):
        raise ValueError(f"stop is the string {stop!r}, give a list of strings")
    return tuple(stop)


def _check_device(device: str) -> None:
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ValueError(f"device is {device!r}, give cpu, cuda or cuda:N") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {device!r}, and no CUDA device is at hand; give cpu")
