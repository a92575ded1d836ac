import io
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from emu.config import EmuConfig, SequenceConfig, tiny_config
from emu.data.batches import BatchStream, Layout, Share
from emu.data.dataset import ShardReader
from emu.data.mixture import Mixture, Source
from emu.data.sequence import SequenceMaker
from emu.models.objective import Batch
from emu.models.visual import CLIP_MEAN, CLIP_STD, pixels_of
from emu.tokenizer import EmuTokenizer
from schemas.images import ImageError, decode_image
from schemas.sample import Sample, Segment
from tests.data.small_dataset import document, pair, small_tokenizer, square_image, write_dataset

SHORT = SequenceConfig(pair_length=128, window_length=128, sampled_length=96)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> EmuTokenizer:
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer.model")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    samples = [document(number, number % 4) for number in range(30)]
    return write_dataset(tmp_path_factory.mktemp("docs"), samples)


def stream_of(
    dataset: Path,
    tokenizer: EmuTokenizer,
    share: Share,
    size: int,
    num_micro: int = 1,
    num_threads: int = 0,
    row_length: int = 0,
    keeps: bool = True,
) -> BatchStream:
    """A stream of steps of `size` x `num_micro` sequences per rank, as a run starts it."""
    maker = SequenceMaker(SHORT, tiny_config(tokenizer.num_pieces), tokenizer, 0)
    source = Source("mmc4", 1.0, ShardReader(dataset, 0), size * num_micro * share.world_size)
    layout = Layout({"mmc4": size}, row_length, keeps_global_batch=keeps)
    return BatchStream(Mixture([source]), maker, layout, share, num_threads)


def rows_of(batches: list[Batch]) -> list[tuple[int, ...]]:
    """The unpadded ids of every row."""
    return [
        tuple(ids[mask].tolist())
        for batch in batches
        for ids, mask in zip(batch.input_ids_BL, batch.attention_mask_BL, strict=True)
    ]


def test_pixels_are_resized_and_normalised_as_released():
    image = Image.effect_mandelbrot((60, 30), (-2, -1, 1, 1), 50).convert("RGB")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    pixels = pixels_of([buffer.getvalue()], 56)
    assert pixels.shape == (1, 3, 56, 56) and pixels.dtype == torch.float32
    wanted = np.asarray(image.resize((56, 56), Image.Resampling.BICUBIC)) / 255.0
    got = pixels[0].permute(1, 2, 0).numpy() * CLIP_STD + CLIP_MEAN
    assert np.abs(got - wanted).max() < 1e-6


def test_bytes_that_are_no_image_or_too_large_are_refused():
    with pytest.raises(ImageError, match="5 bytes that start with b'hello' are not an image"):
        decode_image(b"hello")
    with pytest.raises(ImageError, match="24 x 24 = 576 pixels, the limit is 100"):
        decode_image(square_image(1), max_pixels=100)
    with pytest.raises(ImageError, match="damaged: it ends too early"):
        decode_image(square_image(1, side=200, format="JPEG")[:-300])


def test_batches_are_padded_on_the_right_with_images_in_reading_order(
    dataset: Path, tokenizer: EmuTokenizer
):
    model: EmuConfig = tiny_config(tokenizer.num_pieces)
    stream = stream_of(dataset, tokenizer, Share(), 6)
    (batch,) = stream.next_step()
    lengths = batch.attention_mask_BL.sum(1)
    assert int(lengths.max()) == batch.input_ids_BL.shape[1]
    assert (batch.input_ids_BL[~batch.attention_mask_BL] == model.special.pad).all()
    assert (batch.labels_BL[~batch.attention_mask_BL] == -100).all()
    for row, length in zip(batch.attention_mask_BL, lengths, strict=True):
        assert row[: int(length)].all() and not row[int(length) :].any()
    sequences = [
        stream.maker.make(visit.sample, visit.epoch)
        for visit in map(ShardReader(dataset, 0).visit, range(6))
    ]
    images = [slot.image for sequence in sequences for slot in sequence.slots]
    assert batch.pixels_NCHW is not None and batch.patches_NPV is None
    assert torch.equal(batch.pixels_NCHW, pixels_of(images, model.vision.image_size))


