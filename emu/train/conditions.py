"""What the visual decoder is conditioned on: embeddings that the frozen model regresses, kept in the folder of the run.

Before its first step a training of the decoder passes over its datasets once. Of every shard one file is written,
atomically, so a pass that is stopped goes on with the shards that are missing; several ranks share the shards.

    RUN/conditions/null.safetensors               the condition of the empty prompt, for guidance
    RUN/conditions/CORPUS/SHARD.safetensors

| tensor          | meaning                                                              |
|-----------------|----------------------------------------------------------------------|
| rows_N          | the row in the shard of each image that is trained on                |
| segments_N      | its segment in the sample                                            |
| numbers_N       | its condition, a row of the next tensor                              |
| conditions_UQD  | the conditions: one per distinct prompt, or one per image            |

The prompt of an image is the text that follows it in the sample. Images without one, prompts longer than the paper's
limit and prompts that contain a special token are left out and counted. With `autoregressive` conditions the model
regresses the embeddings of the image one after the other from its prompt, as at generation; with `teacher_forced`
ones it predicts each from the embeddings of the real image before it, in one pass.

Shapes: N images, U conditions, Q causal queries, D language width.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from emu.config import INSTRUCT_TOKENS
from emu.data.dataset import Dataset, DatasetError
from emu.data.sequence import Slot, passages_of
from emu.decoder_recipe import ConditionPrecision, DecoderTrainConfig, PromptRules
from emu.generate.engine import Engine
from emu.models.objective import Batch, regression_positions
from emu.models.visual import pixels_of
from emu.train.step import Ranks
from schemas.images import ImageError, decode_image
from schemas.sample import Sample

log = logging.getLogger(__name__)

FOLDER, NULL = "conditions", "null.safetensors"
NO_TEXT, TOO_LONG, SPECIAL_TOKEN = "no_text", "prompt_too_long", "special_token_in_prompt"
_SPECIAL = re.compile("|".join(re.escape(token) for token in INSTRUCT_TOKENS))
NUM_FITTED = 20_000  # conditions whose statistics a decoder takes


class PromptedImage(NamedTuple):
    """An image that is trained on: its row, its place in the sample, and its prompt."""

    row: int
    slot: Slot
    prompt: str


@dataclass(frozen=True)
class Shard:
    """The images of a shard that are trained on, and their conditions, which are read when they are asked for."""

    path: Path
    rows_N: np.ndarray
    segments_N: np.ndarray
    numbers_N: np.ndarray
    num_conditions: int
    left_out: dict[str, int]

    @staticmethod
    def open(path: Path) -> Shard:
        """The shard of a file."""
        with safe_open(path, "numpy") as file:
            rows, segments, numbers = (file.get_tensor(f"{n}_N") for n in _COLUMNS)
            size = file.get_slice("conditions_UQD").get_shape()[0]
            return Shard(
                path, rows, segments, numbers, size, json.loads(file.metadata()["left_out"])
            )

    def condition(self, entry: int) -> Tensor:
        """The condition `QD` of an image, in float32."""
        return self._slice[int(self.numbers_N[entry])].float()

    @cached_property
    def _slice(self) -> Any:
        self.__dict__["_file"] = safe_open(self.path, "pt").__enter__()
        return self.__dict__["_file"].get_slice("conditions_UQD")


_COLUMNS = ("rows", "segments", "numbers")


@dataclass(frozen=True)
class Conditions:
    """The images of a corpus that are trained on, by shard in the order of its manifest."""

    shards: tuple[Shard, ...]

    @property
    def rows(self) -> list[np.ndarray]:
        """The rows of each shard that are read, for `ShardReader`."""
        return [shard.rows_N for shard in self.shards]

    @property
    def num_images(self) -> int:
        """Images that are trained on."""
        return sum(len(shard.rows_N) for shard in self.shards)

    @property
    def left_out(self) -> dict[str, int]:
        """Images that are not, by reason."""
        return dict(sum((Counter(shard.left_out) for shard in self.shards), Counter[str]()))


def prepare(
    out: Path,
    name: str,
    dataset: Dataset,
    rules: PromptRules,
    options: DecoderTrainConfig,
    engine: Callable[[], Engine],
    batch_size: int,
    ranks: Ranks,
) -> Conditions:
    """The conditions of a corpus; those of shards that have no file yet are computed, on all ranks.

    Raises `DatasetError` where no image has a prompt.
    """
    folder = out / FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    world, found = ranks.share.world_size, list[Shard]()
    num_images = 0
    for start in range(0, len(dataset.entries), world):
        own = start + ranks.share.rank
        if own < len(dataset.entries):
            path = folder / f"{dataset.entries[own].name}.safetensors"
            if not path.is_file():
                _write_shard(path, dataset, own, rules, options, engine(), batch_size)
                log.info("conditions corpus=%s shard=%s", name, path.stem)
        ranks.barrier()
        for entry in dataset.entries[start : start + world]:
            shard = _limited(Shard.open(folder / f"{entry.name}.safetensors"), rules, num_images)
            found.append(shard)
            num_images += len(shard.rows_N)
        if num_images == rules.max_images:
            break
    if not num_images:
        left_out = Conditions(tuple(found)).left_out
        raise DatasetError(
            f"{dataset.address}: no image has a prompt to learn from; left out: {left_out}"
        )
    return Conditions(tuple(found))


def null_condition(out: Path, engine: Callable[[], Engine], ranks: Ranks) -> Tensor:
    """The condition `QD` of the empty prompt; the first rank computes it if there is no file yet."""
    path = out / FOLDER / NULL
    if not path.is_file() and ranks.is_first:
        path.parent.mkdir(parents=True, exist_ok=True)
        condition_QD = engine().regress_image([""])[0].float().cpu().contiguous()
        _save(path, {"condition_QD": condition_QD})
    ranks.barrier()
    return load_file(path)["condition_QD"]


def some_conditions(corpora: Sequence[Conditions]) -> Tensor:
    """Up to 20,000 conditions `UQD`, the first of each corpus: a decoder takes their statistics."""
    chosen: list[Tensor] = []
    for conditions in corpora:
        left = NUM_FITTED // len(corpora)
        for shard in conditions.shards:
            if left and shard.num_conditions:
                chosen.append(load_file(shard.path)["conditions_UQD"][:left].float())
                left -= len(chosen[-1])
    return torch.cat(chosen)


def prompted_images(
    sample: Sample, row: int, rules: PromptRules, left_out: Counter[str]
) -> Iterator[PromptedImage]:
    """The images of a sample that the rules accept; the others are counted."""
    for passage in passages_of(sample.segments):
        for slot in passage.slots:
            reason = why_left_out(passage.text, rules)
            if reason is None:
                yield PromptedImage(row, slot, passage.text)
            else:
                left_out[reason] += 1


def why_left_out(prompt: str, rules: PromptRules) -> str | None:
    """The reason why a prompt is not trained on; None where it is."""
    if not prompt:
        return NO_TEXT
    if len(prompt) > rules.max_prompt_length:
        return TOO_LONG
    return SPECIAL_TOKEN if _SPECIAL.search(prompt) else None


def regress_conditions(
    engine: Engine, prompts: Sequence[str], batch_size: int
) -> tuple[Tensor, Tensor]:
    """The conditions `UQD` of the distinct prompts, and for each of the N prompts its row in them.

    The frozen model regresses them embedding by embedding.
    """
    texts = sorted(dict.fromkeys(prompts), key=len)  # prompts of one length need no padding
    conditions = [
        engine.regress_image(texts[start : start + batch_size]).float().cpu()
        for start in range(0, len(texts), batch_size)
    ]
    row_of = {text: row for row, text in enumerate(texts)}
    return torch.cat(conditions).clone(), torch.tensor([row_of[prompt] for prompt in prompts])


@torch.no_grad()
def forced_conditions(engine: Engine, images: Sequence[PromptedImage], batch_size: int) -> Tensor:
    """The conditions `NQD` that the model predicts at the places of the real images, in one pass each."""
    model, config = engine.model, engine.config
    device, special, queries = (
        model.ln_visual.weight.device,
        config.special,
        config.former.num_queries,
    )
    block = [*[special.image] * queries, special.image_end]
    found: list[Tensor] = []
    for start in range(0, len(images), batch_size):
        part = images[start : start + batch_size]
        rows = [
            torch.tensor([*engine.encode(image.prompt, opens_image=True).ids, *block])
            for image in part
        ]
        ids_BL = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=special.pad)
        lengths_B = torch.tensor([len(row) for row in rows])
        mask_BL = torch.arange(ids_BL.shape[1])[None] < lengths_B[:, None]
        pixels = pixels_of([image.slot.image for image in part], config.vision.image_size)
        pixels = pixels.to(device, model.ln_visual.weight.dtype)
        batch = Batch(ids_BL, mask_BL, ids_BL, pixels).to(device)
        states_BLD = model(batch).hidden_BLD
        predictors_BL, _ = regression_positions(batch.input_ids_BL, special, config.objective)
        regressed = model.language.regress(states_BLD[predictors_BL])
        found.append(regressed.unflatten(0, (len(part), -1))[:, :queries].float().cpu())
    return torch.cat(found)


def _write_shard(
    path: Path,
    dataset: Dataset,
    number: int,
    rules: PromptRules,
    options: DecoderTrainConfig,
    engine: Engine,
    batch_size: int,
) -> None:
    kind, left_out = options.conditions, Counter[str]()
    images: list[PromptedImage] = []
    for row in range(dataset.entries[number].num_samples):
        found = prompted_images(dataset.sample(number, row), row, rules, left_out)
        images += [
            image for image in found if kind == "autoregressive" or _decodes(image, left_out)
        ]
        if len(images) >= rules.max_images:
            break
    shape = (0, engine.config.former.num_queries, engine.config.language.hidden_size)
    conditions_UQD, numbers_N = torch.zeros(shape), torch.arange(len(images))
    if images and kind == "autoregressive":
        prompts = [image.prompt for image in images]
        conditions_UQD, numbers_N = regress_conditions(engine, prompts, batch_size)
    elif images:
        conditions_UQD = forced_conditions(engine, images, batch_size)
    tensors = {
        "rows_N": torch.tensor([image.row for image in images], dtype=torch.int64),
        "segments_N": torch.tensor([image.slot.segment for image in images], dtype=torch.int64),
        "numbers_N": numbers_N,
        "conditions_UQD": kept_in(conditions_UQD, options.condition_precision),
    }
    _save(path, tensors, left_out=json.dumps(left_out))


def kept_in(conditions_UQD: Tensor, precision: ConditionPrecision) -> Tensor:
    """The conditions in the precision in which they are stored; raises ValueError where float16 cannot hold one."""
    kept = conditions_UQD.to(getattr(torch, precision))
    if not torch.isfinite(kept).all() and torch.isfinite(conditions_UQD).all():
        raise ValueError(
            f"a condition has a value of {float(conditions_UQD.abs().max()):.3g}, the limit of {precision} is "
            f"{torch.finfo(kept.dtype).max:.3g}; give --train.condition-precision bfloat16 or float32"
        )
    return kept


def _decodes(image: PromptedImage, left_out: Counter[str]) -> bool:
    try:
        decode_image(image.slot.image)
    except ImageError as error:
        left_out[error.reason] += 1
        return False
    return True


def _save(path: Path, tensors: dict[str, Tensor], **metadata: str) -> None:
    """Write a file atomically."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    save_file(tensors, temporary, metadata=metadata)
    temporary.replace(path)


def _limited(shard: Shard, rules: PromptRules, before: int) -> Shard:
    """The shard with so many images that there are no more than the rules allow."""
    keep = slice(0, rules.max_images - before)
    columns = (shard.rows_N[keep], shard.segments_N[keep], shard.numbers_N[keep])
    return Shard(shard.path, *columns, shard.num_conditions, shard.left_out)
