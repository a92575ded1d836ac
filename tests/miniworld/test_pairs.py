"""Synthetic pairs: one dataset per configuration, held-out scenes apart, texts that agree with their scenes."""

import io
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.build_pairs import main
from pipelines.core.run import run
from pipelines.miniworld.config import PairsConfig
from pipelines.miniworld.language import grid_position
from pipelines.miniworld.pairs import Split, caption_sentence, pairs_pipeline, sample_pair
from pipelines.miniworld.reading import read_image
from pipelines.miniworld.render import render
from pipelines.miniworld.scene import BACKGROUNDS, Scene, Thing, sample_scene
from schemas.shard import read_tar

SMALL = PairsConfig(num_pairs=25, seed=3, question_share=0.5)


def dataset_bytes(out: Path) -> dict[str, bytes]:
    files = [*out.glob("shards/*"), *out.glob("index/*"), *out.glob("ledger/*")]
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def test_the_same_configuration_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        run(pairs_pipeline(SMALL, samples_per_shard=10), str(tmp_path / name), progress=False)
    one, two = dataset_bytes(tmp_path / "one"), dataset_bytes(tmp_path / "two")
    assert one == two and len(one) == 9


def test_a_larger_dataset_begins_with_the_same_pairs() -> None:
    larger = replace(SMALL, num_pairs=1000)
    assert [sample_pair(SMALL, n) for n in range(25)] == [sample_pair(larger, n) for n in range(25)]


def test_the_job_publishes_pairs_with_their_scenes(tmp_path: Path) -> None:
    arguments = ["--out", str(tmp_path / "pairs"), "--num-pairs", "12", "--seed", "3"]
    assert main(arguments) == 0
    [tar] = (tmp_path / "pairs" / "shards").glob("*.tar")
    with tar.open("rb") as file:
        samples = list(read_tar(file))
    assert len(samples) == 12
    config = PairsConfig(num_pairs=12, seed=3)
    for index, sample in enumerate(samples):
        scene = sample_pair(config, index).scene
        image, text = sample.segments
        assert text.text == caption_sentence(scene)
        assert sample.meta["scene"] == json.loads(json.dumps(asdict(scene)))
        with Image.open(io.BytesIO(image.image or b"")) as opened:
            assert opened.size == (64, 64)


def test_texts_ask_in_the_given_share_and_answer_rightly() -> None:
    config = PairsConfig(num_pairs=400, question_share=0.6)
    num_asking = 0
    for index in range(config.num_pairs):
        pair = sample_pair(config, index)
        rest = pair.text.removeprefix(caption_sentence(pair.scene)).strip()
        num_asking += bool(rest)
        answered = [
            f"{each.question} {each.answer[0].upper()}{each.answer[1:]}." for each in pair.questions
        ]
        while rest:
            [first] = [each for each in answered if rest.startswith(each)]
            rest = rest.removeprefix(first).strip()
    assert 200 < num_asking < 280  # 240 expected, deviation 10


def test_held_out_scenes_are_in_no_training_set() -> None:
    """Another stream of random numbers: equal seeds and indices give other scenes, and no scene occurs in both."""
    training: set[Scene] = set()
    for seed in (7, 8):
        config = PairsConfig(num_pairs=3000, seed=seed)
        training |= {sample_pair(config, index).scene for index in range(config.num_pairs)}
    for seed in (0, 7, 8):
        config = PairsConfig(seed=seed)
        held_out = {sample_pair(config, n, Split.HELD_OUT).scene for n in range(1000)}
        assert len(held_out) == 1000 and not held_out & training


def test_the_streams_of_the_splits_never_start_alike() -> None:
    """Split and seed are separate words of the generator's entropy: no seed of training gives a held-out stream."""
    states = {
        (int(split), seed, index): np.random.SeedSequence([int(split), seed, index]).generate_state(
            4, np.uint64
        )
        for split in Split
        for seed in (0, 1, 7, 2**40)
        for index in range(20)
    }
    assert len({state.tobytes() for state in states.values()}) == len(states)


def test_the_reader_reads_every_attribute_of_rendered_scenes() -> None:
    config = PairsConfig(seed=11)
    for index in range(120):
        scene = sample_pair(config, index).scene
        thing = scene.things[0]
        for side in (64, 96, 192):
            found = read_image(render(scene, side))
            assert (found.background, found.colour, found.size, found.shape, found.place) == (
                scene.background,
                thing.colour,
                thing.size,
                thing.shape,
                grid_position(thing),
            ), (index, side)


def test_the_reader_survives_noise_and_finds_no_thing_where_there_is_none() -> None:
    rng = np.random.default_rng(0)
    scene = Scene("mint", 1.0, (Thing("star", "purple", "large", 0.3, 0.7, 0.2, 5.0),))
    noisy = np.clip(render(scene, 64) + rng.normal(0, 8, (64, 64, 3)), 0, 255).astype(np.uint8)
    found = read_image(noisy)
    assert (found.colour, found.size, found.place) == ("purple", "large", "bottom left")
    for name, rgb in BACKGROUNDS.items():
        empty = np.full((64, 64, 3), rgb, np.uint8)
        assert read_image(empty).background == name
        assert read_image(empty).colour is None and read_image(empty).place is None


@pytest.mark.parametrize("aspect", [4 / 3, 2 / 3])
def test_scenes_of_given_aspects_only(aspect: float) -> None:
    rng = np.random.default_rng(1)
    assert {sample_scene(rng, 1, (aspect,)).aspect for _ in range(20)} == {aspect}


@pytest.mark.parametrize(
    ("option", "value"), [("--num-pairs", "0"), ("--question-share", "1.5"), ("--side-px", "8")]
)
def test_wrong_options_name_the_value(
    option: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--out", str(tmp_path / "pairs"), option, value]) == 2
    assert value in capsys.readouterr().err and not (tmp_path / "pairs").exists()
