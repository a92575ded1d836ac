"""The inputs of prompts: embeddings of token ids, and at the positions of images what the visual encoder gives.

Outputs of the visual encoder are kept under the key of the image (`emu.generate.prefix.image_key`).

Shapes: T positions to be fed, C channels, H W pixels, N images, Q causal queries, D language width.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from emu.generate.kv_cache import MAX_IMAGES
from emu.generate.prompts import EncodedPrompt
from emu.models.emu import Emu


@dataclass(frozen=True)
class Rest:
    """What is left to be fed of a prompt."""

    prompt: EncodedPrompt
    images: Sequence[bytes]
    """The keys of all its images."""
    length: int
    """Positions at its beginning that are in the cache."""


class PromptInputs:
    """Makes the inputs of prompts; each image is encoded once as long as it is kept."""

    def __init__(self, model: Emu, max_cached_images: int, num_together: int = MAX_IMAGES) -> None:
        """`num_together`: images in one batch of the visual encoder."""
        self.model, self.max_cached_images = model, max_cached_images
        self.num_together = num_together
        self.device = model.ln_visual.weight.device
        self.num_wanted = 0
        """Images whose embeddings were needed."""
        self.num_hits = 0
        """Those of them whose embeddings were kept from before."""
        self._images: OrderedDict[bytes, Tensor] = OrderedDict()  # least recently used first
        self._prepared: dict[int, Tensor] = {}

    def embed(self, ids: Sequence[int]) -> Tensor:
        """The embeddings `TD` of token ids."""
        if len(ids) == 1 and ids[0] in self._prepared:
            return self._prepared[ids[0]]
        return self.model.language.embed(torch.tensor(ids, device=self.device))

    def prepare(self, ids: Sequence[int]) -> None:
        """Embeds in one call the ids that many rows are about to ask for one by one; none ends it."""
        distinct = list(dict.fromkeys(ids))
        if not distinct:
            self._prepared = {}
            return
        embeddings_TD = self.model.language.embed(torch.tensor(distinct, device=self.device))
        self._prepared = dict(zip(distinct, embeddings_TD.split(1), strict=True))

    def of(self, rests: Sequence[Rest]) -> list[Tensor]:
        """The inputs `TD` of each rest; images of all of them are encoded together."""
        positions = [self._first_position(rest) for rest in rests]
        wanted: dict[bytes, Tensor] = {}
        for rest, (first, _) in zip(rests, positions, strict=True):
            wanted |= dict(zip(rest.images[first:], rest.prompt.pixels[first:], strict=True))
        encoded = self._encoded(wanted)
        made = zip(rests, positions, strict=True)
        return [self._inputs(rest, encoded, *position) for rest, position in made]

    def _first_position(self, rest: Rest) -> tuple[int, int]:
        """The first image with a position left, and how many of its positions are in the cache."""
        image = self.model.config.special.image
        num_positions = sum(token == image for token in rest.prompt.ids[: rest.length])
        return divmod(num_positions, self.model.config.former.num_queries)

    def _inputs(self, rest: Rest, encoded: dict[bytes, Tensor], first: int, skipped: int) -> Tensor:
        ids_T = torch.tensor(rest.prompt.ids[rest.length :], device=self.device)
        inputs_TD = self.model.language.embed(ids_T)
        if not rest.images[first:]:
            return inputs_TD
        flat = torch.cat([encoded[key] for key in rest.images[first:]])[skipped:]
        is_position = ids_T == self.model.config.special.image
        return inputs_TD.masked_scatter(is_position[:, None], flat.to(inputs_TD.dtype))

    def _encoded(self, wanted: dict[bytes, Tensor]) -> dict[bytes, Tensor]:
        """The visual embeddings `QD` of images by their keys."""
        found = {key: self._images[key] for key in wanted if key in self._images}
        missing = [key for key in wanted if key not in found]
        self.num_wanted += len(wanted)
        self.num_hits += len(found)
        for start in range(0, len(missing), self.num_together):
            group = missing[start : start + self.num_together]
            pixels_NCHW = torch.stack([wanted[key] for key in group]).to(self.device)
            embeddings_NQD = self.model.encode_images(pixels_NCHW)
            found |= dict(zip(group, embeddings_NQD, strict=True))
        for key, embeddings_QD in found.items():
            self._images[key] = embeddings_QD
            self._images.move_to_end(key)
        while len(self._images) > self.max_cached_images:
            self._images.popitem(last=False)
        return found
