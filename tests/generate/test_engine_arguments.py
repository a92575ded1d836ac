"""Every argument of the Python API: names, unusual values, wrong values."""

import inspect
import io
import threading
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import emu
from emu.generate.engine import Engine
from emu.generate.prompts import ImageOptions, PromptTooLong, TextOptions
from schemas.images import ImageError

TEXT = "max_new_tokens min_length num_beams length_penalty do_sample temperature top_p seed stop"
LOG_PROBABILITIES = "num_logprobs prompt_logprobs"
IMAGE = "height width num_inference_steps guidance_scale seed scheduler negative_prompt"


def arguments(method: Any) -> list[str]:
    return [name for name in inspect.signature(method).parameters if name != "self"]


def test_the_arguments_have_their_documented_names() -> None:
    assert arguments(emu.load) == ["directory", "device", "dtype", "weights"]
    assert arguments(Engine.generate_text) == ["prompts", "options"]
    assert arguments(Engine.generate_ids) == ["prompts", "options"]
    assert arguments(Engine.regress_image) == ["prompts"]
    assert arguments(Engine.generate_image) == ["prompt", "options", "initial_latents"]
    for method in (Engine.generate, Engine.stream):
        assert arguments(method)[:5] == ["prompt", "text", "image", "image_first", "max_images"]
    assert arguments(Engine.stream)[5:] == ["in_order", "is_wanted"]
    assert [entry.name for entry in fields(TextOptions)] == f"{TEXT} {LOG_PROBABILITIES}".split()
    assert [entry.name for entry in fields(ImageOptions)] == IMAGE.split()
    assert arguments(Engine.rank)[:2] == ["prompt", "candidates"]


