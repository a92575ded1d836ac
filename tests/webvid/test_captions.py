"""Captions lose the words on camera, resolution and stock use, and nothing else; what they lose is told."""

import csv
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.corpora.webvid.captions import CAPTION_RULES, clean_caption

CLEANED = {
    "Horse grazing - seperated on green screen": ("Horse grazing", ["keying"]),
    "Aerial uhd 4k view. mid-air flight": ("Aerial view. mid-air flight", ["resolution"]),
    "Time lapse video of light cirrus clouds in a sky": (
        "light cirrus clouds in a sky",
        ["speed"],
    ),
    "Video 1920x1080 - coconut palm tree": ("coconut palm tree", ["resolution"]),
    "Slow motion. Woman running on beach (4K, 120 fps)": (
        "Woman running on beach",
        ["resolution", "frame_rate", "speed"],
    ),
    "Close-up of hands, shot on RED Epic in 8k": ("Close-up of hands", ["resolution", "camera"]),
    "A cat. shot on red camera, prores 422": ("A cat.", ["camera", "codec"]),
    "Royalty free stock video of the sea": ("the sea", ["stock"]),
    "Footage of a cat, isolated on white background.": ("a cat.", ["keying", "stock"]),
    "Dog on the grass, dslr, 50mm lens, shallow depth of field": (
        "Dog on the grass",
        ["camera", "lens"],
    ),
}


@pytest.mark.parametrize("caption", CLEANED)
def test_metadata_words_are_removed_and_told(caption: str):
    text, rules = CLEANED[caption]
    cleaned = clean_caption(caption)
    assert cleaned.text == text
    assert list(dict.fromkeys(name for name, _ in cleaned.removed)) == rules
    assert all(part.casefold() in caption.casefold() for _, part in cleaned.removed)


@pytest.mark.parametrize(
    "caption",
    [
        "A red dragon statue in a temple",
        "Red car on the road",
        "The redhead on a hdmi cable",
        "a man with a camera",
        "4,000 people run",
        "Kiev, ukraine 30.07.2015. cars go on the road",
        "White bird over the green hills",
        "Isolated village in the mountains",
    ],
)
def test_what_is_seen_stays(caption: str):
    cleaned = clean_caption(f"  {caption} ")
    assert (cleaned.text, cleaned.removed) == (caption, ())


@pytest.mark.parametrize(
    "caption", ["4k uhd stock footage", "Green screen", "1080p", "...", "50mm lens, 24 fps", "  "]
)
def test_nothing_may_remain(caption: str):
    assert clean_caption(caption).text == ""


@given(st.text(max_size=200))
def test_any_text_is_cleaned_and_cleaning_again_finds_little(caption: str):
    cleaned = clean_caption(caption)
    assert cleaned.text == cleaned.text.strip()
    assert cleaned.removed or cleaned.text in ("", caption.strip())
    assert {name for name, _ in cleaned.removed} <= {rule.name for rule in CAPTION_RULES}


def test_the_real_captions_lose_only_whole_words(sample_data: Path):
    with (sample_data / "webvid/webvid_rows.csv").open(newline="") as file:
        captions = [row["name"] for row in csv.DictReader(file)]
    assert len(captions) == 20
    cleaned = [clean_caption(caption) for caption in captions]
    assert sum(bool(c.removed) for c in cleaned) == 8
    for caption, one in zip(captions, cleaned, strict=True):
        assert set(re.findall(r"[\w'-]+", one.text)) <= set(re.findall(r"[\w'-]+", caption))
