"""The application on Ray Serve: an ingress and a replica in separate processes."""

import base64
import io
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from emu.generate.engine import Engine
from emu.generate.prompts import ImageOptions, TextOptions
from emu.serve.app import build_app
from emu.serve.limits import Limits
from emu.serve.options import ServeOptions
from tests.generate.bomb import bomb_png
from tests.serve.conftest import CHAT, Caller, error_of, free_port, image_part, parts

LONG = {"max_tokens": 1000, "stop": ["never to be said"]}


@pytest.fixture(scope="module")
def served(local_ray: None, tiny_dir: Path) -> Iterator[Caller]:
    """The tiny model on one replica that handles two requests at a time; eight more may wait."""
    from ray import serve

    port = free_port()
    options = ServeOptions(
        tiny_dir, requests_per_replica=2, requests_waiting=8, limits=Limits(timeout_s=30)
    )
    serve.start(http_options={"port": port})
    try:
        serve.run(build_app(options), name="emu-tests", route_prefix="/")
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield Caller(client)
    finally:
        serve.shutdown()


def test_caption_question_and_image(served: Caller, engine: Engine, photo_png: bytes) -> None:
    for text in ("describe the image", "what colour is it?"):
        answer = served.text(parts(photo_png, text), max_tokens=6)
        assert [answer] == engine.generate_text([[photo_png, text]], TextOptions(max_new_tokens=6))
    image = {"height": 32, "width": 32, "num_inference_steps": 2}
    response = served.ask("a red circle", modalities=["image"], image=image, seed=3)
    (part,) = response.json()["choices"][0]["message"]["images"]
    generated = Image.open(io.BytesIO(base64.b64decode(part["image_url"]["url"].partition(",")[2])))
    assert (
        generated.tobytes()
        == engine.generate_image(
            "a red circle", ImageOptions(32, 32, num_inference_steps=2, seed=3)
        ).tobytes()
    )


@pytest.mark.slow
def test_health_is_not_ready_before_a_replica_has_the_model(served: Caller, tiny_dir: Path) -> None:
    from ray import serve
    from ray.serve.api import RunTarget, run_many

    application = build_app(ServeOptions(tiny_dir, num_cpus=10_000))  # more than there is: it waits
    target = RunTarget(application, name="waiting", route_prefix="/waiting")
    run_many([target], wait_for_applications_running=False)
    try:
        end = time.monotonic() + 60
        while (response := served.client.get("/waiting/health")).status_code == 404:
            assert time.monotonic() < end
            time.sleep(0.2)
        assert (response.status_code, response.json()["status"]) == (503, "not ready")
        assert served.client.get("/health").json() == {"status": "ok"}
    finally:
        serve.delete("waiting")


def test_a_stream_comes_in_pieces(served: Caller) -> None:
    body = {"messages": [{"role": "user", "content": "describe"}], "stream": True, **LONG}
    arrivals: list[float] = []
    with served.client.stream("POST", CHAT, json=body) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                arrivals.append(time.monotonic())
                if len(arrivals) == 200:
                    break
    assert arrivals[-1] - arrivals[1] > 0.02, "the pieces arrived all at once"
    chunks = served.stream("describe", max_tokens=20)
    pieces = [c["choices"][0]["delta"].get("content", "") for c in chunks]
    assert "".join(pieces) == served.text("describe", max_tokens=20)


def test_errors_keep_their_form(served: Caller) -> None:
    status, param, _ = error_of(served.ask([image_part(bomb_png(20000, 20000))]))
    assert (status, param) == (413, "messages.0.content.0.image_url.url")
    assert error_of(served.ask("a " * 3000))[:2] == (400, "messages")
    assert error_of(served.send({"messages": []}))[:2] == (400, "messages")
    assert error_of(served.ask([{"type": "video"}]))[:2] == (400, "messages.0.content.0.type")
    assert error_of(served.ask("a", model="gpt-4"))[:2] == (404, "model")
    assert error_of(served.ask("x" * (33 << 20)))[0] == 413
    bad = served.client.post(CHAT, content=b"{", headers={"Content-Type": "application/json"})
    assert error_of(bad)[0] == 400
    chunk = {"messages": [{"role": "user", "content": "a " * 3000}], "stream": True}
    assert error_of(served.send(chunk))[:2] == (400, "messages")


def test_eight_requests_at_once_are_all_answered(served: Caller) -> None:
    contents = [f"circle {number}" for number in range(8)]
    alone = [served.text(content, max_tokens=16) for content in contents]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda c: served.text(c, max_tokens=16), contents))
    assert together == alone


def test_the_queue_is_bounded_and_the_ingress_keeps_responding(served: Caller) -> None:
    def ask(_number: int) -> httpx.Response:
        return served.ask("describe the image", max_tokens=120, stop=["never to be said"])

    waited: list[float] = []

    def look() -> None:
        time.sleep(0.3)
        begun = time.monotonic()
        assert served.client.get("/healthz").json() == {"status": "ok"}
        waited.append(time.monotonic() - begun)

    looking = threading.Thread(target=look)
    asked = time.monotonic()
    looking.start()
    with ThreadPoolExecutor(24) as threads:
        responses = list(threads.map(ask, range(24)))
    whole = time.monotonic() - asked
    looking.join()
    statuses = [response.status_code for response in responses]
    assert set(statuses) == {200, 503} and statuses.count(200) >= 10
    busy = responses[statuses.index(503)]
    assert error_of(busy)[2].startswith("all replicas are busy")
    assert busy.headers["retry-after"] == "5"
    assert waited and waited[0] < whole / 2


def test_clients_that_disconnect_free_their_slots(served: Caller) -> None:
    message = {"role": "user", "content": "describe the image"}
    body: dict[str, Any] = {"messages": [message], "stream": True, **LONG}
    begun = time.monotonic()
    served.send(body | {"stream": False})
    whole = time.monotonic() - begun
    for _ in range(6):
        with served.client.stream("POST", CHAT, json=body) as response:
            next(response.iter_lines())
    begun = time.monotonic()
    assert served.ask("a", max_tokens=1).status_code == 200
    assert time.monotonic() - begun < whole, "six whole replies in two slots take three times that"
