"""A request of the scheduler, and its state: what its next inputs are, and what came out so far.

Every input is an embedding, so a state holds inputs and not tokens: the rest of the prompt, the last token of a
text, the last visual embedding of an image, or the last embedding and `[/IMG]`, after which text follows.

Shapes: T positions to be fed, B positions that branch off, R rows that are read, Q causal queries, D language width,
W entries of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from emu.config import EmuConfig
from emu.generate.page_pool import PageTable
from emu.generate.prefix import ContentKeys
from emu.generate.prompts import EncodedPrompt, FinishReason, TextOptions, TokenScore
from emu.generate.sampling import Detokenizer, Sampler
from emu.tokenizer import EmuTokenizer

MAX_TREE_POSITIONS = (
    512  # of answers that are fed at once: bounds the memory for any number of them
)


@dataclass(frozen=True)
class Request:
    """What is asked for after one prompt: a text, an image, an interleaved reply, or the losses of answers."""

    prompt: EncodedPrompt
    """Ends in `[IMG]` where an image comes first."""
    text: TextOptions | None = TextOptions()
    """None: no text, only an image."""
    image_first: bool = False
    """Whether the visual embeddings of an image come first."""
    max_images: int = 0
    """The first image and those that the model may open; none is opened in a beam search."""
    row: int = 0
    """Added to the seed: the number of the row in its batch."""
    adapter: str = ""
    """The name of the adapter on the model; empty for none."""
    answers: tuple[tuple[int, ...], ...] = ()
    """Ids of answers whose losses are asked for; nothing is generated then."""

    def __post_init__(self) -> None:
        if self.text is None and not self.image_first and not self.answers:
            raise ValueError(
                "text is None and image_first is False, and nothing would be generated"
            )

    @property
    def scores_prompt(self) -> bool:
        """Whether the log-probabilities of the prompt are asked for, so that all of it has to be fed."""
        return self.text is not None and self.text.prompt_logprobs

    def num_positions(self, config: EmuConfig) -> int:
        """The most positions that prompt and reply can take in the cache."""
        num_queries, limit = config.former.num_queries, config.language.max_positions
        if self.answers:
            lengths = [len(answer) - 1 for answer in set(self.answers)]
            return len(self.prompt.ids) + min(sum(lengths), max(MAX_TREE_POSITIONS, *lengths))
        if self.text is None:
            return len(self.prompt.ids) + num_queries
        if self.text.num_beams > 1:
            root = len(self.prompt.ids) + self.image_first * (num_queries + 1)
            num_steps = min(self.text.max_new_tokens, limit - root) - 1  # the last token is not fed
            return root + max(num_steps, 0) * self.text.num_beams
        num_images = max(self.max_images, int(self.image_first))
        wanted = self.text.max_new_tokens + num_images * (num_queries + 1)
        return min(len(self.prompt.ids) + wanted, limit)


@dataclass(frozen=True)
class Finished:
    """The last event of a request."""

    reason: FinishReason


@dataclass(frozen=True)
class PromptScores:
    """The log-probabilities of a prompt, one for each of its positions; comes before everything else."""

    scores: tuple[TokenScore, ...]


@dataclass(frozen=True)
class Losses:
    """The losses of answers, each summed over its tokens, in the order of the request."""

    losses: tuple[float, ...]


Output = str | TokenScore | PromptScores | Tensor | Losses | Finished
"""A piece of text (one per token, perhaps empty), before it the score of its token; the scores of the prompt; the
visual embeddings `QD` of an image; the losses of answers; or the end."""
Phase = Literal["waiting", "text", "image", "done"]
Embed = Callable[[Sequence[int]], Tensor]
"""The input embeddings `TD` of token ids."""


@dataclass(frozen=True)
class Branches:
    """Inputs that branch off after the first `root` positions: each sees those, and of the later ones its ancestors."""

    root: int
    positions_T: Tensor
    """Of each input in its own branch."""
    sees_TB: Tensor
    """Which positions after the root each input sees, those of this step included."""


class RequestState:
    """A request that runs. `phase` names the head that reads it; `num_read` of its last positions are read."""

    def __init__(
        self, request: Request, config: EmuConfig, tokenizer: EmuTokenizer, embed: Embed
    ) -> None:
        self.request = request
        self.phase: Phase = "waiting"
        self.table: PageTable | None = None
        self.content: ContentKeys | None = None
        """The keys of the prompt, once it has been looked at."""
        self.num_registered = 0  # pages
        self.length = 0
        """Positions in the cache."""
        self.inputs_TD: Tensor | None = None
        """What is fed next."""
        self.branches: Branches | None = None
        """How the inputs see each other, where it is not in their order."""
        self.num_read = 1
        self.texts: list[Detokenizer] = []
        self.num_used = len(request.prompt.ids)
        """Positions of prompt and reply that count, whether they are in the cache or not."""
        self._config, self._tokenizer, self._embed = config, tokenizer, embed
        self._options = request.text or TextOptions()
        self._num_tokens = self._num_images = 0
        self._regressed: list[Tensor] = []
        self._num_ids = 1
        first = request.prompt.ids[0]
        self._prompt_scores = [TokenScore(first, tokenizer.piece(first), None)]

    @property
    def is_prefill(self) -> bool:
        """Whether positions of the prompt are still to be fed."""
        return self.length < len(self.request.prompt.ids)

    def begin(self, table: PageTable, length: int, inputs_TD: Tensor) -> None:
        """Starts with `length` positions in shared pages; `inputs_TD` are the rest of the prompt."""
        self.table, self.length, self.inputs_TD = table, length, inputs_TD
        self.phase = "image" if self.request.image_first else "text"
        if self.phase == "text":
            self._begin_text()

    def fed(self, number: int) -> bool:
        """Notes that the first `number` inputs are in the cache; true if none is left."""
        assert self.inputs_TD is not None
        self.length += number
        self.inputs_TD = self.inputs_TD[number:]
        return len(self.inputs_TD) == 0

    def leave(self) -> None:
        """Lets go of all that it held."""
        self.table, self.inputs_TD, self.branches, self.phase = None, None, None, "done"

    def take_prompt_logits(self, logits_TW: Tensor) -> list[Output]:
        """Scores the positions of the prompt that these logits predict, in order; the last one gives them all."""
        ids, image = self.request.prompt.ids, self._config.special.image
        for log_probs_W in logits_TW.log_softmax(dim=-1):
            token = ids[len(self._prompt_scores)]
            score = self._score(token, log_probs_W)
            if token == image:
                score = TokenScore(token, score.text, None)
            self._prompt_scores.append(score)
        if len(self._prompt_scores) < len(ids):
            return []
        return [PromptScores(tuple(self._prompt_scores))]

    def take_logits(self, logits_RW: Tensor, likeliest: Sequence[int]) -> list[Output]:
        """Chooses the next token; the logits may be changed in place, `likeliest` is known already."""
        (logits_W,), (token,) = logits_RW, likeliest
        log_probs_W = None
        if self._options.num_logprobs is not None:
            log_probs_W = logits_W.log_softmax(dim=-1)
        token = self._choose(logits_W, token)
        scores = [] if log_probs_W is None else [self._score(token, log_probs_W)]
        return [*scores, *self._push_token(token)]

    def take_embedding(self, embedding_D: Tensor) -> list[Output]:
        """Takes the next visual embedding of the image; the last one makes it known."""
        self._regressed.append(embedding_D)
        if len(self._regressed) < self._config.former.num_queries:
            self.inputs_TD = embedding_D[None]
            return []
        outputs: list[Output] = [torch.stack(self._regressed)]
        self._regressed = []
        self._num_images += 1
        self.num_used += self._image_positions
        if self.request.text is None:
            return [*outputs, self._finish("stop")]
        if self._max_tokens() <= 0:
            return [*outputs, self._finish("length")]
        end_1D = self._embed([self._config.special.image_end])
        self.inputs_TD = torch.cat([embedding_D[None], end_1D])
        self.phase = "text"
        self._begin_text()
        return outputs

    def _score(self, token: int, log_probs_W: Tensor) -> TokenScore:
        top: list[tuple[int, str, float]] = []
        if self._options.num_logprobs:
            values, ids = log_probs_W.topk(min(self._options.num_logprobs, len(log_probs_W)))
            pairs = zip(ids.tolist(), values.tolist(), strict=True)
            top = [(each, self._tokenizer.piece(each), value) for each, value in pairs]
        text, log_prob = self._tokenizer.piece(token), float(log_probs_W[token])
        return TokenScore(token, text, log_prob, tuple(top))

    def _choose(self, logits_W: Tensor, likeliest: int) -> int:
        eos = self._config.special.eos
        if self._num_ids < self._options.min_length:
            logits_W[eos] = -torch.inf
            likeliest = int(logits_W.argmax()) if likeliest == eos else likeliest
        if not self._options.do_sample:
            return likeliest
        (token,) = self._sample(logits_W[None])
        return token

    def _push_token(self, token: int) -> list[Output]:
        text = self.texts[-1]
        outputs: list[Output] = [text.push(token)]
        self._num_ids += 1
        if text.reason is None:
            self.inputs_TD = self._embed([token])
            return outputs
        self._count(text)
        if text.reason != "image":
            return [*outputs, self._finish(text.reason)]
        if self.num_used + self._image_positions > self._config.language.max_positions:
            return [*outputs, self._finish("length")]
        self.phase = "image"
        self.inputs_TD = self._embed([token])
        return outputs

    def _count(self, text: Detokenizer) -> None:
        self._num_tokens += len(text.ids)
        self.num_used += len(text.ids)

    @property
    def _image_positions(self) -> int:
        return self._config.former.num_queries + 1  # and `[/IMG]`

    def _begin_text(self) -> None:
        may_open = self._num_images < self.request.max_images
        text = Detokenizer(self._tokenizer, self._max_tokens(), self._options.stop, may_open)
        self.texts.append(text)
        # every text of a reply starts from the seed, as the loop over one reply does
        self._sample = Sampler(self._options, 1, self.request.row)
        self._num_ids = 1  # the start id counts, as in the released code

    def _max_tokens(self) -> int:
        left = self._config.language.max_positions - self.num_used
        return min(left, self._options.max_new_tokens - self._num_tokens)

    def _finish(self, reason: FinishReason) -> Finished:
        self.phase = "done"
        return Finished(reason)
