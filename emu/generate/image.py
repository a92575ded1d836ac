"""Visual embeddings, one after the other, each fed back as the next input (paper section 2.3).

Shapes: B rows, Q causal queries, D language width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from emu.generate.continuation import Continuation
from emu.generate.prompts import EncodedPrompt
from emu.models.emu import Emu


@torch.inference_mode()
def regress(model: Emu, prompts: Sequence[EncodedPrompt]) -> Tensor:
    """The embeddings `BQD` of the image that follows each prompt; the prompts end in `[IMG]`."""
    return regress_next(Continuation(model, prompts))


@torch.inference_mode()
def regress_next(rows: Continuation) -> Tensor:
    """The embeddings `BQD` of an image, predicted from rows whose last token is `[IMG]`.

    All but the last embedding are in the cache afterwards; `close_image` feeds the last.
    """
    predicted = [rows.model.language.regress(rows.hidden_BD)]
    for _ in range(rows.model.config.former.num_queries - 1):
        rows.feed(predicted[-1])
        predicted.append(rows.model.language.regress(rows.hidden_BD))
    return torch.stack(predicted, dim=1)


@torch.inference_mode()
def close_image(rows: Continuation, embeddings_BQD: Tensor) -> None:
    """Feeds the last embedding and `[/IMG]`, so that text can go on after the image."""
    rows.feed(embeddings_BQD[:, -1])
    rows.feed_ids([rows.model.config.special.image_end] * rows.num_rows)
