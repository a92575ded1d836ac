"""A tokenizer for small recipes, learned from the texts of the dataset that they train on."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from emu.data.dataset import DatasetError
from emu.data.shards import ShardReader
from emu.tokenizer import EmuTokenizer, train_tokenizer

MAX_SAMPLES = 20_000


def learned_tokenizer(data: str, path: Path, vocab_size: int) -> EmuTokenizer:
    """The tokenizer at `path`; where there is none, one of up to `vocab_size` pieces is learned.

    It sees the first 20,000 samples, which decide everything: the same dataset gives the same bytes.
    """
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        texts = dataset_texts(data)
        first = next(texts, None)
        if first is None:
            raise DatasetError(
                f"{data}: no sample has a text to learn a tokenizer from; give --tokenizer"
            )
        train_tokenizer(itertools.chain([first], texts), vocab_size, temporary)
        temporary.replace(path)
    return EmuTokenizer.load(path)


def dataset_texts(data: str) -> Iterator[str]:
    """The texts of the first samples of a dataset, without empty ones."""
    reader = ShardReader(data, seed=0, shuffle=False)
    for sample in itertools.islice(reader, min(MAX_SAMPLES, len(reader))):
        yield from (s.text for s in sample.segments if s.text and s.text.strip())
