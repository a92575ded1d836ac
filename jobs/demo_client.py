"""The client of the demo: sends requests as any OpenAI client would, and writes a page of the replies."""

import base64
import io
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from pipelines.miniworld.language import caption, content_words, questions
from pipelines.miniworld.render import render
from pipelines.miniworld.scene import Scene, sample_scene

SIDE = 192
TEMPLATE = Path(__file__).with_name("demo_replies.html.jinja")


@dataclass(frozen=True)
class HeldOutImage:
    """An image that the model was not trained on, with its scene."""

    scene: Scene
    png: bytes


@dataclass(frozen=True)
class Replies:
    """The replies of the served model to one held-out image, and the correct ones."""

    true_caption: str
    caption: str
    question: str
    true_answer: str
    answer: str
    image: bytes
    """The held-out image (PNG)."""
    generated: bytes
    """The image that the model generated from `true_caption` (PNG)."""


class ClientError(RuntimeError):
    """The server did not respond, or not in the form that its API promises."""


def held_out_image(seed: int, max_things: int = 1) -> HeldOutImage:
    """An image from another seed than that of the training data."""
    scene = sample_scene(np.random.default_rng(seed), max_things=max_things)
    buffer = io.BytesIO()
    Image.fromarray(render(scene, SIDE)).save(buffer, "PNG")
    return HeldOutImage(scene, buffer.getvalue())


def wait_until_healthy(
    address: str, is_running: Callable[[], bool], deadline_s: float = 120
) -> None:
    """Returns when the server responds; raises `ClientError` if it ends or does not respond in time."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        if not is_running():
            raise ClientError("the server ended before it responded; its output is above")
        try:
            with urllib.request.urlopen(f"{address}/healthz", timeout=5) as response:
                if response.status == 200:
                    return
        except OSError:
            time.sleep(0.5)
    raise ClientError(f"{address}/healthz did not respond within {deadline_s:.0f} s")


def request_replies(
    address: str, image: HeldOutImage, seed: int, guidance_scale: float = 3.0
) -> Replies:
    """A caption of the image, an answer to a question about it, and an image generated from its true caption.

    `seed` determines the noise of the generated image.
    """
    part = {"type": "image_url", "image_url": {"url": _data_url(image.png)}}
    true_caption = caption(image.scene)
    question = questions(image.scene, np.random.default_rng(0))[0]
    told = _text(_complete(address, [part], max_tokens=24, stop=["."]))
    answer = _complete(address, [part, _text_part(question.question)], max_tokens=6, stop=["."])
    generated = _complete(
        address,
        [_text_part(_sentence(true_caption))],
        modalities=["image"],
        seed=seed,
        image={"guidance_scale": guidance_scale},
    )
    return Replies(
        true_caption,
        told,
        question.question,
        question.answer,
        _text(answer),
        image.png,
        _image(generated),
    )


def count_correct_words(replies: Sequence[Replies]) -> tuple[int, int]:
    """How many words of the true captions (colour, size, shape, position, background) were said, of all."""
    truths = [content_words(each.true_caption) for each in replies]
    correct = [
        len(truth & content_words(each.caption))
        for truth, each in zip(truths, replies, strict=True)
    ]
    return sum(correct), sum(map(len, truths))


def write_replies(replies: Sequence[Replies], folder: Path, remark: str = "") -> Path:
    """Writes the images as files, and a page that shows them beside the replies; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, each in enumerate(replies, 1):
        (folder / f"input{number}.png").write_bytes(each.image)
        (folder / f"generated{number}.png").write_bytes(each.generated)
    templates = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    templates.filters["data_url"] = _data_url
    template = templates.from_string(TEMPLATE.read_text("utf-8"))
    page = folder / "replies.html"
    page.write_text(template.render(replies=replies, remark=remark), "utf-8")
    return page


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


def _text_part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def _data_url(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _complete(address: str, content: list[Any], **options: Any) -> Any:
    """The content of the reply to one user message."""
    body = json.dumps({"messages": [{"role": "user", "content": content}], **options}).encode()
    request = urllib.request.Request(
        f"{address}/v1/chat/completions", body, {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return json.load(response)["choices"][0]["message"]["content"]
    except urllib.error.HTTPError as error:
        raise ClientError(f"status {error.code}: {error.read().decode()[:500]}") from error


def _text(content: Any) -> str:
    if not isinstance(content, str) or not content.strip():
        raise ClientError(f"expected a text, got {str(content)[:200]!r}")
    return content.strip()


def _image(content: Any) -> bytes:
    parts = content if isinstance(content, list) else []
    urls = [p["image_url"]["url"] for p in parts if p.get("type") == "image_url"]
    if len(urls) != 1:
        raise ClientError(f"expected one image, got {str(content)[:200]!r}")
    return base64.b64decode(urls[0].partition(",")[2])
