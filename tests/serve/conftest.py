"""The HTTP API over a real engine, on a real socket, without Ray; and a client for it."""

import base64
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import pytest
import uvicorn
from PIL import Image

import emu
from emu.generate.engine import Engine
from emu.generate.sampling import to_png
from emu.serve.api import Access, build_api
from emu.serve.backend import ModelCard
from emu.serve.limits import Limits
from emu.serve.local import LocalBackend
from emu.serve.media import Fetch
from tests.generate.tiny import write_tiny_model

CHAT = "/v1/chat/completions"
OPEN = Access()


@dataclass(frozen=True)
class Caller:
    """A client of one server; a body is a chat request with one message unless given whole."""

    client: httpx.Client

    def ask(self, content: Any, **fields: Any) -> httpx.Response:
        """The response to one user message."""
        return self.send({"messages": [{"role": "user", "content": content}], **fields})

    def send(self, body: Any) -> httpx.Response:
        """The response to a body."""
        return self.client.post(CHAT, json=body)

    def text(self, content: Any, **fields: Any) -> str:
        """The text of a whole reply."""
        response = self.ask(content, **fields)
        assert response.status_code == 200, response.text
        return response.json()["choices"][0]["message"]["content"]

    def stream(self, content: Any, **fields: Any) -> list[dict[str, Any]]:
        """The chunks of a streamed reply; the last line must be `[DONE]`."""
        body = {"messages": [{"role": "user", "content": content}], "stream": True, **fields}
        with self.client.stream("POST", CHAT, json=body) as response:
            assert response.status_code == 200, response.read()
            assert response.headers["content-type"].startswith("text/event-stream")
            lines = [line for line in response.iter_lines() if line]
        assert all(line.startswith("data: ") for line in lines)
        assert lines[-1] == "data: [DONE]"
        return [json.loads(line[6:]) for line in lines[:-1]]


def error_of(response: httpx.Response) -> tuple[int, str | None, str]:
    """Status, field and message of an error in OpenAI's form."""
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return response.status_code, error["param"], error["message"]


def image_part(data: bytes, kind: str = "image/png") -> dict[str, Any]:
    """A content part with the image in a data URL."""
    url = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("served") / "tiny")


@pytest.fixture(scope="session")
def engine(tiny_dir: Path) -> Engine:
    return emu.load(tiny_dir)


@pytest.fixture(scope="session")
def photo_png() -> bytes:
    ramp = Image.linear_gradient("L").resize((90, 70))
    return to_png(Image.merge("RGB", (ramp, ramp.rotate(180), ramp)))


@contextlib.contextmanager
def serving(
    engine: Engine,
    card: ModelCard,
    limits: Limits,
    fetch: Fetch | None,
    access: Access,
    adapters: Mapping[str, Path] = MappingProxyType({}),
) -> Iterator[Caller]:
    """The API on a free port, in a thread, for the duration of the block."""
    port = free_port()
    backend = LocalBackend(engine, 2, limits.max_image_pixels, adapters)
    api = build_api(backend, card, limits, fetch, access)
    server = uvicorn.Server(uvicorn.Config(api, port=port, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield Caller(client)
    finally:
        server.should_exit = True
        thread.join()


Serve = Callable[..., contextlib.AbstractContextManager[Caller]]


@pytest.fixture(scope="session")
def serve_with(engine: Engine, tiny_dir: Path) -> Serve:
    """Opens a server with other limits or with a function that fetches images."""

    def open_server(
        limits: Limits | None = None, fetch: Fetch | None = None, access: Access = OPEN
    ) -> contextlib.AbstractContextManager[Caller]:
        card = ModelCard.of(tiny_dir, engine.config)
        return serving(engine, card, limits or Limits(), fetch, access)

    return open_server


@pytest.fixture(scope="session")
def caller(serve_with: Serve) -> Iterator[Caller]:
    """A server with the default limits that fetches no images."""
    with serve_with() as caller:
        yield caller


def parts(*pieces: str | bytes) -> Sequence[dict[str, Any]]:
    """Content parts of texts and images."""
    return [{"type": "text", "text": p} if isinstance(p, str) else image_part(p) for p in pieces]
