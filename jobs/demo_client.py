"""The client of the demo: sends requests to the served model as any OpenAI client would."""

from __future__ import annotations

import base64
import io
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from jobs.demo_scores import Reply, data_url
from pipelines.miniworld.config import PairsConfig
from pipelines.miniworld.pairs import Pair, Split, caption_sentence, sample_pair
from pipelines.miniworld.reading import read_image
from pipelines.miniworld.render import render

GUIDANCE_SCALE = 2.0
STEPS = 20  # of the visual decoder


class ClientError(RuntimeError):
    """The server did not respond, or not in the form that its API promises."""


def held_out_pair(config: PairsConfig, index: int) -> Pair:
    """A scene that no training set of `build pairs` contains, whatever its seed and size."""
    return sample_pair(config, index, Split.HELD_OUT)


def wait_until_healthy(
    address: str, is_running: Callable[[], bool], deadline_s: float = 180
) -> None:
    """Returns when the server responds; raises `ClientError` if it ends or does not respond in time."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        if not is_running():
            raise ClientError("the server ended before it responded; its output is above")
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5) as response:
                if response.status == 200:
                    return
        except OSError:
            time.sleep(0.3)
    raise ClientError(f"{address}/health did not respond within {deadline_s:.0f} s")


def request_reply(address: str, pair: Pair, number: int, side_px: int) -> Reply:
    """A caption of the image, an answer to a question about it, and an image generated from its true caption.

    `number` chooses the question and the noise of the generated image.
    """
    image = _png(render(pair.scene, side_px))
    part = {"type": "image_url", "image_url": {"url": data_url(image)}}
    question = pair.questions[number % len(pair.questions)]
    said = _complete(address, [part], max_tokens=24, stop=["."])
    answer = _complete(address, [part, _text_part(question.question)], max_tokens=8, stop=["."])
    generated = _image(
        _complete(
            address,
            [_text_part(caption_sentence(pair.scene))],
            modalities=["image"],
            seed=number,
            image={"guidance_scale": GUIDANCE_SCALE, "num_inference_steps": STEPS},
        )
    )
    with Image.open(io.BytesIO(generated)) as opened:
        reading = read_image(np.asarray(opened.convert("RGB")))
    return Reply(pair, image, _text(said), question, _text(answer), generated, reading)


def _png(pixels_HWC: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels_HWC).save(buffer, "PNG")
    return buffer.getvalue()


def _text_part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def _complete(address: str, content: list[Any], **options: Any) -> Any:
    """The message that replies to one user message."""
    body = json.dumps({"messages": [{"role": "user", "content": content}], **options}).encode()
    request = urllib.request.Request(
        f"{address}/v1/chat/completions", body, {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return json.load(response)["choices"][0]["message"]
    except urllib.error.HTTPError as error:
        raise ClientError(f"status {error.code}: {error.read().decode()[:500]}") from error


def _text(message: Any) -> str:
    content = message["content"]
    if not isinstance(content, str):
        raise ClientError(f"expected a text, got {str(content)[:200]!r}")
    return content.strip()


def _image(message: Any) -> bytes:
    urls = [part["image_url"]["url"] for part in message.get("images", ())]
    if len(urls) != 1:
        raise ClientError(f"expected one image, got {str(message)[:200]!r}")
    return base64.b64decode(urls[0].partition(",")[2])
