"""Adapters over HTTP: requests for the model and for two adapters, mixed, are answered as by an engine alone."""

import base64
import io
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

import emu
from emu.generate.engine import Engine
from emu.generate.prompts import ImageOptions, Piece, TextOptions
from emu.serve.api import Access
from emu.serve.app import build
from emu.serve.backend import EncodedImage, ModelCard
from emu.serve.limits import Limits
from emu.serve.requests import Turn, to_prompt
from tests.generate.test_adapters import write_adapter
from tests.serve.conftest import Caller, error_of, free_port, parts, serving

MODELS = ("tiny", "tiny:first", "tiny:second")
QUESTION = "what colour is the triangle?"
TEXT = TextOptions(max_new_tokens=8)
IMAGE = ImageOptions(32, 32, num_inference_steps=2, seed=3)


@pytest.fixture(scope="module")
def adapters(tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {
        name: write_adapter(tiny_dir, root / name, number, rank=2 + number)
        for number, name in enumerate(("first", "second"), 1)
    }


@pytest.fixture(scope="module")
def adapted(tiny_dir: Path, adapters: Mapping[str, Path]) -> Iterator[Caller]:
    """The API over one engine with both adapters."""
    engine = emu.load(tiny_dir)
    card = replace(ModelCard.of(tiny_dir, engine.config), adapters=tuple(adapters))
    with serving(engine, card, Limits(), None, Access(), adapters) as caller:
        yield caller


@dataclass(frozen=True)
class Alone:
    """What an engine without any other request answers to the requests of `asked`."""

    engine: Engine
    is_tuned: bool
    photo: bytes

    def _prompt(self, *content: str | EncodedImage) -> list[Piece]:
        pieces = to_prompt([Turn("user", content)], self.is_tuned)
        return [p.data if isinstance(p, EncodedImage) else str(p) for p in pieces]

    def answers(self) -> dict[str, Any]:
        photo = EncodedImage(self.photo, "")
        (chat,) = self.engine.generate_text([self._prompt(QUESTION)], TEXT)
        (seen,) = self.engine.generate_text([self._prompt(photo, QUESTION)], TEXT)
        (completed,) = self.engine.generate_text([QUESTION], TEXT)
        ranks = self.engine.rank(self._prompt(QUESTION), ["red", "a blue square", "green"])
        image = self.engine.generate_image(self._prompt("a red circle"), IMAGE)
        return {"chat": chat, "seen": seen, "completed": completed, "ranks": ranks, "image": image}


def asked(caller: Caller, model: str, kind: str, photo: bytes) -> Any:
    """The answer of the server to one request of this kind."""
    if kind == "chat":
        return caller.text(QUESTION, max_tokens=8, model=model)
    if kind == "seen":
        return caller.text(parts(photo, QUESTION), max_tokens=8, model=model)
    path, body = {
        "completed": ("completions", {"prompt": QUESTION, "max_tokens": 8}),
        "ranks": ("rank", {"prompt": QUESTION, "candidates": ["red", "a blue square", "green"]}),
        "image": (
            "images/generations",
            {"prompt": "a red circle", "size": "32x32", "num_inference_steps": 2, "seed": 3},
        ),
    }[kind]
    response = caller.client.post(f"/v1/{path}", json={**body, "model": model})
    assert response.status_code == 200, response.text
    found = response.json()
    if kind == "completed":
        return found["choices"][0]["text"]
    if kind == "ranks":
        return [entry["index"] for entry in found["data"]]
    return Image.open(io.BytesIO(base64.b64decode(found["data"][0]["b64_json"])))


def are_answered_alike(
    caller: Caller, tiny_dir: Path, adapters: Mapping[str, Path], photo: bytes
) -> None:
    """Sends requests of all kinds for all models at once, and compares with each engine alone."""
    base = emu.load(tiny_dir)
    tuned = [emu.load(folder) for folder in adapters.values()]
    engines = [base, *(Engine(each.model, each.tokenizer, base.decoder) for each in tuned)]
    expected = {
        model: Alone(engine, number > 0, photo).answers()
        for number, (model, engine) in enumerate(zip(MODELS, engines, strict=True))
    }
    work = [(model, kind) for kind in expected["tiny"] for model in MODELS] * 2
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda each: asked(caller, each[0], each[1], photo), work))
    for (model, kind), answer in zip(work, found, strict=True):
        own = expected[model][kind]
        if kind == "image":
            difference = np.asarray(answer, np.int16) - np.asarray(own, np.int16)
            assert np.abs(difference).max() <= 2, (model, kind)
        else:
            assert answer == own, (model, kind)
    assert len({answers["chat"] for answers in expected.values()}) == 3, "adapters change nothing"


def test_mixed_requests_are_answered_as_by_each_engine_alone(
    adapted: Caller, tiny_dir: Path, adapters: Mapping[str, Path], photo_png: bytes
) -> None:
    are_answered_alike(adapted, tiny_dir, adapters, photo_png)


def test_adapters_are_listed_and_a_wrong_one_is_named(adapted: Caller) -> None:
    listed = adapted.client.get("/v1/models").json()["data"]
    assert [entry["id"] for entry in listed] == list(MODELS)
    assert [entry["emu"]["instruct"] for entry in listed] == [False, True, True]
    assert adapted.client.get("/v1/models/tiny:first").json()["id"] == "tiny:first"
    assert adapted.client.get("/v1/models/tiny:third").status_code == 404
    for wrong in ("tiny:third", "first", "tiny:"):
        status, param, message = error_of(adapted.ask("a", model=wrong))
        assert (status, param) == (404, "model") and '"tiny:first"' in message


@pytest.mark.slow
def test_replicas_on_ray_serve_answer_alike(
    local_ray: None, tiny_dir: Path, adapters: Mapping[str, Path], photo_png: bytes
) -> None:
    from ray import serve

    port = free_port()
    serve.start(http_options={"port": port})
    try:
        arguments = {"model": str(tiny_dir), "adapters": dict(adapters), "num_replicas": 2}
        serve.run(build(arguments), name="emu-adapters", route_prefix="/")
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
            are_answered_alike(Caller(client), tiny_dir, adapters, photo_png)
    finally:
        serve.shutdown()
