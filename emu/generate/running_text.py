"""The text of one row while it grows, token by token."""

from __future__ import annotations

from collections.abc import Iterable

from emu.generate.reply import FinishReason
from emu.tokenizer import EmuTokenizer

INCOMPLETE = "\ufffd"  # what sentencepiece shows for bytes that do not make a character yet


class RunningText:
    """Ids in, text out. A piece is handed out only when no later token can change it.

    Held back are bytes of an unfinished character and whatever may be the beginning of a stop
    string. `reason` says why the text ended, once it has.
    """

    def __init__(
        self,
        tokenizer: EmuTokenizer,
        limit: int,
        stop: Iterable[str] = (),
        opens_image: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._limit = limit
        self._stop = tuple(stop)
        self._opens_image = opens_image
        self._num_given = 0  # characters handed out
        self.ids: list[int] = []
        self.text = ""
        self.reason: FinishReason | None = None

    def push(self, token: int) -> str:
        """The text that is certain now and was not before."""
        assert self.reason is None, "the text has ended"
        self.ids.append(token)
        special = self._tokenizer.special
        if token == special.eos:
            self.reason = "stop"
        elif token == special.image_start and self._opens_image:
            self.reason = "image"
        else:
            self._decode()
            if self.reason is None and len(self.ids) >= self._limit:
                self.reason = "length"
        return self._hand_out()

    def push_all(self, ids: Iterable[int]) -> str:
        """The text of several tokens; those after the end are left out."""
        return "".join([self.push(token) for token in ids if self.reason is None])

    def _decode(self) -> None:
        self.text = self._tokenizer.decode(self.ids)
        found = [self.text.find(stop) for stop in self._stop if stop in self.text]
        if found:
            self.text = self.text[: min(found)]
            self.reason = "stop"

    def _hand_out(self) -> str:
        end = len(self.text) if self.reason else self._certain()
        piece = self.text[self._num_given : max(end, self._num_given)]
        self._num_given += len(piece)
        return piece

    def _certain(self) -> int:
        text = self.text.rstrip(INCOMPLETE)
        held = 0
        for stop in self._stop:
            for length in range(min(len(stop) - 1, len(text)), held, -1):
                if text.endswith(stop[:length]):
                    held = length
                    break
        return len(text) - held
