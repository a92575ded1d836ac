"""The algorithms of the published code on our model: the baselines of `benchmarks.generate`.

Checked against the golden record by `tests/generate/test_plain_loops.py`.

Shapes: L positions, Q causal queries, D language width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from emu.generate.engine import Engine
from emu.generate.prompts import EncodedPrompt, Prompt, TextOptions
from emu.models.emu import Emu


@torch.inference_mode()
def plain_regress(model: Emu, prompt: EncodedPrompt) -> Tensor:
    """The embeddings `QD` of the image after the prompt, which ends in `[IMG]`.

    Each step runs the whole sequence and predicts all embeddings so far again; they are the input of the next step.
    Images of the prompt are encoded once, as in the published loop.
    """
    prompt_1LD = _inputs(model, prompt)
    regressed_1QD = prompt_1LD[:, :0]
    for _ in range(model.config.former.num_queries):
        hidden_1LD = model.language(torch.cat([prompt_1LD, regressed_1QD], dim=1))
        regressed_1QD = model.language.regress(hidden_1LD[:, len(prompt.ids) - 1 :])
    return regressed_1QD[0]


@torch.inference_mode()
def plain_losses(engine: Engine, prompt: Prompt, candidates: Sequence[str]) -> list[float]:
    """The released score of each candidate: one forward of prompt and candidate each.

    Faster than the published loop: images are encoded once, and the head runs over the answer only.
    """
    model, start = engine.model, len(engine.encode(prompt).ids)
    pixels = engine.encode(prompt).pixels
    images = model.encode_images(torch.stack(pixels)) if pixels else None
    joined = engine.encode(prompt).text
    losses = []
    for candidate in candidates:
        ids = torch.tensor([engine.tokenizer.encode(f"{joined} {candidate}")])
        hidden_1LD = model.language(model.embed(ids, images))
        log_probs_LW = model.language.head(hidden_1LD[0, start - 1 : -1]).log_softmax(-1)
        picked = log_probs_LW.gather(1, ids[0, start:, None])
        losses.append(-float(picked.sum()) / ids.shape[1])
    return losses


def plain_texts(
    engine: Engine, prompts: Sequence[Prompt], max_new_tokens: int, min_length: int
) -> list[list[int]]:
    """Greedy ids of each prompt, one prompt after the other, each with a KV cache."""
    return [
        engine.generate_ids([p], TextOptions(max_new_tokens=max_new_tokens, min_length=min_length))[
            0
        ]
        for p in prompts
    ]


def _inputs(model: Emu, prompt: EncodedPrompt) -> Tensor:
    images = model.encode_images(torch.stack(prompt.pixels)) if prompt.pixels else None
    return model.embed(torch.tensor([prompt.ids]), images)


def ranks(losses: Sequence[float]) -> list[int]:
    """The indices of the losses, the smallest first; equal ones keep their order."""
    return sorted(range(len(losses)), key=losses.__getitem__)
