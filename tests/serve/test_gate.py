"""What every request passes first: keys, limits of all requests together, CORS, health, metrics, the description."""

import asyncio
import hashlib
import socket
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from emu.generate.engine import Engine
from emu.serve.api import Access, build_api
from emu.serve.backend import ModelCard
from emu.serve.errors import ApiError
from emu.serve.keys import ApiKey, Keys, load_keys
from emu.serve.limits import Limits
from emu.serve.local import LocalBackend
from schemas.validation import ConfigError
from tests.serve.conftest import CHAT, Caller, Serve, error_of

SECRET = "correct horse battery staple"


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def access(**fields: Any) -> Access:
    return Access((ApiKey("alice", digest(SECRET), **fields),))


BODY = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}


def test_a_key_is_needed_where_there_are_keys(serve_with: Serve) -> None:
    with serve_with(access=access()) as caller:
        for headers, code in (
            ({}, "missing_api_key"),
            ({"Authorization": SECRET}, "missing_api_key"),
            (bearer("guess"), "invalid_api_key"),
        ):
            response = caller.client.post(CHAT, json=BODY, headers=headers)
            assert (response.status_code, response.json()["error"]["code"]) == (401, code)
            assert response.headers["WWW-Authenticate"] == "Bearer"
            assert caller.client.get("/v1/models", headers=headers).status_code == 401
        assert caller.client.post(CHAT, json=BODY, headers=bearer(SECRET)).status_code == 200
        assert caller.client.get("/health").status_code == 200
        address = f"{caller.client.base_url}/v1"
        wrong = openai.OpenAI(base_url=address, api_key="guess", max_retries=0)
        with pytest.raises(openai.AuthenticationError):
            wrong.models.list()
        right = openai.OpenAI(base_url=address, api_key=SECRET, max_retries=0)
        assert [model.id for model in right.models.list()] == ["tiny"]


def test_a_key_is_needed_below_a_prefix(engine: Engine, tiny_dir: Path) -> None:
    card = ModelCard.of(tiny_dir, engine.config)
    api = build_api(LocalBackend(engine, 1), card, Limits(), access=access())

    async def statuses() -> list[int]:
        transport = httpx.ASGITransport(api, root_path="/emu")
        async with httpx.AsyncClient(transport=transport, base_url="http://a/emu") as client:
            without = [await client.post(CHAT, json=BODY), await client.get("/v1/models")]
            headers = bearer(SECRET)
            given = [
                await client.post(CHAT, json=BODY, headers=headers),
                await client.get("/v1/models", headers=headers),
                await client.post("/v1/nothing", headers=headers),
            ]
            return [response.status_code for response in (*without, *given)]

    assert asyncio.run(statuses()) == [401, 401, 200, 200, 404]


def test_an_inactive_key_is_refused(serve_with: Serve) -> None:
    with serve_with(access=access(is_active=False)) as caller:
        response = caller.client.post(CHAT, json=BODY, headers=bearer(SECRET))
        assert response.status_code == 403 and "alice" in error_of(response)[2]


def test_a_key_has_a_rate(serve_with: Serve) -> None:
    with serve_with(access=access(requests_per_minute=2)) as caller:
        statuses = [caller.client.post(CHAT, json=BODY, headers=bearer(SECRET)) for _ in range(3)]
        assert [response.status_code for response in statuses] == [200, 200, 429]
        assert error_of(statuses[2])[2] == "the key alice may send 2 requests per minute"
        assert 1 <= int(statuses[2].headers["Retry-After"]) <= 30


def test_the_rate_of_a_key_grows_back() -> None:
    now = 0.0
    keys = Keys([ApiKey("bob", digest("b"), requests_per_minute=6)], lambda: now)
    for _ in range(6):
        keys.leave(keys.admit("Bearer b"))
    with pytest.raises(ApiError) as caught:
        keys.admit("Bearer b")
    assert caught.value.response.retry_after_s == 10
    now = 9.9
    with pytest.raises(ApiError):
        keys.admit("Bearer b")
    now = 10.1
    assert keys.admit("bearer  b") == "bob"
    now = 10_000.0
    for _ in range(6):  # never more than a minute's worth
        keys.admit("Bearer b")
    with pytest.raises(ApiError):
        keys.admit("Bearer b")


