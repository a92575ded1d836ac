"""A reply as it comes out of a request: pieces of text, images, at last all of it.

The text after an image follows from its embeddings, so it goes on while the pixels are made.

Shapes: Q embeddings of an image, D language width.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import closing
from dataclasses import dataclass, field

from PIL import Image
from torch import Tensor

from emu.generate.batch_loop import POLL_S, Outputs
from emu.generate.prompts import DecodedImage, ImagePosition, Reply, TokenScore
from emu.generate.request_state import Finished, Losses, PromptScores, RequestState
from emu.generate.sampling import to_png
from schemas.sample import Segment

Event = str | TokenScore | Image.Image | ImagePosition | DecodedImage | Reply
"""A piece of text, before it the score of its token if it is asked for, an image, or at last the whole reply."""
StartImage = Callable[[Tensor, int], Future[Image.Image]]
"""Starts the decoding of visual embeddings `QD`; takes the number of the image in the reply, too."""


def reply_events(
    outputs: Outputs,
    start_image: StartImage,
    in_order: bool = True,
    is_wanted: Callable[[], bool] | None = None,
) -> Iterator[Event]:
    """The events of one request; the reply comes last. The request ends when the caller stops iterating.

    It also ends, without a reply, when `is_wanted` turns false (see `BatchLoop.outputs`).

    In order, an image comes as `Image.Image` and the text after it waits for its pixels, though it is generated
    meanwhile. Otherwise an `ImagePosition` comes at once, the text goes on, and the pixels come when they are made.
    """
    reply = _GrowingReply(start_image, in_order)
    try:
        with closing(outputs):
            for state, output in outputs:
                reply.take(state, output)
                yield from reply.ready()
                if isinstance(output, Finished):
                    break
        if reply.ended is None:
            return
        while reply.is_pending:
            if reply.wait(None if is_wanted is None else POLL_S):
                yield from reply.ready()
            elif is_wanted is not None and not is_wanted():
                return
        yield reply.whole()
    finally:
        reply.cancel()


@dataclass
class _GrowingReply:
    start_image: StartImage
    in_order: bool
    held: deque[Event | Future[Image.Image]] = field(default_factory=deque)
    """Events in order that wait for the image before them."""
    images: list[Future[Image.Image]] = field(default_factory=list)
    num_given: set[int] = field(default_factory=set)
    encoded: dict[int, Segment] = field(default_factory=dict)
    parts: list[str | int] = field(default_factory=list)
    """Pieces of text and numbers of images, in order."""
    scores: list[TokenScore] = field(default_factory=list)
    prompt_scores: tuple[TokenScore, ...] = ()
    ended: tuple[RequestState, Finished] | None = None

    def take(self, state: RequestState, output: object) -> None:
        match output:
            case str():
                self.parts.append(output)
                self.held.append(output)
            case TokenScore():
                self.scores.append(output)
                self.held.append(output)
            case PromptScores():
                self.prompt_scores = output.scores
            case Tensor():
                number = len(self.images)
                self.parts.append(number)
                self.images.append(self.start_image(output, number))
                self.held.append(self.images[-1] if self.in_order else ImagePosition(number))
            case Finished():
                self.ended = state, output
            case _:
                assert not isinstance(output, Losses), "a reply has no losses"

    def ready(self) -> Iterator[Event]:
        """What can be given now."""
        while self.held:
            event = self.held[0]
            if not isinstance(event, Future):
                yield event
            elif event.done():
                yield event.result()
            else:
                return
            self.held.popleft()
        if not self.in_order:
            for number, image in enumerate(self.images):
                if image.done() and number not in self.num_given:
                    self.num_given.add(number)
                    yield DecodedImage(number, self._segment(number))

    @property
    def is_pending(self) -> bool:
        """Whether an image is not given yet."""
        given = not self.held if self.in_order else len(self.num_given) == len(self.images)
        return not given

    def wait(self, timeout_s: float | None) -> bool:
        """Waits for the next image; false if it is not there in time. Raises its error, if it failed."""
        image = next(i for n, i in enumerate(self.images) if n not in self.num_given)
        if self.in_order:
            assert isinstance(self.held[0], Future)
            image = self.held[0]
        wait([image], timeout_s)
        if image.done():
            image.result()
        return image.done()

    def whole(self) -> Reply:
        assert self.ended is not None, "the request ended without a reason"
        state, finished = self.ended
        num_prompt = len(state.request.prompt.ids)
        return Reply(
            tuple(self._segments()),
            finished.reason,
            num_prompt,
            state.num_used - num_prompt,
            tuple(self.scores),
            self.prompt_scores,
        )

    def _segments(self) -> Iterator[Segment]:
        text = ""
        for part in [*self.parts, None]:
            if isinstance(part, str):
                text += part
                continue
            if text:
                yield Segment.of_text(text, role="assistant")
            text = ""
            if part is not None:
                yield self._segment(part)

    def _segment(self, number: int) -> Segment:
        """An image that is made; encoded once."""
        if number not in self.encoded:
            image = self.images[number].result()
            data = to_png(image)
            self.encoded[number] = Segment.of_image(data, "png", *image.size, role="assistant")
        return self.encoded[number]

    def cancel(self) -> None:
        """Gives up images that are not made yet."""
        for image in self.images:
            image.cancel()
