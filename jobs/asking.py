"""Questions to a served model over HTTP, as any OpenAI client would put them."""

import base64
import io
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipelines.miniworld.language import caption, questions
from pipelines.miniworld.render import render
from pipelines.miniworld.scene import Scene, draw_scene

SIDE = 192


@dataclass(frozen=True)
class HeldOut:
    """A picture that the model was not trained on, with its scene."""

    scene: Scene
    png: bytes


@dataclass(frozen=True)
class Asked:
    """What was asked, what was answered, what would have been right."""

    name: str
    told: str


class AskingError(RuntimeError):
    """The server did not answer, or not in the form it promises."""


def held_out_picture(seed: int, max_things: int = 1) -> HeldOut:
    """A picture of another seed than the training's."""
    scene = draw_scene(np.random.default_rng(seed), max_things=max_things)
    buffer = io.BytesIO()
    Image.fromarray(render(scene, SIDE)).save(buffer, "PNG")
    return HeldOut(scene, buffer.getvalue())


def wait_until_healthy(
    address: str, is_running: Callable[[], bool], deadline_s: float = 120
) -> None:
    """Return when the server answers; an error when it ends or does not come up in time."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        if not is_running():
            raise AskingError("the server ended before it answered; its output is above")
        try:
            with urllib.request.urlopen(f"{address}/healthz", timeout=5) as response:
                if response.status == 200:
                    return
        except OSError:
            time.sleep(0.5)
    raise AskingError(f"{address}/healthz did not answer within {deadline_s:.0f} s")


def ask_all(address: str, picture: HeldOut, folder: Path) -> list[Asked]:
    """A caption, an answer and a picture; pictures are stored in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "asked.png").write_bytes(picture.png)
    shown = {"type": "image_url", "image_url": {"url": _data_url(picture.png)}}
    truth = caption(picture.scene)
    told = _text(_ask(address, [shown], max_tokens=24))
    question = questions(picture.scene, np.random.default_rng(0))[0]
    answer = _text(_ask(address, [shown, _part(question.question)], max_tokens=6))
    drawn = _picture(_ask(address, [_part(f"{_sentence(truth)}")], modalities=["image"]))
    (folder / "drawn.png").write_bytes(drawn)
    width, height = Image.open(io.BytesIO(drawn)).size
    return [
        Asked("caption", f"“{told}” (the picture shows {truth})"),
        Asked("answer", f"“{answer}” to “{question.question}” ({question.answer})"),
        Asked("picture", f"{width} x {height} of “{truth}”: {folder / 'drawn.png'}"),
    ]


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


def _part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def _data_url(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _ask(address: str, content: list[Any], **options: Any) -> Any:
    body = json.dumps({"messages": [{"role": "user", "content": content}], **options}).encode()
    request = urllib.request.Request(
        f"{address}/v1/chat/completions", body, {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return json.load(response)["choices"][0]["message"]["content"]
    except urllib.error.HTTPError as error:
        raise AskingError(f"status {error.code}: {error.read().decode()[:500]}") from error


def _text(content: Any) -> str:
    if not isinstance(content, str) or not content.strip():
        raise AskingError(f"expected a text, got {str(content)[:200]!r}")
    return content.strip()


def _picture(content: Any) -> bytes:
    parts = content if isinstance(content, list) else []
    urls = [p["image_url"]["url"] for p in parts if p.get("type") == "image_url"]
    if len(urls) != 1:
        raise AskingError(f"expected one picture, got {str(content)[:200]!r}")
    return base64.b64decode(urls[0].partition(",")[2])
