"""Chat completions through the client library of OpenAI: replies, images, videos, seeds, what its types can say."""

import base64
import io
from pathlib import Path
from typing import Any, get_args, get_type_hints

import openai
import pytest
from openai.types.chat import completion_create_params
from openai.types.chat.chat_completion_content_part_image_param import ImageURL
from PIL import Image

from emu.data.video import read_frames
from emu.generate.engine import Engine
from emu.generate.prompts import TextOptions
from emu.generate.sampling import to_png
from emu.serve.limits import Limits
from emu.serve.schema import KNOWN
from tests.serve.conftest import Caller, Serve, error_of, image_part, parts

STEPS = {"image": {"num_inference_steps": 1, "height": 16, "width": 16}}
WILD = {"temperature": 1.8, "max_tokens": 12}


@pytest.fixture(scope="module")
def client(caller: Caller) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{caller.client.base_url}/v1", api_key="none", max_retries=0)


def user(content: Any) -> list[Any]:
    return [{"role": "user", "content": content}]


def test_text_whole_and_streamed(client: openai.OpenAI, photo_png: bytes) -> None:
    create = client.chat.completions.create
    messages = user(parts(photo_png, "describe the image"))
    whole = create(model="tiny", messages=messages, max_tokens=12)
    assert whole.choices[0].message.role == "assistant"
    assert whole.usage is not None and whole.usage.completion_tokens <= 12
    chunks = list(
        create(
            model="tiny",
            messages=messages,
            max_tokens=12,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    pieces = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage and chunks[-1].choices == []
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_errors_become_exceptions_of_the_client(client: openai.OpenAI) -> None:
    create = client.chat.completions.create
    with pytest.raises(openai.NotFoundError, match="this server only has"):
        create(model="gpt-4", messages=user("a"))
    with pytest.raises(openai.BadRequestError, match="max_tokens is 5000") as caught:
        create(model="tiny", messages=user("a"), max_tokens=5000)
    assert (caught.value.param, caught.value.code) == ("max_tokens", "above_limit")


def test_several_replies_have_the_seeds_after_the_given_one(
    client: openai.OpenAI, caller: Caller
) -> None:
    options: dict[str, Any] = {"messages": user("a"), "model": "tiny", "seed": 4, **WILD}
    several = client.chat.completions.create(n=3, **options)
    alone = [caller.text("a", seed=4 + index, **WILD) for index in range(3)]
    assert [choice.message.content for choice in several.choices] == alone
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    streamed = ["", "", ""]
    for chunk in client.chat.completions.create(n=3, stream=True, **options):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == alone


def test_the_last_seed_is_followed_by_the_first(caller: Caller) -> None:
    response = caller.ask("a", seed=2**63 - 1, n=2, **WILD)
    texts = [choice["message"]["content"] for choice in response.json()["choices"]]
    assert texts[1] == caller.text("a", seed=-(2**63), **WILD)


def test_without_a_seed_samples_differ(caller: Caller) -> None:
    assert len({caller.text("a", **WILD) for _ in range(3)}) > 1
    images = [caller.ask("a", modalities=["image"], **STEPS).json() for _ in range(2)]
    urls = [each["choices"][0]["message"]["images"][0]["image_url"]["url"] for each in images]
    assert urls[0] != urls[1]


def test_images_are_streamed_beside_the_text(client: openai.OpenAI, caller: Caller) -> None:
    options: dict[str, Any] = {"modalities": ["text", "image"], "max_tokens": 5, "seed": 1, **STEPS}
    whole = caller.ask("a", **options).json()["choices"][0]["message"]
    chunks = caller.stream("a", **options)
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    assert [each for delta in deltas for each in delta.get("images", ())] == whole["images"]
    positions = [part for delta in deltas for part in delta.get("parts", ())]
    assert positions == [{"type": "image", "index": 0}] == whole["parts"][:1]
    text = "".join(delta.get("content", "") for delta in deltas)
    assert text == (whole["content"] or "")
    of_client = client.chat.completions.create(
        model="tiny", messages=user("a"), extra_body={"modalities": ["image"], **STEPS}
    )
    message = of_client.choices[0].message
    assert message.content is None
    assert message.images[0]["image_url"]["url"].startswith("data:image/png;base64,")  # pyright: ignore


def test_a_reply_with_an_image_can_be_sent_back(caller: Caller) -> None:
    options: dict[str, Any] = {"modalities": ["text", "image"], "max_tokens": 5, "seed": 1, **STEPS}
    reply = caller.ask("a", **options).json()["choices"][0]["message"]
    turns = [*user("a"), reply, *user("b")]
    sent_back = caller.send({"messages": turns, "max_tokens": 4}).json()
    by_hand = [
        reply["images"][part["index"]] if part["type"] == "image" else part
        for part in reply["parts"]
    ]
    turns[1] = {
        "role": "assistant",
        "content": [{k: v for k, v in p.items() if k != "index"} for p in by_hand],
    }
    assert (
        sent_back["choices"] == caller.send({"messages": turns, "max_tokens": 4}).json()["choices"]
    )
    turns[1] = reply | {"parts": [{"type": "image", "index": 3}]}
    status, param, message = error_of(caller.send({"messages": turns}))
    assert (status, param) == (
        400,
        "messages.1.parts.0.index",
    ) and "the message has 1 images" in message


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    av = pytest.importorskip("av", reason="pip install av for this test")
    path = tmp_path_factory.mktemp("videos") / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height = 64, 48
        for number in range(16):
            image = Image.new("RGB", (64, 48), (number * 15, 80, 250 - number * 15))
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())
    return path


def video_part(data: bytes, **fields: Any) -> dict[str, Any]:
    url = "data:video/mp4;base64," + base64.b64encode(data).decode()
    return {"type": "video_url", "video_url": {"url": url, **fields}}


def test_a_video_is_its_frames(caller: Caller, engine: Engine, video: Path) -> None:
    pytest.importorskip("decord", reason="pip install decord for this test")
    content = [video_part(video.read_bytes(), num_frames=3), *parts("what happens?")]
    frames = read_frames(video, 3)
    expected = engine.generate_text([[*frames, "what happens?"]], TextOptions(max_new_tokens=6))
    assert [caller.text(content, max_tokens=6)] == expected
    images = [image_part(to_png(frame)) for frame in frames]
    assert [caller.text([*images, *parts("what happens?")], max_tokens=6)] == expected


def test_a_wrong_video_is_named(caller: Caller, serve_with: Serve, video: Path) -> None:
    pytest.importorskip("decord", reason="pip install decord for this test")
    field = "messages.0.content.0.video_url.url"
    status, param, text = error_of(caller.ask([video_part(b"no video at all")]))
    assert (status, param) == (422, field) and "cannot be read as a video" in text
    status, param, text = error_of(caller.ask([video_part(video.read_bytes(), num_frames=17)]))
    assert (status, param) == (413, "messages") and "17 images, the limit is 16" in text
    with serve_with(Limits(max_image_pixels=1000)) as small:
        status, param, text = error_of(small.ask([video_part(video.read_bytes())]))
        assert (status, param) == (422, field) and "64 x 48 pixels, the limit is 1000" in text


def test_every_field_of_the_client_is_known() -> None:
    """A new field of the client's types is either supported, ignored on purpose, or refused by name."""
    fields = get_type_hints(completion_create_params.CompletionCreateParamsNonStreaming)
    assert set(fields) <= set(KNOWN[""]), set(fields) - set(KNOWN[""])
    assert set(get_type_hints(ImageURL)) <= set(KNOWN["image_url"])


def test_every_detail_of_an_image_is_understood(caller: Caller, photo_png: bytes) -> None:
    expected = caller.text([image_part(photo_png)], max_tokens=3)
    for detail in get_args(get_type_hints(ImageURL)["detail"]):
        part = image_part(photo_png)
        part["image_url"]["detail"] = detail
        part["prompt_cache_breakpoint"] = {"mode": "explicit"}
        assert caller.text([part], max_tokens=3) == expected


@pytest.mark.parametrize("kind", ["input_audio", "file"])
def test_parts_that_are_not_supported_are_refused_by_name(caller: Caller, kind: str) -> None:
    status, param, text = error_of(caller.ask([{"type": kind, kind: {}}]))
    assert (status, param) == (400, "messages.0.content.0.type") and kind in text


@pytest.mark.parametrize("role", ["tool", "function"])
def test_roles_that_are_not_supported_are_refused_by_name(caller: Caller, role: str) -> None:
    status, param, text = error_of(caller.send({"messages": [{"role": role, "content": "a"}]}))
    assert (status, param) == (400, "messages.0.role") and f'"{role}"' in text


def test_a_message_without_content_says_so(caller: Caller) -> None:
    status, param, text = error_of(caller.send({"messages": [{"role": "user", "content": None}]}))
    assert (status, param) == (400, "messages.0.content") and "null" in text


def test_a_refusal_is_a_text(caller: Caller) -> None:
    turns = [*user("a"), {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}]
    plain = [*user("a"), {"role": "assistant", "content": "no"}]
    found = [
        caller.send({"messages": m, "max_tokens": 3}).json()["choices"] for m in (turns, plain)
    ]
    assert found[0] == found[1]


def test_pixels_of_all_images_count_together(serve_with: Serve, photo_png: bytes) -> None:
    with serve_with(Limits(max_total_pixels=3 * 90 * 70)) as small:
        assert small.ask(parts(*[photo_png] * 3), max_tokens=1).status_code == 200
        status, param, text = error_of(small.ask(parts(*[photo_png] * 4), max_tokens=1))
        assert (status, param) == (413, "messages.0.content.3.image_url.url")
        assert "25200 pixels together, the limit is 18900" in text


def test_a_large_jpeg_is_decoded_at_a_smaller_scale(caller: Caller) -> None:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((3000, 2000)).convert("RGB").save(buffer, "JPEG")
    assert caller.ask([image_part(buffer.getvalue())], max_tokens=2).status_code == 200


def test_a_prompt_beyond_the_positions_is_refused_before_it_is_decoded(caller: Caller) -> None:
    status, param, text = error_of(caller.ask("a" * 70_000))
    assert (status, param) == (400, "messages") and "at least 1094 positions" in text


def test_a_text_goes_on_to_its_limit_where_a_load_client_wants_it(caller: Caller):
    options = {"continuous_usage_stats": True}
    limits = {"max_tokens": 200, "max_completion_tokens": 200, "ignore_eos": True}
    events = caller.stream("a", stream_options=options, temperature=2, seed=1, **limits)
    assert events[-1]["choices"][0]["finish_reason"] == "length"
