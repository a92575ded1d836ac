"""Requests that a real engine answers over HTTP."""

import base64
import io
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from emu.generate.engine import Engine
from emu.generate.prompts import ImageOptions, TextOptions
from emu.serve.limits import Limits
from tests.serve.conftest import CHAT, Caller, Serve, error_of, image_part, parts

TWO_STEPS = {"num_inference_steps": 2}


LONG = "a"  # the random model continues it to its last position


def test_a_text_is_that_of_the_engine(caller: Caller, engine: Engine) -> None:
    response = caller.ask("describe the image", max_tokens=12)
    answer = response.json()
    assert answer["object"] == "chat.completion" and answer["model"] == "tiny"
    choice = answer["choices"][0]
    assert choice["message"]["role"] == "assistant"
    assert choice["finish_reason"] in ("stop", "length")
    reply = engine.generate("describe the image", TextOptions(max_new_tokens=12), max_images=0)
    assert choice["message"]["content"] == reply.text
    assert answer["usage"] == {
        "prompt_tokens": reply.num_prompt_tokens,
        "completion_tokens": reply.num_reply_tokens,
        "total_tokens": reply.num_prompt_tokens + reply.num_reply_tokens,
    }


def test_a_caption_and_a_question_depend_on_the_image(
    caller: Caller, engine: Engine, photo_png: bytes
) -> None:
    for text in ("describe the image", "what colour is it?"):
        served = caller.text(parts(photo_png, text), max_tokens=8)
        assert [served] == engine.generate_text([[photo_png, text]], TextOptions(max_new_tokens=8))
        assert [served] == [caller.text(parts(photo_png, text), max_completion_tokens=8)]


def test_a_generated_image_stands_beside_the_content(
    caller: Caller, engine: Engine, photo_png: bytes
) -> None:
    image = {"height": 32, "width": 48, **TWO_STEPS, "guidance_scale": 3.0, "scheduler": "ddim"}
    response = caller.ask(parts("like ", photo_png), modalities=["image"], image=image, seed=5)
    message = response.json()["choices"][0]["message"]
    assert message["content"] is None and message["parts"] == [{"type": "image", "index": 0}]
    (part,) = message["images"]
    header, _, data = part["image_url"]["url"].partition(",")
    assert part["type"] == "image_url" and header == "data:image/png;base64"
    generated = Image.open(io.BytesIO(base64.b64decode(data)))
    expected = engine.generate_image(
        ["like ", photo_png],
        ImageOptions(32, 48, num_inference_steps=2, guidance_scale=3.0, seed=5, scheduler="ddim"),
    )
    assert generated.size == (48, 32) and generated.tobytes() == expected.tobytes()


def test_both_modalities_give_an_image_and_text(caller: Caller) -> None:
    response = caller.ask("a", modalities=["text", "image"], max_tokens=5, image=TWO_STEPS)
    message = response.json()["choices"][0]["message"]
    assert message["parts"][0] == {"type": "image", "index": 0}
    assert all(part["type"] == "text" for part in message["parts"][1:])
    texts = [part["text"] for part in message["parts"][1:]]
    assert (message["content"] or "") == "".join(texts)
    assert [part["index"] for part in message["images"]] == [0]


def test_a_stream_joins_to_the_whole_reply(caller: Caller, photo_png: bytes) -> None:
    for content in ("describe", parts(photo_png, "what is it?")):
        chunks = caller.stream(content, max_tokens=30, stream_options={"include_usage": True})
        assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
        assert chunks[-2]["choices"][0]["finish_reason"] in ("stop", "length")
        assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] <= 30
        pieces = [c["choices"][0]["delta"].get("content", "") for c in chunks[:-1]]
        assert "".join(pieces) == caller.text(content, max_tokens=30)
        assert sum(map(bool, pieces)) > 3, "the text must come in pieces"


def test_sampling_follows_seed_and_temperature(caller: Caller) -> None:
    options = {"temperature": 1.8, "max_tokens": 12}
    assert caller.text("a", seed=1, **options) == caller.text("a", seed=1, **options)
    assert caller.text("a", seed=1, **options) != caller.text("a", seed=2, **options)


def test_stop_and_beams_reach_the_engine(caller: Caller, engine: Engine) -> None:
    whole = caller.text("describe", max_tokens=12)
    stopped = caller.ask("describe", max_tokens=12, stop=whole[3:5]).json()["choices"][0]
    assert stopped["message"]["content"] == whole[: whole.index(whole[3:5])]
    assert stopped["finish_reason"] == "stop"
    searched = caller.text("describe", max_tokens=6, num_beams=3)
    assert [searched] == engine.generate_text(
        ["describe"], TextOptions(max_new_tokens=6, num_beams=3)
    )