def test_micro_batches_hold_rows_of_similar_length(dataset: Path, tokenizer: EmuTokenizer):
    whole = stream_of(dataset, tokenizer, Share(), 12)
    cut = stream_of(dataset, tokenizer, Share(), 3, 4)
    for _ in range(3):
        [batch], parts = whole.next_step(), cut.next_step()
        lengths = [part.attention_mask_BL.sum(1).tolist() for part in parts]
        flat = list(itertools.chain.from_iterable(lengths))
        assert flat == sorted(batch.attention_mask_BL.sum(1).tolist())
        assert sum(p.input_ids_BL.numel() for p in parts) < batch.input_ids_BL.numel()


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_together_read_the_same_global_batches(
    dataset: Path, tokenizer: EmuTokenizer, world_size: int
):
    alone = stream_of(dataset, tokenizer, Share(), 2, 4)
    ranks = [
        stream_of(dataset, tokenizer, Share(rank, world_size), 2, 4 // world_size)
        for rank in range(world_size)
    ]
    for _ in range(9):  # beyond two epochs
        together = itertools.chain.from_iterable(rows_of(rank.next_step()) for rank in ranks)
        # micro-batches hold rows of similar length, so their order depends on the share of a rank
        assert sorted(together) == sorted(rows_of(alone.next_step()))
    assert all(rank.state() == alone.state() for rank in ranks)


def test_a_state_saved_by_one_rank_resumes_two_and_threads_change_nothing(
    dataset: Path, tokenizer: EmuTokenizer
):
    alone = stream_of(dataset, tokenizer, Share(), 8)
    for _ in range(3):
        alone.next_step()
    ranks = [stream_of(dataset, tokenizer, Share(r, 2), 4, num_threads=2) for r in range(2)]
    for rank in ranks:
        rank.next_step()  # so that something has been read ahead
        rank.load(alone.state())
    for _ in range(5):
        together = itertools.chain.from_iterable(rows_of(rank.next_step()) for rank in ranks)
        # micro-batches hold rows of similar length, so their order depends on the share of a rank
        assert sorted(together) == sorted(rows_of(alone.next_step()))
    for rank in ranks:
        rank.close()


def test_a_saved_global_batch_is_kept_by_any_number_of_ranks(
    dataset: Path, tokenizer: EmuTokenizer
):
    alone = stream_of(dataset, tokenizer, Share(), 8)
    alone.next_step()
    ranks = [stream_of(dataset, tokenizer, Share(r, 3), 8) for r in range(3)]
    for rank in ranks:
        rank.load(alone.state())
    for _ in range(5):
        together = list(itertools.chain.from_iterable(rows_of(r.next_step()) for r in ranks))
        assert together == rows_of(alone.next_step())  # shares of 2, 3 and 3, in order
    assert all(rank.state() == alone.state() for rank in ranks)


def test_more_ranks_than_sequences_are_refused(dataset: Path, tokenizer: EmuTokenizer):
    few = stream_of(dataset, tokenizer, Share(), 2).state()
    with pytest.raises(ValueError, match="2 sequences per step cannot be dealt to 3 ranks"):
        stream_of(dataset, tokenizer, Share(0, 3), 1).load(few)


def test_another_global_batch_is_refused_where_micro_batches_count(
    dataset: Path, tokenizer: EmuTokenizer
):
    state = stream_of(dataset, tokenizer, Share(), 8).state()
    with pytest.raises(ValueError, match=r"saved with 8 sequences per step .* now it has 6"):
        stream_of(dataset, tokenizer, Share(0, 2), 3, keeps=False).load(state)


def test_a_state_of_earlier_releases_is_read(dataset: Path, tokenizer: EmuTokenizer):
    stream = stream_of(dataset, tokenizer, Share(), 8)
    stream.next_step()
    saved = stream.state()
    (corpus,) = saved["corpora"].values()
    earlier = {name: value for name, value in corpus.items() if name != "steps"}
    other = stream_of(dataset, tokenizer, Share(), 8)
    other.load(earlier)
    assert other.state() == saved


def test_a_bad_sample_is_left_out_and_named(tmp_path: Path, tokenizer: EmuTokenizer):
    broken = Segment.of_image(b"not an image", "png", 5, 5)
    sample = Sample("bad-one", "pairs", (broken, Segment.of_text("a square")))
    stream = stream_of(write_dataset(tmp_path, [sample, pair(1)]), tokenizer, Share(), 2)
    (batch,) = stream.next_step()
    (bad,) = stream.bad
    assert batch.num_sequences == 1
    assert (bad.key, bad.corpus, bad.epoch, bad.reason) == ("bad-one", "mmc4", 0, "not_an_image")
    assert bad.detail.startswith("12 bytes") and bad.shard.startswith("pairs-")
    assert sorted(stream.keys()) == ["bad-one", "pair-00001"]
    assert len(stream_of(tmp_path, tokenizer, Share(), 2, num_threads=1).next_step()) == 1


def test_a_batch_without_images_has_none(tmp_path: Path, tokenizer: EmuTokenizer):
    texts = [document(number, num_images=0) for number in range(4)]
    stream = stream_of(write_dataset(tmp_path, texts), tokenizer, Share(), 4)
    assert stream.next_step()[0].num_images == 0