def test_a_key_has_a_number_of_parallel_requests() -> None:
    keys = Keys([ApiKey("bob", digest("b"), parallel_requests=2), ApiKey("eve", digest("e"))])
    assert [keys.admit("Bearer b"), keys.admit("Bearer b"), keys.admit("Bearer e")] == [
        "bob",
        "bob",
        "eve",
    ]
    with pytest.raises(ApiError, match="2 requests running") as caught:
        keys.admit("Bearer b")
    assert caught.value.response.status == 429
    keys.leave("bob")
    assert keys.admit("Bearer b") == "bob"


def test_keys_are_read_from_toml(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(
        f'[alice]\nsha256 = "{digest("a")}"\nrequests_per_minute = 60\n[bob]\nsha256 = "{digest("b")}"\n'
    )
    assert load_keys(path) == (
        ApiKey("alice", digest("a"), requests_per_minute=60),
        ApiKey("bob", digest("b")),
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no key in it"),
        ("a = 1", "each key is a table"),
        ("[a", "not a file of API keys"),
        ("[a]\nrate = 3", r"\[a\]: unknown field rate"),
        ("[a]\nis_active = true", r"\[a\]: sha256 is missing"),
        ('[a]\nsha256 = "secret"', "sha256 is 'secret'"),
        (f'[a]\nsha256 = "{"0" * 64}"\nparallel_requests = 0', "parallel_requests is 0"),
    ],
)
def test_a_wrong_file_of_keys_is_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "keys.toml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_keys(tmp_path / "keys.toml")


def test_pages_of_other_origins_are_refused_unless_allowed(
    caller: Caller, serve_with: Serve
) -> None:
    ask = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    assert caller.client.options(CHAT, headers=ask).status_code == 405
    with serve_with(access=Access(origins=["https://app.example"])) as open_caller:
        preflight = open_caller.client.options(CHAT, headers=ask)
        assert preflight.headers["access-control-allow-origin"] == "https://app.example"
        answer = open_caller.client.post(CHAT, json=BODY, headers={"Origin": "https://app.example"})
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        other = open_caller.client.post(CHAT, json=BODY, headers={"Origin": "https://x.example"})
        assert "access-control-allow-origin" not in other.headers


@contextmanager
def held(engine: Engine):
    """Inside the block, the engine stands still at its next token; `go` lets it run."""
    go, is_busy = threading.Event(), threading.Event()

    def hold(*_: object) -> None:
        is_busy.set()
        go.wait(30)

    hook = engine.model.language.lm.lm_head.register_forward_hook(hold)
    try:
        yield is_busy, go
    finally:
        go.set()
        hook.remove()


def in_progress(caller: Caller) -> float:
    """The requests that the server handles, by its own count."""
    lines = caller.client.get("/metrics").text.splitlines()
    return next(
        float(line.split()[-1]) for line in lines if line.startswith("emu_requests_in_progress ")
    )


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_parallel_requests_and_bytes_are_bounded(serve_with: Serve, engine: Engine) -> None:
    with (
        serve_with(Limits(max_parallel=2, max_bytes_in_flight=100_000)) as caller,
        held(engine) as (busy, go),
    ):
        asking = [
            threading.Thread(target=caller.ask, args=("a",), kwargs={"max_tokens": 1})
            for _ in range(2)
        ]
        asking[0].start()
        assert busy.wait(20)
        response = caller.ask("x" * 100_000)
        assert response.status_code == 503 and "bytes" in error_of(response)[2]
        before = in_progress(caller)
        asking[1].start()
        wait_for(lambda: in_progress(caller) == before + 1)
        response = caller.ask("a")
        assert response.status_code == 503
        assert error_of(response)[2].startswith("2 requests are handled")
        assert response.headers["Retry-After"] == "5"
        assert caller.client.get("/health").status_code == 200
        go.set()
        for thread in asking:
            thread.join()
        assert caller.ask("a", max_tokens=1).status_code == 200