def test_neutral_and_foreign_fields_of_the_schema_are_accepted(caller: Caller) -> None:
    fields = {"n": 1, "user": "someone", "tools": [], "presence_penalty": 0.0, "logprobs": False}
    assert caller.ask("a", max_tokens=2, model="tiny", **fields).status_code == 200


def test_the_model_list_has_what_the_page_needs(caller: Caller) -> None:
    (model,) = caller.client.get("/v1/models").json()["data"]
    assert model["id"] == "tiny" and model["emu"]["generates_images"] is True
    assert model["emu"]["positions_per_image"] == 10
    assert caller.client.get("/v1/models/tiny").json() == model
    assert error_of(caller.client.get("/v1/models/other"))[0] == 404
    for path in ("/health", "/healthz"):
        assert caller.client.get(path).json() == {"status": "ok"}


def test_the_page_has_an_icon(caller: Caller) -> None:
    page = caller.client.get("/")
    assert 'rel="icon"' in page.text and "img-src 'self'" in page.headers["Content-Security-Policy"]
    for path in ("/favicon.ico", "/icon.svg"):
        icon = caller.client.get(path)
        assert icon.status_code == 200 and icon.headers["content-type"] == "image/svg+xml"


def test_the_page_needs_nothing_from_elsewhere(caller: Caller) -> None:
    response = caller.client.get("/")
    assert response.headers["content-type"].startswith("text/html")
    assert "connect-src 'self'" in response.headers["content-security-policy"]
    assert "<title>Emu</title>" in response.text
    assert "http://" not in response.text and "https://" not in response.text


def test_images_of_the_web_come_through_the_given_function(
    serve_with: Serve, engine: Engine, photo_png: bytes
) -> None:
    def fetch(urls: list[str]) -> list[bytes | str]:
        return [photo_png if url.endswith("photo.png") else "http_404" for url in urls]

    def at(url: str) -> dict[str, object]:
        return {"type": "image_url", "image_url": {"url": url}}

    with serve_with(fetch=fetch) as caller:
        pieces = [at("https://images.example/photo.png"), image_part(photo_png), *parts("two")]
        expected = engine.generate_text(
            [[photo_png, photo_png, "two"]], TextOptions(max_new_tokens=5)
        )
        assert [caller.text(pieces, max_tokens=5)] == expected
        status, param, message = error_of(caller.ask([at("http://images.example/gone.png")]))
        assert (status, param) == (400, "messages.0.content.0.image_url.url")
        assert "http_404" in message


@contextmanager
def at_each_token(engine: Engine, act: Callable[[], None]) -> Iterator[None]:
    """Inside the block, `act` is called for every token, in the thread that generates it."""
    head = engine.model.language.lm.lm_head
    hook = head.register_forward_hook(lambda _module, _args, _logits: act())
    try:
        yield
    finally:
        hook.remove()


def test_a_late_reply_is_cancelled_and_its_thread_freed(serve_with: Serve, engine: Engine) -> None:
    slow = {"max_tokens": 1000, "stop": ["never to be said"]}
    with serve_with(Limits(timeout_s=1.0)) as caller:
        with at_each_token(engine, lambda: time.sleep(0.02)):  # 20 s for a whole reply
            for _ in range(3):  # more than there are threads
                status, _, message = error_of(caller.ask(LONG, **slow))
                assert status == 504 and "1 s" in message
            last = caller.stream(LONG, **slow)[-1]
            assert last["error"]["code"] == "timeout"
        assert caller.ask("a", max_tokens=1).status_code == 200


def test_a_client_that_disconnects_stops_generation(caller: Caller, engine: Engine) -> None:
    message = {"role": "user", "content": LONG}
    body = {"messages": [message], "stream": True, "max_tokens": 1000}
    num_tokens = 0

    def count() -> None:
        nonlocal num_tokens
        num_tokens += 1
        time.sleep(0.01)

    with at_each_token(engine, count):
        for _ in range(4):
            with caller.client.stream("POST", CHAT, json=body) as response:
                next(response.iter_lines())
        assert caller.ask("a", max_tokens=1).status_code == 200
    assert num_tokens < 1000  # of the 4,000 of four whole replies


def test_health_responds_while_the_engine_is_busy(caller: Caller, engine: Engine) -> None:
    is_busy, is_answered = threading.Event(), threading.Event()

    def hold() -> None:
        is_busy.set()
        is_answered.wait()

    def request() -> None:
        caller.ask("describe the image", max_tokens=2)

    threads = [threading.Thread(target=request) for _ in range(3)]
    with at_each_token(engine, hold):
        try:
            for thread in threads:
                thread.start()
            assert is_busy.wait(60)
            assert caller.client.get("/healthz", timeout=30).status_code == 200
        finally:
            is_answered.set()
            for thread in threads:
                thread.join()


def test_the_ingress_imports_neither_torch_nor_ray(repository: Path) -> None:
    code = "import sys, emu.serve.api; print(sorted({'torch', 'ray', 'transformers'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
