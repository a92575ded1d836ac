"""Scenes and their images: reproducible, without overlap, exact to the pixel, fast."""

import io
import itertools
import math
import time

import numpy as np
import pytest
from PIL import Image, ImageOps

from pipelines.miniworld.render import FileForm, encode, render, sample_file_form, size_px
from pipelines.miniworld.scene import (
    BACKGROUNDS,
    COLOURS,
    RADII,
    SHAPES,
    Scene,
    Thing,
    extent,
    sample_scene,
)


def scenes(num_scenes: int, seed: int = 0, max_things: int = 5) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [sample_scene(rng, max_things) for _ in range(num_scenes)]


def test_same_seed_same_scenes():
    assert scenes(50, seed=3) == scenes(50, seed=3)
    assert scenes(50, seed=3) != scenes(50, seed=4)


@pytest.mark.parametrize("max_things", [1, 3, 6])
def test_things_are_inside_the_image_and_do_not_overlap(max_things: int):
    for scene in scenes(400, seed=1, max_things=max_things):
        width, height = scene.extent
        assert 1 <= len(scene.things) <= max_things
        for thing in scene.things:
            assert thing.radius <= thing.x * width <= width - thing.radius
            assert thing.radius <= thing.y * height <= height - thing.radius
        for one, other in itertools.combinations(scene.things, 2):
            offset = ((one.x - other.x) * width, (one.y - other.y) * height)
            assert math.hypot(*offset) > one.radius + other.radius


def test_radii_of_small_and_large_things_do_not_overlap():
    radii = {"small": [], "large": []}
    for scene in scenes(1000, max_things=6):
        for thing in scene.things:
            radii[thing.size].append(thing.radius)
    assert max(radii["small"]) <= RADII["small"][1] < 0.75 * min(radii["large"])


def test_everything_in_the_palette_appears():
    found = scenes(1000)
    things = [thing for scene in found for thing in scene.things]
    assert {thing.shape for thing in things} == set(SHAPES)
    assert {thing.colour for thing in things} == set(COLOURS)
    assert {scene.background for scene in found} == set(BACKGROUNDS)
    assert {len(scene.things) for scene in found} == {1, 2, 3, 4, 5}


def test_colours_contrast():
    for colour, background in itertools.product(COLOURS.values(), BACKGROUNDS.values()):
        assert math.dist(colour, background) > 80
    for one, other in itertools.combinations(COLOURS.values(), 2):
        assert math.dist(one, other) > 55


@pytest.mark.parametrize("max_things", [0, 7])
def test_impossible_number_of_things_is_named(max_things: int):
    with pytest.raises(ValueError, match=f"max_things={max_things} .* 1 to 6"):
        sample_scene(np.random.default_rng(0), max_things)


def centre_px(thing: Thing, image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    return image[int(thing.y * height), int(thing.x * width)].astype(int)


@pytest.mark.parametrize("side_px", [64, 224])
def test_rendered_centres_have_the_exact_colour(side_px: int):
    for scene in scenes(200, seed=2):
        pixels = render(scene, side_px)
        assert pixels.shape == (*reversed(size_px(scene, side_px)), 3)
        for thing in scene.things:
            assert tuple(centre_px(thing, pixels)) == COLOURS[thing.colour]


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_stay_within_their_radius_and_have_edges_of_mixed_colour(shape: str):
    thing = Thing(shape, "red", "large", x=0.5, y=0.5, radius=0.22, turn_deg=7.0)
    pixels = render(Scene("cream", 1.0, (thing,)), 200).astype(int)
    y, x = np.mgrid[:200, :200] + 0.5
    distance = np.hypot(x - 100, y - 100) / 200
    is_red = np.abs(pixels - COLOURS["red"]).sum(axis=2) < 20
    assert not is_red[distance > 0.23].any()
    area = is_red.sum() / (math.pi * (0.22 * 200) ** 2)
    assert 0.25 < area < 1.02
    edge = (pixels[:, :, 1] > 100) & (pixels[:, :, 1] < 200)
    assert edge.any(), "no pixel between shape and background: edges are not anti-aliased"


def test_shapes_differ_from_each_other():
    images = []
    for shape in SHAPES:
        thing = Thing(shape, "blue", "large", 0.5, 0.5, 0.22, 0.0)
        images.append(render(Scene("mint", 1.0, (thing,)), 96).astype(int))
    for one, other in itertools.combinations(images, 2):
        assert (np.abs(one - other).sum(axis=2) > 60).mean() > 0.01


@pytest.mark.parametrize("orientation", range(1, 9))
def test_rotated_files_are_upright_after_their_exif_orientation(orientation: int):
    scene = next(s for s in scenes(100, seed=5) if s.aspect > 1 and len(s.things) > 2)
    data = encode(scene, FileForm("jpg", 160, quality=95, orientation=orientation))
    stored = Image.open(io.BytesIO(data))
    assert stored.getexif().get(0x0112, 1) == orientation
    assert (stored.size != size_px(scene, 160)) == (orientation >= 5)
    upright = np.asarray(ImageOps.exif_transpose(stored))
    assert np.abs(upright.astype(int) - render(scene, 160)).mean() < 3
    for thing in scene.things:
        assert np.abs(centre_px(thing, upright) - COLOURS[thing.colour]).max() < 25


def test_files_hold_what_is_rendered_in_every_form():
    rng = np.random.default_rng(9)
    seen = set()
    for scene in scenes(120, seed=6):
        form = sample_file_form(rng)
        data = encode(scene, form)
        assert data == encode(scene, form)
        image = Image.open(io.BytesIO(data))
        seen.add((image.format, image.mode, form.orientation != 1))
        upright = ImageOps.exif_transpose(image).convert("RGB")
        assert upright.size == size_px(scene, form.shorter_side_px)
        for thing in scene.things:
            error = centre_px(thing, np.asarray(upright)) - COLOURS[thing.colour]
            assert np.abs(error).max() <= (0 if form.format == "png" else 25)
    assert seen == {
        *(("JPEG", "RGB", False), ("JPEG", "RGB", True), ("WEBP", "RGB", False)),
        *(("PNG", "RGB", False), ("PNG", "RGBA", False)),
    }


def test_extent_is_in_units_of_the_shorter_side():
    assert extent(1.5) == (1.5, 1.0)
    assert extent(0.5) == (1.0, 2.0)


@pytest.mark.slow  # it measures the processor
def test_a_thousand_images_take_seconds():
    rng = np.random.default_rng(0)
    start = time.process_time()
    for scene in scenes(250):
        encode(scene, sample_file_form(rng))
    assert 4 * (time.process_time() - start) < 20
