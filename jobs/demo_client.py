"""Questions to a served model over HTTP, as any OpenAI client would put them."""

import base64
import html
import io
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipelines.miniworld.language import caption, content_words, questions
from pipelines.miniworld.render import render
from pipelines.miniworld.scene import Scene, sample_scene

SIDE = 192
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>What the model replied</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>:root{{color-scheme:light dark}}
body{{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem}}
td{{padding:.6rem 1rem;vertical-align:middle}}th{{text-align:left;padding:0 1rem}}
tr{{border-bottom:1px solid #8885}}table{{border-collapse:collapse}}small{{opacity:.7}}
img{{width:160px;height:160px;border-radius:8px;object-fit:cover;display:block}}
@media (max-width:44rem){{tr{{display:grid;grid-template-columns:1fr 1fr}}th{{display:none}}
td{{padding:.6rem .4rem}}img{{width:100%;height:auto;aspect-ratio:1}}
td:last-child::before{{content:"drawn when asked for: ";font-weight:bold}}}}</style>
<h1>What the model replied</h1>
<p>Pictures of a seed that it was not trained on. In brackets: the right answer. {remark}</p>
<table><tr><th>shown<th>said<th>drawn<th>when asked for</tr>
{rows}
</table></html>
"""


@dataclass(frozen=True)
class HeldOut:
    """A picture that the model was not trained on, with its scene."""

    scene: Scene
    png: bytes


@dataclass(frozen=True)
class Asked:
    """One held-out picture with what the served model said of it, and what would have been right."""

    truth: str
    told: str
    question: str
    right_answer: str
    answer: str
    shown: bytes
    drawn: bytes
    """What the model drew when given `truth` (PNG, as `shown`)."""


class AskingError(RuntimeError):
    """The server did not answer, or not in the form it promises."""


def held_out_picture(seed: int, max_things: int = 1) -> HeldOut:
    """A picture of another seed than the training's."""
    scene = sample_scene(np.random.default_rng(seed), max_things=max_things)
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


def ask_about(address: str, picture: HeldOut, seed: int, scale: float = 3.0) -> Asked:
    """A caption of the picture, an answer to a question about it, and a picture of its true caption.

    The drawing starts from the noise of `seed`; `scale` is its guidance scale.
    """
    shown = {"type": "image_url", "image_url": {"url": _data_url(picture.png)}}
    truth = caption(picture.scene)
    question = questions(picture.scene, np.random.default_rng(0))[0]
    told = _text(_ask(address, [shown], max_tokens=24, stop=["."]))
    answer = _text(_ask(address, [shown, _part(question.question)], max_tokens=6, stop=["."]))
    drawing = _ask(
        address,
        [_part(_sentence(truth))],
        modalities=["image"],
        seed=seed,
        image={"guidance_scale": scale},
    )
    return Asked(
        truth, told, question.question, question.answer, answer, picture.png, _picture(drawing)
    )


def words_right(asked: Sequence[Asked]) -> tuple[int, int]:
    """How many of the true captions' words (colour, size, shape, place, background) were told, of all."""
    truths = [content_words(each.truth) for each in asked]
    told = [
        len(truth & content_words(each.told)) for truth, each in zip(truths, asked, strict=True)
    ]
    return sum(told), sum(map(len, truths))


def write_replies(asked: Sequence[Asked], folder: Path, remark: str = "") -> Path:
    """The pictures as files, and a page that shows them beside what was said; the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, each in enumerate(asked, 1):
        (folder / f"shown{number}.png").write_bytes(each.shown)
        (folder / f"drawn{number}.png").write_bytes(each.drawn)
        texts = (each.truth, each.told, each.question, each.answer, each.right_answer)
        truth, told, question, answer, right = map(html.escape, texts)
        rows.append(
            f"<tr><td><img src='{_data_url(each.shown)}' alt='{truth}'></td>"
            f"<td><b>{told}</b><br><i>{question}</i> <b>{answer}</b> <small>({right})</small></td>"
            f"<td><img src='{_data_url(each.drawn)}' alt='drawn: {truth}'></td><td>{truth}</td></tr>"
        )
    page = folder / "replies.html"
    page.write_text(PAGE.format(rows="\n".join(rows), remark=html.escape(remark)))
    return page


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
