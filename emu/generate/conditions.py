"""What guidance leads away from: the embeddings regressed from the empty prompt, or from a negative prompt.

Shapes: Q causal queries, D language width.
"""

from __future__ import annotations

import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from torch import Tensor

from emu.generate.prefix import KEY_BYTES

MAX_KEPT = 64


def condition_key(weights: bytes, ids: Sequence[int]) -> bytes:
    """The key of the embeddings regressed from these ids; `weights` is the key of the model with its adapter."""
    return blake2b(array("q", ids).tobytes(), key=weights, digest_size=KEY_BYTES).digest()


@dataclass
class Entry:
    """Embeddings that are known or being computed."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    embeddings_QD: Tensor | None = None


class NullConditions:
    """Embeddings `QD` by the key of what they are regressed from; each is computed once, whoever asks meanwhile."""

    def __init__(self, max_kept: int = MAX_KEPT) -> None:
        """Beyond `max_kept` the least recently used one goes first."""
        self._max_kept = max_kept
        self._kept: OrderedDict[bytes, Entry] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, key: bytes, regress: Callable[[], Tensor]) -> Tensor:
        """The embeddings under `key`, by `regress` if they are not known, whose errors are passed on."""
        with self._lock:
            entry = self._kept.setdefault(key, Entry())
            self._kept.move_to_end(key)
            while len(self._kept) > self._max_kept:
                self._kept.popitem(last=False)
        with entry.lock:
            if entry.embeddings_QD is None:
                entry.embeddings_QD = regress()
            return entry.embeddings_QD
