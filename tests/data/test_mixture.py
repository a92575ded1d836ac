from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emu.config import SequenceConfig, tiny_config
from emu.data.batches import BatchStream, Layout, Share
from emu.data.dataset import DatasetError, ShardReader
from emu.data.mixture import Corpus, Mixture, Source, parse_corpus
from emu.data.sequence import SequenceMaker
from emu.models.objective import Batch
from emu.tokenizer import EmuTokenizer
from tests.data.small_dataset import clip, document, pair, small_tokenizer, write_dataset

LENGTHS = SequenceConfig(96, 128, 96, clip_length=128, storyboard_length=128)
SIZES = {"pairs": 8, "mmc4": 6, "webvid": 3}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> EmuTokenizer:
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer.model")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("corpora")
    samples = {
        "pairs": [pair(n) for n in range(40)],
        "mmc4": [document(n, n % 4) for n in range(30)],
        "webvid": [clip(n) for n in range(9)],
    }
    return {name: write_dataset(root / name, rows) for name, rows in samples.items()}


def stream_of(
    folders: dict[str, Path],
    tokenizer: EmuTokenizer,
    share: Share | None = None,
    num_threads: int = 0,
    weights: tuple[float, ...] = (3, 2, 1),
) -> BatchStream:
    maker = SequenceMaker(LENGTHS, tiny_config(tokenizer.num_pieces), tokenizer, 0)
    sources = [
        Source(name, weight, ShardReader(folders[name], 0), SIZES[name])
        for name, weight in zip(SIZES, weights, strict=True)
    ]
    return BatchStream(Mixture(sources), maker, Layout(SIZES, 256), share, num_threads)


def documents_of(batches: list[Batch]) -> list[tuple[int, ...]]:
    """The ids of every sequence."""
    found = []
    for batch in batches:
        assert batch.documents is not None
        ids = batch.input_ids_BL.flatten().split(list(batch.documents.lengths))
        found += [tuple(part.tolist()) for part in ids if part[0] == 1]
    return found


@pytest.mark.parametrize(
    ("text", "corpus"),
    [
        ("mmc4", Corpus("mmc4")),
        ("docs=data/mmc4", Corpus("data/mmc4", "docs")),
        ("docs=s3://bucket/mmc4:0.5", Corpus("s3://bucket/mmc4", "docs", 0.5)),
        ("/data/mmc4:3", Corpus("/data/mmc4", None, 3.0)),
        ("memory://mmc4", Corpus("memory://mmc4")),
        ("/data/a=b/mmc4", Corpus("/data/a=b/mmc4")),
    ],
)
def test_a_corpus_is_written_as_name_address_and_weight(text: str, corpus: Corpus):
    assert parse_corpus(text) == corpus


def test_a_weight_of_zero_is_refused():
    with pytest.raises(ValueError, match=r"mmc4: weight 0.0; give a number above 0"):
        parse_corpus("mmc4:0")


@given(weights=st.lists(st.integers(1, 20), min_size=2, max_size=5), steps=st.integers(1, 120))
@settings(max_examples=60, deadline=None)
def test_every_corpus_has_its_share_at_every_moment(weights: list[int], steps: int):
    names = [str(n) for n in range(len(weights))]

    class Still:
        position = 0

    sources = [
        Source(name, weight, Still(), 1)  # type: ignore[arg-type]
        for name, weight in zip(names, weights, strict=True)
    ]
    mixture = Mixture(sources)
    for step in range(1, steps + 1):
        mixture.take()
        for source in sources:
            assert abs(source.steps - step * source.weight / sum(weights)) < len(weights) / 2 + 0.5


def test_steps_are_homogeneous_and_every_sample_comes_once_an_epoch(
    folders: dict[str, Path], tokenizer: EmuTokenizer
):
    stream = stream_of(folders, tokenizer)
    seen: Counter[str] = Counter()
    steps: Counter[str] = Counter()
    for _ in range(30):
        before = {n: s.reader.position for n, s in stream.mixture.sources.items()}
        batches = stream.next_step()
        source = stream.mixture.sources[stream.corpus]
        assert sum(batch.num_sequences for batch in batches) == SIZES[stream.corpus]
        seen.update(
            source.reader.visit(position).sample.key
            for position in range(before[stream.corpus], source.reader.position)
        )
        steps[stream.corpus] += 1
    assert steps == {"pairs": 15, "mmc4": 10, "webvid": 5}
    pairs = [count for key, count in seen.items() if key.startswith("pair")]
    assert pairs == [3] * 40  # 15 steps of 8 are three epochs
    assert [count for key, count in seen.items() if key.startswith("doc")] == [2] * 30


@pytest.mark.parametrize("num_threads", [0, 2])
def test_two_one_two_and_three_ranks_read_the_same_global_batches(
    folders: dict[str, Path], tokenizer: EmuTokenizer, num_threads: int
):
    whole = stream_of(folders, tokenizer)
    state = whole.state()
    for world_size in (2, 1, 2, 3):
        ranks = [
            stream_of(folders, tokenizer, Share(rank, world_size), num_threads)
            for rank in range(world_size)
        ]
        for rank in ranks:
            rank.load(state)
        for _ in range(7):
            together = [documents_of(rank.next_step()) for rank in ranks]
            flat = [document for part in together for document in part]
            assert sorted(flat) == sorted(documents_of(whole.next_step()))
            assert {rank.corpus for rank in ranks} == {whole.corpus}
        state = ranks[-1].state()
        assert all(rank.state() == whole.state() for rank in ranks)
        for rank in ranks:
            rank.close()


def test_the_state_is_a_few_integers_and_exact(folders: dict[str, Path], tokenizer: EmuTokenizer):
    stream = stream_of(folders, tokenizer)
    for _ in range(11):
        stream.next_step()
    again = stream_of(folders, tokenizer)
    again.load(stream.state())
    for _ in range(8):
        (first, *_), (second, *_) = stream.next_step(), again.next_step()
        assert torch.equal(first.input_ids_BL, second.input_ids_BL)
        assert stream.corpus == again.corpus
    assert sorted(stream.state()["corpora"]["pairs"]) == [
        "dataset",
        "epoch",
        "global_batch",
        "position",
        "seed",
        "shuffle",
        "steps",
        "window",
    ]


def test_other_corpora_are_refused(folders: dict[str, Path], tokenizer: EmuTokenizer):
    state = stream_of(folders, tokenizer).state()
    del state["corpora"]["webvid"]
    with pytest.raises(DatasetError, match=r"corpora \['mmc4', 'pairs'\], now they are"):
        stream_of(folders, tokenizer).load(state)


def test_two_corpora_of_one_name_are_refused(folders: dict[str, Path]):
    source = Source("pairs", 1, ShardReader(folders["pairs"], 0), 4)
    with pytest.raises(ValueError, match=r"more than once: \['pairs'\]; give each dataset its own"):
        Mixture([source, source])


def test_rows_that_are_too_short_are_refused(folders: dict[str, Path], tokenizer: EmuTokenizer):
    stream = stream_of(folders, tokenizer)
    with pytest.raises(ValueError, match=r"row has 64 positions .* window_length is 128"):
        BatchStream(stream.mixture, stream.maker, Layout(SIZES, 64))