def test_unusual_prompts_are_answered(engine: Engine, photo: Image.Image) -> None:
    assert engine.generate_text([]) == []
    assert engine.regress_image([]).shape == (0, 8, engine.config.language.hidden_size)
    empty, none = engine.generate_ids(["", []], TextOptions(max_new_tokens=3))
    assert empty == none
    alone, listed = engine.generate_ids([photo, [photo]], TextOptions(max_new_tokens=3))
    assert alone == listed
    assert len(engine.generate_ids([[photo] * 100], TextOptions(max_new_tokens=2))) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_beams": 5000}, r"num_beams is 5000, the vocabulary has \d+"),
        ({"do_sample": True, "top_p": 0}, "top_p is 0, give a number .*above 0"),
        ({"do_sample": True, "top_p": float("nan")}, "top_p is nan"),
        ({"do_sample": True, "temperature": 0}, "temperature is 0"),
        ({"do_sample": True, "temperature": float("nan")}, "temperature is nan"),
        ({"do_sample": True, "temperature": float("inf")}, "temperature is inf"),
        ({"temperature": "hot"}, "temperature is 'hot', give a number"),
        ({"num_beams": 2, "length_penalty": float("nan")}, "length_penalty is nan"),
        ({"min_length": None}, "min_length is None"),
        ({"min_length": True}, "min_length is True"),
        ({"seed": "x"}, "seed is 'x'"),
        ({"seed": 2**64}, "seed is 18446744073709551616"),
        ({"stop": "end"}, "stop is 'end', give a tuple"),
        ({"stop": (1,)}, r"stop\.0 is 1, give a string"),
        ({"stop": ("a", "")}, r"stop is \('a', ''\), and an empty string"),
    ],
)
def test_wrong_arguments_of_text_are_named(
    engine: Engine, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        engine.generate_text(["a"], TextOptions(**options))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"height": 10**9}, "height is 1000000000, give a whole number from 1 to 4,096"),
        ({"height": "32"}, "height is '32'"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"num_inference_steps": 5000}, "num_inference_steps is 5000, give 1 to 1000"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"scheduler": "magic"}, "no scheduler 'magic'"),
        ({"seed": 1.5}, "seed is 1.5"),
    ],
)
def test_wrong_arguments_of_images_are_named(
    engine: Engine, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        call: dict[str, Any] = {"height": 32, "width": 32} | options
        engine.generate_image("a", ImageOptions(**call))
    with pytest.raises(ValueError, match=r"initial_latents have shape \(1, 4, 3, 3"):
        engine.generate_image("a", ImageOptions(32, 32), torch.zeros(1, 4, 3, 3))
    with pytest.raises(TypeError, match="initial_latents is list"):
        engine.generate_image("a", ImageOptions(32, 32, num_inference_steps=1), initial_latents=[1])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_images is -1"):
        engine.generate("a", max_images=-1)


def test_options_of_the_other_kind_are_named(engine: Engine) -> None:
    with pytest.raises(TypeError, match=r"options is 5, give TextOptions"):
        engine.generate_text(["a"], 5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"options is TextOptions.*, give ImageOptions"):
        engine.generate_image("a", TextOptions())  # type: ignore[arg-type]


def test_wrong_images_are_named(engine: Engine, photo: Image.Image) -> None:
    jpeg = io.BytesIO()
    photo.resize((500, 400)).save(jpeg, "JPEG", quality=95)
    with pytest.raises(ImageError, match="damaged"):
        engine.generate_text([[jpeg.getvalue()[:2000], "a"]])
    with pytest.raises(ValueError, match=r"piece 1 .* image of 0 x 5 pixels"):
        engine.generate_text([["a", Image.new("RGB", (0, 5))]])
    with pytest.raises(ValueError, match=r"piece 0 .* torch\.uint8; give normalised"):
        engine.generate_text([[torch.zeros(3, 64, 64, dtype=torch.uint8)]])
    with pytest.raises(ValueError, match=r"piece 0 .* nan or inf"):
        engine.generate_text([[torch.full((3, 64, 64), float("nan"))]])
    with pytest.raises(FileNotFoundError, match="absent"):
        engine.generate_text([[Path("absent.jpg")]])
    with pytest.raises(TypeError, match="piece 0 of the prompt is list"):
        engine.generate_text([[["a"]]])  # type: ignore[list-item]


def test_too_many_images_are_refused_before_they_are_decoded(engine: Engine) -> None:
    with pytest.raises(PromptTooLong, match="103 images at 10 each"):
        engine.generate_text([[b"not decoded"] * 103])


def test_one_image_too_many_is_one_image(engine: Engine, photo: Image.Image) -> None:
    with pytest.raises(PromptTooLong, match=r"\(1 image at 10 each\)"):
        engine.generate_text([[photo, "x " * 2000]])


def test_wrong_devices_are_named(tiny_dir: Path) -> None:
    with pytest.raises(ValueError, match="device is 'toaster'"):
        emu.load(tiny_dir, device="toaster")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no CUDA device is available"):
            emu.load(tiny_dir, device="cuda")


def test_beams_up_to_the_vocabulary(engine: Engine) -> None:
    every = engine.config.num_embeddings
    assert len(engine.generate_text(["a"], TextOptions(num_beams=every, max_new_tokens=2))) == 1


def test_a_temperature_near_zero_is_greedy(engine: Engine) -> None:
    greedy = engine.generate_ids(["a"], TextOptions(max_new_tokens=6))
    for temperature in (1e-4, 1e-300):
        sampled = engine.generate_ids(
            ["a"], TextOptions(max_new_tokens=6, do_sample=True, temperature=temperature)
        )
        assert sampled == greedy


def test_every_stop_string_that_spans_tokens_is_found(engine: Engine) -> None:
    options: dict[str, Any] = {"max_new_tokens": 12, "do_sample": True, "temperature": 9.0}
    (whole,) = engine.generate_text(["describe"], TextOptions(**options))
    assert len(whole) > 8
    for start in range(len(whole) - 5):
        stop = whole[start : start + 5]
        (cut,) = engine.generate_text(
            ["describe"], TextOptions(**options, stop=("never there", stop))
        )
        assert cut == whole[: whole.index(stop)]


def test_a_sample_depends_on_its_row_and_not_on_the_others(
    engine: Engine, photo: Image.Image
) -> None:
    options: dict[str, Any] = {"max_new_tokens": 15, "do_sample": True, "temperature": 2.0}
    some = engine.generate_ids(
        ["a red circle", "it is", [photo, "a"]], TextOptions(seed=7, **options)
    )
    other = engine.generate_ids(
        ["a red circle", "x " * 90, [photo, "a"]], TextOptions(seed=7, **options)
    )
    assert some[0] == other[0] and some[2] == other[2]
    assert engine.generate_ids(["it is"], TextOptions(seed=8, **options)) == [some[1]]


def test_threads_share_an_engine(engine: Engine, photo: Image.Image) -> None:
    def work() -> tuple[object, ...]:
        texts = engine.generate_text(["a", [photo, "describe"]], TextOptions(max_new_tokens=8))
        image = engine.generate_image(
            "a", ImageOptions(32, 32, num_inference_steps=2, seed=3)
        ).tobytes()
        return texts, image, engine.rank([photo, "it is"], ["red", "a circle", "it"])

    wanted, found = work(), []
    threads = [threading.Thread(target=lambda: found.append(work())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [wanted] * 4
