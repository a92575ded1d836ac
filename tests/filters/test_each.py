"""What single filters keep and drop, beyond the contract."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from pipelines.core.pipeline import Construct, Filter
from pipelines.filters import FILTERS
from pipelines.images.clip import ClipModel, ClipWeights
from pipelines.images.perceptual_hash import hash_of_pixels, perceptual_hash
from schemas.sample import SAMPLES, Sample, Segment
from tests.filters.tiny_clip import scene_jpeg, tiny_clip


def table_of(samples: list[Sample]) -> pa.Table:
    return SAMPLES.table([s.as_row() for s in samples])


def captions(*texts: str) -> pa.Table:
    return table_of([Sample(f"k{n}", "t", (Segment.of_text(t),)) for n, t in enumerate(texts)])


def metas(*found: dict[str, Any]) -> pa.Table:
    return table_of([Sample(f"k{n}", "t", (Segment.of_text("x"),), m) for n, m in enumerate(found)])


def images(*rows: list[bytes], text: str = "a text") -> pa.Table:
    def segments(row: list[bytes]) -> tuple[Segment, ...]:
        return (Segment.of_text(text), *(Segment.of_image(b, "jpg", 96, 96) for b in row))

    return table_of([Sample(f"k{n}", "t", segments(row)) for n, row in enumerate(rows)])


def found_by(filter_: Filter, table: pa.Table) -> list[tuple[str | None, str | None]]:
    test = filter_.test
    test = test.make(*test.args) if isinstance(test, Construct) else test
    return [(row["reason"], row["detail"]) for row in test(table).to_pylist()]


def reasons(filter_: Filter, table: pa.Table) -> list[str | None]:
    return [reason for reason, _ in found_by(filter_, table)]


ENGLISH = "a woman walks along the beach with her two dogs in the evening"
TEXTS = {
    "en": ENGLISH,
    "de": "eine Frau geht am Abend mit ihren zwei Hunden am Strand spazieren",
    "fr": "une femme se promène le soir sur la plage avec ses deux chiens",
    "zh": "一位女士傍晚带着两只狗在海滩上散步, 孩子们在旁边玩沙子",
}


@pytest.mark.parametrize("detector", ["fast", pytest.param("lingua", marks=pytest.mark.slow)])
def test_languages(detector: str):
    table = captions(*TEXTS.values(), "ok", "12345 67890 12345")
    found = found_by(FILTERS["language"](("en", "zh"), detector=detector), table)
    assert [reason for reason, _ in found] == [
        *(None, "language_unwanted", "language_unwanted", None),
        *(None, None),
    ]
    assert (found[1][1] or "").startswith("de ") and (found[2][1] or "").startswith("fr ")


def test_an_uncertain_language():
    unsure = FILTERS["language"](tuple(TEXTS), min_score=1.0)
    assert reasons(unsure, captions("restaurant hotel taxi")) == ["language_uncertain"]


@pytest.mark.parametrize(
    ("text", "is_kept"),
    [
        (ENGLISH, True),
        ("4K UHD 3840x2160 60fps stock footage of waves", False),
        ("Canon EOS 5D, ISO 400, f/2.8, 85 mm, 1/200 s", False),
        ("IMG_20190304.JPG", False),
        ("Royalty-free stock photos by Shutterstock", False),
        ("a canon stands on the wall of an old castle in Spain", True),
        ("the hdmi cable and the mmc card on a wooden table", True),
        ("", True),
    ],
)
def test_metadata_words(text: str, is_kept: bool):
    assert (reasons(FILTERS["metadata_words"](), captions(text)) == [None]) is is_kept


def test_own_metadata_words(tmp_path: Path):
    file = tmp_path / "words.txt"
    file.write_text("# ours\nlimited offer\n")
    table = captions("Limited  OFFER today", "an unlimited offering", "subscribe now")
    none = FILTERS["metadata_words"](max_share=0.0, words=("subscribe",), file=str(file))
    assert reasons(none, table) == ["metadata_words", None, "metadata_words"]
    assert found_by(none, table)[0][1] == "2 of 3 words: limited offer"


def test_repetition_looks_at_phrases():
    table = captions("red car " * 10, ENGLISH, "no no no", "")
    assert reasons(FILTERS["repetition"](), table) == ["text_repeats_itself", None, None, None]


def test_captions_that_repeat_in_a_shard():
    texts = ["Photo 1 of 9", "photo 2 of 9", "A cat", "a  CAT", "Photo 30 of 9", "a cat", ""]
    found = reasons(FILTERS["repeated_captions"](2), captions(*texts, ""))
    assert found == [None] * 4 + ["caption_templated", "caption_repeated", None, None]


def test_scores_by_name_and_what_happens_without():
    rows = (
        {"scores": {"punsafe": 0.6}},
        {"scores": {"punsafe": 0.5}},
        {"punsafe": 0.9},
        {},
        {"scores": {"punsafe": True}},
    )
    drop = FILTERS["score"]("nsfw", max=0.5)
    assert drop.name == "score_punsafe"
    found = found_by(drop, metas(*rows))
    assert [r for r, _ in found] == [
        "score_too_high",
        None,
        "score_too_high",
        "score_missing",
        "score_missing",
    ]
    assert found[0][1] == "punsafe 0.6 is above 0.5"
    keep = FILTERS["score"]("punsafe", min=0.55, missing="keep")
    assert reasons(keep, metas(*rows)) == [None, "score_too_low", None, None, None]


def test_tags_ignore_case():
    rows = ({"NSFW": "unlikely"}, {"nsfw": "NSFW"}, {"nsfw": ""}, {})
    assert reasons(FILTERS["tag"](), metas(*rows)) == [
        None,
        "tag_unwanted",
        "tag_missing",
        "tag_missing",
    ]


def test_images_by_bounds_any_or_all():
    table = table_of(
        [
            Sample(
                "a",
                "t",
                (
                    Segment.of_image(b"x" * 50, "jpg", 100, 100),
                    Segment.of_image(b"x", "jpg", 10, 90),
                ),
            ),
            Sample("b", "t", (Segment.of_image(b"x" * 99, "jpg", 900, 800),)),
        ]
    )

    def dropped(name: str, **arguments: Any) -> list[str | None]:
        return FILTERS[name](**arguments).test(table).to_pylist()  # type: ignore[operator]

    assert dropped("image_size", max_side=500) == [None, "images_too_large"]
    assert dropped("image_size", images="all") == ["images_too_small", None]
    assert dropped("image_size", min_side=1, min_pixels=10_001) == ["images_too_small", None]
    assert dropped("image_size", min_side=1, max_pixels=500_000) == [None, "images_too_large"]
    assert dropped("image_aspect", max_ratio=2, images="all") == ["images_too_elongated", None]
    assert dropped("image_bytes", minimum=40) == [None, None]
    assert dropped("image_bytes", minimum=40, images="all") == ["images_too_few_bytes", None]
    assert dropped("image_bytes", minimum=0, maximum=60) == [None, "images_too_many_bytes"]
    assert dropped("segment_count", max_images=1) == ["too_many_segments", "too_few_segments"]
    assert dropped("segment_count", min_segments=1, min_texts=1) == ["too_few_segments"] * 2


def test_block_list_by_domain_address_and_hash(tmp_path: Path):
    one, two = scene_jpeg(1), scene_jpeg(2)
    file = tmp_path / "list.txt"
    file.write_text(
        f"Bad.example\nhttps://ok.example/a?b=1\n{hashlib.sha256(two).hexdigest().upper()}\n"
    )
    rows = [
        ("http://BAD.example/x", one, "domain_blocked"),
        ("https://cdn.bad.example:8443/x", one, "domain_blocked"),
        ("https://notbad.example/x", one, None),
        ("http://bad.example.org/x", one, None),
        ("http://OK.example/a?b=1#f", one, "url_blocked"),
        ("http://ok.example/a?b=2", one, None),
        ("http://fine.example/", two, "hash_blocked"),
    ]
    table = table_of(
        [
            Sample(
                f"k{n}",
                "t",
                (Segment.of_image(data, "jpg", 96, 96), Segment.of_text("x")),
                {"url": url},
            )
            for n, (url, data, _) in enumerate(rows)
        ]
    )
    table = table.append_column("links", pa.nulls(len(rows), pa.null()))
    assert reasons(FILTERS["block_list"](str(file)), table) == [reason for *_, reason in rows]


def scaled(image: bytes, side: int, quality: int) -> bytes:
    out = io.BytesIO()
    Image.open(io.BytesIO(image)).resize((side, side)).save(out, "JPEG", quality=quality)
    return out.getvalue()


def test_evaluation_images_are_found_scaled_and_encoded_again(tmp_path: Path):
    folder = tmp_path / "eval"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(scene_jpeg(3, 200))
    table = images([scene_jpeg(4)], [scene_jpeg(4), scaled(scene_jpeg(3, 200), 128, 60)], [])
    filter_ = FILTERS["evaluation_images"](str(folder))
    found = found_by(filter_, table)
    assert [reason for reason, _ in found] == [None, "evaluation_image", None]
    assert (found[1][1] or "").startswith("image 1, ")


def test_evaluation_texts_are_found_in_other_spelling(tmp_path: Path):
    file = tmp_path / "questions.jsonl"
    questions = [
        "What is the man in the red jacket holding in his left hand?",
        "Is it big?",
        "What colour is the bus?",
    ]
    file.write_text("".join(json.dumps({"question": q, "answer": "x"}) + "\n" for q in questions))
    table = captions(
        "Q: “WHAT is the man in the red jacket holding” — an umbrella",
        "what colour is the bus",
        "what colour is the big red bus",
        "is it big?",
    )
    found = found_by(FILTERS["evaluation_texts"](str(file)), table)
    assert [r for r, _ in found] == ["evaluation_text", "evaluation_text", None, None]
    assert found[1][1] == "what colour is the bus"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("models") / "clip")


def test_clip_similarity_is_that_of_open_clip(clip: Path):
    import open_clip

    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{clip}")
    tokens = open_clip.get_tokenizer(f"local-dir:{clip}")(
        ["a cat", "a much longer text about dogs"]
    )
    photos = [scene_jpeg(n) for n in range(5)]
    pixels = torch.stack([preprocess(Image.open(io.BytesIO(p)).convert("RGB")) for p in photos])
    with torch.inference_mode():
        one = model.eval().encode_image(pixels, normalize=True)
        expected = (one @ model.encode_text(tokens, normalize=True).T).numpy()
    mine = ClipModel(ClipWeights(str(clip)), batch_size=2)
    found = mine.similarities(photos, ["a cat", "a much longer text about dogs"])
    assert np.allclose(found, expected, atol=1e-5)
    threshold = float(np.median(expected[:, 0]))
    filter_ = FILTERS["clip_similarity"](threshold - 1e-4, str(clip), batch_size=3)
    dropped = reasons(filter_, images(*([p] for p in photos), [], text="a cat"))
    assert dropped == [
        None if v >= threshold - 1e-4 else "clip_similarity_low" for v in expected[:, 0]
    ] + [None]
    assert None in dropped[:5] and "clip_similarity_low" in dropped
    alone = FILTERS["clip_similarity"](threshold - 1e-4, str(clip), images="all")
    assert reasons(alone, images(photos, text="a cat")) == ["clip_similarity_low"]
    assert reasons(filter_, images(photos, text="a cat")) == [None]


def test_image_score_runs_the_layers_of_the_file(clip: Path, tmp_path: Path):
    generator = torch.Generator().manual_seed(1)
    layers = {
        "layers.10.weight": torch.randn(1, 8, generator=generator),
        "layers.10.bias": torch.zeros(1),
        "layers.2.weight": torch.randn(8, 16, generator=generator),
        "layers.2.bias": torch.randn(8, generator=generator),
    }
    torch.save(layers, tmp_path / "head.pth")
    photos = [scene_jpeg(n) for n in range(6)]
    vectors = torch.from_numpy(ClipModel(ClipWeights(str(clip))).encode_images(photos))
    hidden = torch.relu(vectors @ layers["layers.2.weight"].T + layers["layers.2.bias"])
    expected = torch.sigmoid(hidden @ layers["layers.10.weight"].T)[:, 0].numpy()
    bound = float(np.sort(expected)[2:4].mean())
    filter_ = FILTERS["image_score"](
        str(tmp_path / "head.pth"),
        max=bound,
        model=str(clip),
        pretrained="",
        activation="relu",
        output="sigmoid",
    )
    found = found_by(filter_, images(*([p] for p in photos), []))
    assert [r for r, _ in found] == [
        "image_score_too_high" if v > bound else None for v in expected
    ] + [None]
    assert all(d == f"{v:.3f}" for (r, d), v in zip(found, expected, strict=False) if r)


def test_layers_that_do_not_fit_are_named(clip: Path, tmp_path: Path):
    torch.save({"0.weight": torch.ones(3, 16), "1.weight": torch.ones(1, 4)}, tmp_path / "head.pth")
    filter_ = FILTERS["image_score"](
        str(tmp_path / "head.pth"), min=0, model=str(clip), pretrained=""
    )
    with pytest.raises(ValueError, match=r"layers of widths \[\(16, 3\), \(4, 1\)\]"):
        found_by(filter_, images([scene_jpeg(1)]))


def test_the_hash_is_that_of_imagehash(sample_data: Path):
    import imagehash

    photos = sorted(sample_data.glob("flickr8k/**/*.jpg"))[:60]
    assert photos
    pictures = [Image.open(p) for p in photos] + [
        Image.open(io.BytesIO(scene_jpeg(n, 64 + 9 * n))) for n in range(40)
    ]
    pictures += [Image.new("RGB", (50, 70), "red"), Image.new("L", (1, 1)), Image.new("P", (40, 3))]
    for picture in pictures:
        assert f"{hash_of_pixels(picture):016x}" == str(imagehash.phash(picture))
    assert f"{perceptual_hash(photos[0].read_bytes()):016x}" == str(imagehash.phash(pictures[0]))
