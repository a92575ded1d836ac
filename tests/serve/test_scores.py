"""`/v1/rank` and `/v1/embeddings`."""

from typing import Any, get_type_hints

import openai
import pytest
import torch
from openai.types import embedding_create_params

from emu.generate.engine import Engine
from emu.models.visual import normalise
from emu.serve.routes.scores import EMBED_KNOWN
from schemas.images import decode_image
from tests.serve.conftest import Caller, error_of, image_part, parts

CANDIDATES = ["red", "blue", "a large green circle"]


@pytest.mark.parametrize("score", ["released", "sum"])
def test_a_ranking_is_that_of_the_engine(
    caller: Caller, engine: Engine, photo_png: bytes, score: Any
) -> None:
    for prompt, asked in (
        ("what colour?", "what colour?"),
        (parts(photo_png, "what?"), [photo_png, "what?"]),
    ):
        body = {"prompt": prompt, "candidates": CANDIDATES, "score": score}
        data = caller.client.post("/v1/rank", json=body).json()["data"]
        losses = engine.candidate_losses(asked, CANDIDATES, score)
        assert [each["index"] for each in data] == engine.rank(asked, CANDIDATES, score)
        assert [each["candidate"] for each in data] == [CANDIDATES[each["index"]] for each in data]
        assert [each["loss"] for each in data] == pytest.approx(sorted(losses), abs=1e-4)


def unit(embeddings_QD: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(embeddings_QD.float().mean(dim=0), dim=-1)


def test_embeddings_of_texts_and_images(caller: Caller, engine: Engine, photo_png: bytes) -> None:
    client = openai.OpenAI(base_url=f"{caller.client.base_url}/v1", api_key="none", max_retries=0)
    made = client.embeddings.create(
        model="tiny", input=["a red circle", "two"]
    )  # base64 by default
    inputs = [image_part(photo_png), "a red circle", parts("like ", photo_png)]
    mixed = caller.client.post("/v1/embeddings", json={"input": inputs}).json()["data"]
    with torch.inference_mode():
        pixels = normalise(decode_image(photo_png), engine.config.vision.image_size)
        image_D = unit(engine.model.encode_images(pixels[None])[0])
        text_D, two_D = map(unit, engine.regress_image(["a red circle", "two"]))
        both_D = unit(engine.regress_image([["like ", photo_png]])[0])
    for found, expected_D in (
        (made.data[0].embedding, text_D),
        (made.data[1].embedding, two_D),
        (mixed[0]["embedding"], image_D),
        (mixed[1]["embedding"], text_D),
        (mixed[2]["embedding"], both_D),
    ):
        assert found == pytest.approx(expected_D.tolist(), abs=1e-4)


@pytest.mark.parametrize(
    ("path", "body", "status", "param", "words"),
    [
        ("rank", {"prompt": "a"}, 400, "candidates", "missing"),
        ("rank", {"prompt": "a", "candidates": []}, 400, "candidates", "at least 1"),
        ("rank", {"prompt": "a", "candidates": ["b", " "]}, 400, "candidates.1", "visible"),
        ("rank", {"prompt": "a", "candidates": ["[IMG]"]}, 400, "candidates.0", "[IMG]"),
        ("rank", {"prompt": "", "candidates": ["a"]}, 400, "prompt", "empty"),
        ("rank", {"prompt": "a", "candidates": ["a"] * 1001}, 400, "candidates", "1001"),
        ("rank", {"prompt": "a " * 3000, "candidates": ["a"]}, 400, "prompt", "1024"),
        ("rank", {"prompt": "a", "candidates": ["a"], "score": "mean"}, 400, "score", "released"),
        ("embeddings", {}, 400, "input", "missing"),
        ("embeddings", {"input": []}, 400, "input", "at least 1"),
        ("embeddings", {"input": [""]}, 400, "input.0", "empty"),
        ("embeddings", {"input": ["a"], "dimensions": 3}, 400, "dimensions", "null"),
        ("embeddings", {"input": ["a"], "model": "b"}, 404, "model", "tiny"),
        (
            "embeddings",
            {
                "input": [
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,PGh0bWw+"}}
                ]
            },
            422,
            "input.0.image_url.url",
            "not an image",
        ),
    ],
)
def test_a_wrong_request_names_its_field(
    caller: Caller, path: str, body: dict[str, Any], status: int, param: str, words: str
) -> None:
    found = error_of(caller.client.post(f"/v1/{path}", json=body))
    assert found[:2] == (status, param) and words in found[2], found


def test_every_field_of_the_client_is_known() -> None:
    fields = get_type_hints(embedding_create_params.EmbeddingCreateParams)
    assert set(fields) <= set(EMBED_KNOWN[""]), set(fields) - set(EMBED_KNOWN[""])
