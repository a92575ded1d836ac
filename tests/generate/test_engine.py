"""The Python API: images, interleaved replies, prompts of every form."""

import io
from pathlib import Path

import pytest
import torch
from PIL import Image

import emu
from emu.generate.engine import Engine
from emu.generate.prompts import ImageOptions, PromptTooLong, Reply, TextOptions
from emu.generate.sampling import to_png
from schemas.images import ImageError, decode_image
from schemas.sample import Sample, Segment, check_sample
from tests.generate.bomb import bomb_png

SMALL = ImageOptions(32, 32, num_inference_steps=2)
SHORT = TextOptions(max_new_tokens=4)


def test_every_form_of_an_image_encodes_alike(
    engine: Engine, photo: Image.Image, tmp_path: Path
) -> None:
    data = to_png(photo)
    (tmp_path / "photo.png").write_bytes(data)
    segment = Segment.of_image(data, "png", *photo.size)
    forms = [photo, data, tmp_path / "photo.png", segment]
    encoded = [engine.encode(["look: ", form, " yes"]) for form in forms]
    encoded.append(engine.encode(["look: ", encoded[0].pixels[0], " yes"]))
    for other in encoded[1:]:
        assert other.ids == encoded[0].ids
        assert torch.equal(other.pixels[0], encoded[0].pixels[0])
    assert encoded[0].ids.count(engine.config.special.image) == 8


def test_an_image_follows_its_seed(engine: Engine) -> None:
    def png(seed: int) -> bytes:
        return to_png(
            engine.generate_image(
                "a red circle",
                ImageOptions(32, 48, num_inference_steps=2, guidance_scale=3.0, seed=seed),
            )
        )

    assert png(1) == png(1) != png(2)
    assert Image.open(io.BytesIO(png(1))).size == (48, 32)


def test_an_image_has_the_decoders_size_by_default(engine: Engine) -> None:
    assert engine.generate_image("a", ImageOptions(num_inference_steps=1)).size == (64, 64)


def test_an_image_comes_first_if_asked_and_text_follows_it(
    engine: Engine, photo: Image.Image
) -> None:
    reply = engine.generate([photo, "more"], SHORT, SMALL, image_first=True)
    assert reply.segments[0].kind == "image"
    assert len(reply.images) == 1 and reply.images[0].format == "png"
    check_sample(Sample("reply", "served", reply.segments))
    assert reply.num_prompt_tokens == len(engine.encode([photo, "more"], opens_image=True).ids)
    assert reply.num_reply_tokens == 9 + 4 or reply.finish_reason == "stop"


def test_a_reply_can_be_an_image_alone(engine: Engine) -> None:
    reply = engine.generate("a", None, SMALL, image_first=True)
    assert [s.kind for s in reply.segments] == ["image"] and reply.finish_reason == "stop"


def test_an_image_is_generated_where_the_model_opens_one(engine: Engine) -> None:
    """With the logit of `[IMG]` raised twice, two images are generated, then text follows."""
    wanted = iter([True, False, True, False, False])

    def raise_image_start(_module: object, _args: object, logits: torch.Tensor) -> torch.Tensor:
        logits = logits.clone()
        logits[:, engine.config.special.image_start] = 1e4 if next(wanted) else -1e4
        logits[:, engine.config.special.eos] = -1e4
        return logits

    hook = engine.model.language.lm.lm_head.register_forward_hook(raise_image_start)
    try:
        options = TextOptions(max_new_tokens=5)
        events = list(engine.stream("draw", options, SMALL, max_images=2))
    finally:
        hook.remove()
    reply = events[-1]
    assert isinstance(reply, Reply) and reply.finish_reason == "length"
    assert len(reply.images) == 2 and reply.segments[0].kind == "image"
    assert sum(isinstance(event, Image.Image) for event in events) == 2
    assert reply.num_reply_tokens == 5 + 2 * 9
    assert "".join(e for e in events if isinstance(e, str)) == reply.text


def test_streamed_pieces_are_the_reply(engine: Engine) -> None:
    *pieces, reply = engine.stream("describe the image", TextOptions(max_new_tokens=20))
    assert isinstance(reply, Reply)
    assert "".join(str(piece) for piece in pieces) == reply.text
    assert [reply.text] == engine.generate_text(
        ["describe the image"], TextOptions(max_new_tokens=20)
    )


