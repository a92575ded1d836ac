"""Captions rewritten by a server that speaks OpenAI's chat completions; what fails stays as it was, and is counted."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines.core.pipeline import SHARD_KEY
from pipelines.corpora.webvid.rewrite import RewriteCaptions, RewriteConfig
from schemas.validation import ConfigError


class Chat(BaseHTTPRequestHandler):
    """Answers by what the caption says; remembers the requests."""

    seen: list[dict[str, Any]]

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append({"path": self.path, "key": self.headers["Authorization"], **request})
        prompt = request["messages"][0]["content"]
        tries = sum(one["messages"] == request["messages"] for one in self.seen)
        if "slow" in prompt:
            time.sleep(2)
        status = 500 if "broken" in prompt or ("flaky" in prompt and tries == 1) else 200
        status = 400 if "refused" in prompt else status
        text = '"' + prompt.rsplit(": ", 1)[1].capitalize() + '."\n'
        text = "" if "empty" in prompt else "word " * 500 if "long" in prompt else text
        body = json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})
        self.send_response(status)
        self.end_headers()
        self.wfile.write(b"{" if "malformed" in prompt else body.encode())

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def chat_server() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    handler = type("Handler", (Chat,), {"seen": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", handler.seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def table_of(texts: list[str]) -> pa.Table:
    schema = pa.schema([pa.field("text", pa.large_string())]).with_metadata({SHARD_KEY: b"test-0"})
    return pa.table({"text": texts}, schema)


def test_captions_are_rewritten_and_failures_keep_them(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TEST_KEY", "secret")
    words = {
        "a cat": None,
        "a flaky cat": None,
        "a broken cat": "http_500",
        "a refused cat": "http_400",
        "an empty cat": "reply_empty",
        "a long cat": "reply_too_long",
        "a malformed cat": "response_malformed",
        "a slow cat": "timeout",
    }
    with chat_server() as (endpoint, seen):
        config = RewriteConfig(
            model="m", endpoint=endpoint, timeout_s=1.0, retries=1, key_variable="TEST_KEY"
        )
        rewritten = RewriteCaptions(config)(table_of(list(words)))
    assert rewritten["rewrite_error"].to_pylist() == list(words.values())
    assert rewritten["text"].to_pylist() == ["A cat.", "A flaky cat.", *list(words)[2:]]
    assert "shard=test-0 rewritten=2 kept=6" in caplog.text
    assert {one["path"] for one in seen} == {"/v1/chat/completions"}
    assert {one["key"] for one in seen} == {"Bearer secret"}
    assert all((one["model"], one["temperature"]) == ("m", 0) for one in seen)


def test_a_server_that_is_not_there_keeps_the_captions():
    config = RewriteConfig(model="m", endpoint="http://127.0.0.1:9/v1", retries=0)
    rewritten = RewriteCaptions(config)(table_of(["a cat", "a dog"]))
    assert rewritten["rewrite_error"].to_pylist() == ["connection_failed"] * 2
    assert RewriteCaptions(config)(table_of([])).num_rows == 0


@pytest.mark.parametrize(
    "options",
    [
        {"model": "m", "prompt": "Rewrite it."},
        {"endpoint": "http://127.0.0.1/v1"},
        {"model": "m", "endpoint": "127.0.0.1/v1"},
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any]):
    with pytest.raises(ConfigError):
        RewriteConfig(**options)


def test_a_local_model_is_asked_in_the_worker(tmp_path: Path):
    """A model of random weights: what it says is no caption, but equal captions get equal replies."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["[UNK]", *RewriteConfig().prompt.split(), "cat", "dog"]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(tmp_path)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(vocab_size=len(vocabulary), num_hidden_layers=1, eos_token_id=None, **sizes)
    ).save_pretrained(tmp_path)
    rewrite = RewriteCaptions(RewriteConfig(model=str(tmp_path), max_tokens=4))
    found = rewrite(table_of(["a cat", "a dog", "a cat"]))
    assert found["rewrite_error"].to_pylist() == [None] * 3
    texts = found["text"].to_pylist()
    assert texts[0] == texts[2] and all(1 <= len(text.split()) <= 4 for text in texts)