def test_a_caller_that_hangs_up_frees_its_pages(serve_with: Serve, engine: Engine) -> None:
    pool = engine.start_batching().scheduler.pool
    body = BODY | {"max_tokens": 1000, "stop": ["never to be said"]}
    steps = 0

    def count(*_: object) -> None:
        nonlocal steps
        steps += 1
        time.sleep(0.005)

    with serve_with() as caller:
        hook = engine.model.language.lm.lm_head.register_forward_hook(count)
        try:
            for _ in range(3):
                with pytest.raises(httpx.ReadTimeout):
                    caller.client.post(CHAT, json=body, timeout=0.3)
            wait_for(lambda: pool.num_used == 0)
        finally:
            hook.remove()
    assert steps < 1500, "three whole replies take 3,000 steps"


def test_a_slow_reader_holds_no_slot(serve_with: Serve, engine: Engine) -> None:
    pool = engine.start_batching().scheduler.pool
    with serve_with() as caller:
        url = caller.client.base_url
        with socket.create_connection((url.host, url.port or 80)) as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            text = '{"messages":[{"role":"user","content":"a"}],"stream":true,"max_tokens":400}'
            head = f"POST {CHAT} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            slow.sendall(f"{head}Content-Length: {len(text)}\r\n\r\n{text}".encode())
            assert slow.recv(1)
            wait_for(lambda: pool.num_used == 0)
            assert caller.ask("a", max_tokens=1).status_code == 200


def test_a_large_body_is_refused_before_it_is_read(serve_with: Serve) -> None:
    with serve_with(Limits(max_body_bytes=1000)) as caller:
        url = caller.client.base_url
        with socket.create_connection((url.host, url.port or 80)) as large:
            head = f"POST {CHAT} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            large.sendall(f"{head}Content-Length: 1000000000\r\n\r\n".encode())
            answer = b""
            while piece := large.recv(4096):  # the server closes the connection
                answer += piece
        assert answer.startswith(b"HTTP/1.1 413") and b"body_too_large" in answer


def test_a_body_that_drips_is_given_up(serve_with: Serve) -> None:
    with serve_with(Limits(body_timeout_s=0.3)) as caller:
        url = caller.client.base_url
        with socket.create_connection((url.host, url.port or 80)) as drip:
            head = f"POST {CHAT} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            drip.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
            assert drip.recv(4096).startswith(b"HTTP/1.1 408")


def test_metrics_tell_what_happened(serve_with: Serve) -> None:
    with serve_with() as caller:
        caller.ask("a", max_tokens=3)
        caller.ask("a", modalities=["image"], image={"num_inference_steps": 1})
        caller.ask("a", max_tokens=0)
        caller.client.get("/v1/nothing")
        text = caller.client.get("/metrics").text
    for line in (
        'emu_requests_total{method="POST",route="/v1/chat/completions",status="200"} 2.0',
        'emu_requests_total{method="POST",route="/v1/chat/completions",status="400"} 1.0',
        'emu_requests_total{method="other",route="other",status="404"} 1.0',
        "emu_first_token_seconds_count 1.0",
        "emu_images_total 1.0",
        "emu_image_seconds_count 1.0",
        'emu_engine_running{replica="0"} 0.0',
        'emu_engine_pages_used{replica="0"} 0.0',
        "emu_requests_in_progress 1.0",
    ):
        assert line in text, line
    assert 'emu_request_seconds_bucket{le="0.005",route="/health"}' not in text


def test_the_api_is_described(caller: Caller) -> None:
    description = caller.client.get("/openapi.json").json()
    paths = description["paths"]
    for path in (
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/images/generations",
        "/v1/images/edits",
        "/v1/rank",
        "/v1/embeddings",
    ):
        (content,) = paths[path]["post"]["requestBody"]["content"].values()
        assert content["schema"]["properties"]
    assert "$ref" not in str(paths["/v1/chat/completions"]["post"]["requestBody"])
    assert "/openapi.json" in caller.client.get("/docs").text
