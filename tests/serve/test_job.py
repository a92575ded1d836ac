"""`jobs/serve.py` as a program: alone, under `ray job submit`, with wrong arguments."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from jobs import build_miniworld
from jobs.serve import main
from tests.exit_codes import exit_code
from tests.serve.conftest import Caller, error_of, parts
from tests.servers.web import WebServer, response

START_S = 400  # a start of Ray and of the model, on a machine that is busy with other things


def command(repository: Path, *arguments: str) -> list[str]:
    return [sys.executable, str(repository / "jobs/serve.py"), *arguments]


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    help_text = capsys.readouterr().out
    assert ended.value.code == 0
    for option in ("--model", "--host", "--port", "--num-replicas", "--fetch-images"):
        assert option in help_text
    assert "--fetch.deadline-s" in help_text and "--limits.max-images" in help_text
    assert "OpenAI client" in help_text


def test_the_guide_names_options_that_exist(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    known = set(re.findall(r"--[a-z][a-z.-]*[a-z]", capsys.readouterr().out))
    guide = (repository / "docs/serving.md").read_text()
    named = set(re.findall(r"--[a-z][a-z.-]*[a-z]", guide)) - {"--working-dir", "--tokenizer"}
    groups = {"--limits", "--fetch"}
    assert len(named) > 10 and named - groups <= known


def test_a_wrong_limit_is_named(tiny_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(main, ["--model", tiny_dir, "--limits.timeout-s", "0"]) == 2
    assert "timeout_s is 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--port", "70000"], "--port is 70000"),
        (["--num-replicas", "0"], "num_replicas is 0"),
        (["--device", "cuda"], "--num-gpus 0"),
        (
            ["--model", "nowhere"],
            "no model at nowhere: there is no such folder; a model is a folder",
        ),
    ],
)
def test_wrong_arguments_are_named(
    tiny_dir: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--model", str(tiny_dir), *arguments]) == 2
    assert words in capsys.readouterr().err


def test_a_busy_port_is_said_in_a_line_before_anything_starts(
    tiny_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["--model", str(tiny_dir), "--port", str(port)]) == 2
        error = capsys.readouterr().err
        world = ["--out", str(tmp_path / "world"), "--serve", "--port", str(port)]
        assert build_miniworld.main(world) == 2
    assert error.startswith(
        f"error: cannot listen on 127.0.0.1, port {port}: Address already in use"
    )
    assert error.count("\n") == 1 and "--port" in error
    assert not (tmp_path / "world").exists()


@pytest.mark.parametrize(
    ("file", "keep", "words"),
    [
        ("model.safetensors", 20_000, "model.safetensors is broken"),
        ("model.safetensors", None, "model.safetensors is absent"),
        ("tokenizer.model", None, "tokenizer.model is absent"),
        ("config.json", 30, "config.json: "),
        ("decoder/unet/config.json", 30, "unet/config.json is no configuration of a visual"),
        ("decoder/vae/config.json", None, "vae/config.json is no configuration of a visual"),
    ],
)
def test_an_incomplete_model_is_refused_before_anything_starts(
    tiny_dir: Path,
    tmp_path: Path,
    file: str,
    keep: int | None,
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    broken = shutil.copytree(tiny_dir, tmp_path / "model")
    if keep is None:
        (broken / file).unlink()
    else:
        os.truncate(broken / file, keep)
    assert main(["--model", str(broken)]) == 2
    assert words in capsys.readouterr().err


@contextmanager
def running(arguments: list[str], log: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The program until it is ready, and its address."""
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    with log.open("wb") as output:
        program = subprocess.Popen(
            arguments, stdout=output, stderr=subprocess.STDOUT, env=environment
        )
    try:
        deadline = time.monotonic() + START_S
        while not (found := re.search(r"ready: (http://\S+?)/ ", log.read_text())):
            assert program.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.3)
        yield program, found[1]
    finally:
        if program.poll() is None:
            program.terminate()
            try:
                program.wait(60)
            except subprocess.TimeoutExpired:
                program.terminate()  # a second signal ends it at once, also while it loads the model
                program.wait(60)


@pytest.mark.slow
def test_the_job_alone_serves_and_fetches_until_it_is_stopped(
    repository: Path, tiny_dir: Path, tmp_path: Path, photo_png: bytes
) -> None:
    pages = {"/photo.png": response(200, photo_png), "/gone.png": response(404)}
    with WebServer(pages) as web:
        arguments = ["--model", str(tiny_dir), "--port", "0", "--name", "small", "--fetch-images"]
        arguments += ["--fetch.allow-host", web.allow("images.example")]
        with running(command(repository, *arguments), tmp_path / "log") as (program, url):
            with httpx.Client(base_url=url, timeout=60) as client:
                caller = Caller(client)
                whole = caller.text(parts(photo_png, "what?"), max_tokens=4, model="small")
                fetched = at(web.url("/photo.png", "images.example"))
                assert caller.text([fetched, *parts("what?")], max_tokens=4) == whole
                for address, words in (
                    (web.url("/gone.png", "images.example"), "404"),
                    ("http://127.0.0.1:1/a.png", "could not be fetched"),
                ):
                    status, _, text = error_of(caller.ask([at(address)]))
                    assert status == 400 and words in text
            program.send_signal(signal.SIGINT)
            assert program.wait(60) == 0
    assert "stopping" in (tmp_path / "log").read_text()
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


@pytest.mark.slow
def test_the_client_library_of_openai_is_served(caller: Caller, photo_png: bytes) -> None:
    openai = pytest.importorskip("openai", reason="pip install openai for this test")
    client = openai.OpenAI(base_url=f"{caller.client.base_url}/v1", api_key="none", max_retries=0)
    assert [model.id for model in client.models.list()] == ["tiny"]
    messages = [{"role": "user", "content": parts(photo_png, "describe the image")}]
    create = client.chat.completions.create
    whole = create(model="tiny", messages=messages, max_tokens=12)
    assert whole.choices[0].message.role == "assistant" and whole.usage.completion_tokens <= 12
    chunks = list(create(model="tiny", messages=messages, max_tokens=12, stream=True))
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(pieces) == whole.choices[0].message.content
    generated = create(
        model="tiny",
        messages=messages,
        modalities=["image"],
        extra_body={"image": {"num_inference_steps": 1}},
    )
    (part,) = generated.choices[0].message.images
    assert part["image_url"]["url"].startswith("data:image/png;base64,")
    with pytest.raises(openai.NotFoundError, match='this server only has "tiny"'):
        create(model="gpt-4", messages=messages)
    with pytest.raises(openai.BadRequestError, match="max_tokens is 5000"):
        create(model="tiny", messages=messages, max_tokens=5000)


def at(url: str) -> dict[str, object]:
    return {"type": "image_url", "image_url": {"url": url}}