def test_a_reply_can_use_beam_search(engine: Engine) -> None:
    reply = engine.generate("a", TextOptions(max_new_tokens=5, num_beams=3))
    assert [reply.text] == engine.generate_text(["a"], TextOptions(max_new_tokens=5, num_beams=3))


def test_ranks_agree_with_one_forward_per_candidate(engine: Engine, photo: Image.Image) -> None:
    candidates = ["a red circle", "green", "two blue squares and a star", "it", "red"]
    prompt = [photo, "what is it?"]
    losses = []
    for candidate in candidates:
        encoded = engine.encode([*prompt, " " + candidate])
        ids = torch.tensor([encoded.ids])
        with torch.inference_mode():
            images = engine.model.encode_images(torch.stack(encoded.pixels))
            hidden = engine.model.language(engine.model.embed(ids, images))
            log_probs = engine.model.language.head(hidden)[0, :-1].log_softmax(-1)
        start = len(engine.encode(prompt).ids)
        picked = log_probs.gather(1, ids[0, 1:, None])[start - 1 :]
        losses.append(-float(picked.sum()) / ids.shape[1])
    order = sorted(range(len(candidates)), key=losses.__getitem__)
    assert engine.rank(prompt, candidates) == order


def test_wrong_prompts_are_named(engine: Engine) -> None:
    with pytest.raises(PromptTooLong, match=r"positions.*has 1024"):
        engine.generate_text(["circle " * 2000])
    with pytest.raises(ValueError, match=r"piece 1 .*<image>"):
        engine.generate_text([["a", "<image>"]])
    with pytest.raises(TypeError, match=r"piece 0 .* is int"):
        engine.generate_text([[3]])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="prompts is str"):
        engine.generate_text("a")
    with pytest.raises(ValueError, match=r"shape \(3, 7, 7\)"):
        engine.generate_text([[torch.zeros(3, 7, 7)]])
    with pytest.raises(ValueError, match="no scheduler 'magic'"):
        engine.generate_image("a", ImageOptions(32, 32, num_inference_steps=2, scheduler="magic"))
    with pytest.raises(ValueError, match="give multiples of"):
        engine.generate_image("a", ImageOptions(33, 32, num_inference_steps=2))
    with pytest.raises(ValueError, match="candidates"):
        engine.rank("a", [])


def test_a_model_without_decoder_says_so(engine: Engine) -> None:
    mute = Engine(engine.model, engine.tokenizer)
    with pytest.raises(ValueError, match="no visual decoder"):
        mute.generate_image("a")
    assert mute.generate("a", SHORT).segments


def test_loading_names_what_is_wrong(tmp_path: Path, tiny_dir: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        emu.load(tmp_path)
    with pytest.raises(ValueError, match="dtype is 'int8'"):
        emu.load(tiny_dir, dtype="int8")


def test_bfloat16_generates_text_and_images(tiny_dir: Path, photo: Image.Image) -> None:
    half = emu.load(tiny_dir, dtype="bfloat16")
    assert len(half.generate_ids([[photo, "a"]], TextOptions(max_new_tokens=3))[0]) <= 4
    assert half.generate_image("a", ImageOptions(32, 32, num_inference_steps=1)).size == (32, 32)


def test_images_are_checked_before_decoding() -> None:
    with pytest.raises(ImageError, match=r"20000 x 20000 = 400,000,000 pixels, the limit is"):
        decode_image(bomb_png(20000, 20000))
    with pytest.raises(ImageError, match="100 x 50 = 5,000 pixels, the limit is 4,999"):
        decode_image(to_png(Image.new("RGB", (100, 50))), max_pixels=4999)
    with pytest.raises(ImageError, match="HTML"):
        decode_image(b"<html>not here</html>")
    with pytest.raises(ImageError, match="empty"):
        decode_image(b"")
    whole = to_png(Image.effect_noise((64, 64), 90))
    with pytest.raises(ImageError, match="damaged"):
        decode_image(whole[: len(whole) // 2])


def test_images_become_upright_opaque_and_eight_bit() -> None:
    clear = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    assert decode_image(to_png(clear)).getpixel((0, 0)) == (255, 255, 255)
    deep = Image.new("I;16", (2, 2), 257 * 128)
    assert decode_image(to_png(deep)).getpixel((0, 0)) == (128, 128, 128)
    turned, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    Image.new("RGB", (30, 10)).save(turned, "JPEG", exif=exif)
    assert decode_image(turned.getvalue()).size == (10, 30)
