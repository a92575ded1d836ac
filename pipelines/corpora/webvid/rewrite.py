"""Captions rewritten by a language model, as the paper has Vicuna rewrite the cleaned ones; off by default.

The model is a folder or name for transformers, run in the worker, or one that an endpoint serves which speaks OpenAI's
chat completions (vLLM, llama.cpp, Ollama, …). A caption whose rewriting fails, or gives nothing usable, stays as the
rules left it: its meta has `rewrite_error`, its score `rewritten` is 0, and the log counts them shard by shard.
"""

import json
import logging
import os
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import pyarrow as pa
from pydantic import Field

from pipelines.core.pipeline import shard_of
from schemas.validation import Checked, ConfigError

log = logging.getLogger(__name__)

PROMPT = (
    "Rewrite this caption of a video as one plain sentence that says only what can be seen. "
    "Keep every fact, add none, and answer with the sentence alone.\nCaption: {caption}"
)
_MAX_RESPONSE_BYTES = 1 << 20
_RETRIED = {408, 425, 429, 500, 502, 503, 504}
_MAX_GROWTH, _MAX_ADDED = 3, 100  # a longer reply is no caption


@dataclass(frozen=True)
class RewriteConfig(Checked):
    """Rewriting of captions by a language model; off unless --rewrite.model is given."""

    model: str | None = None
    """Model name at --rewrite.endpoint, or a folder or name for transformers. None: captions are not rewritten."""
    endpoint: str | None = None
    """Base address of an OpenAI-compatible server, such as http://127.0.0.1:8000/v1.
    None: transformers loads the model in the worker."""
    prompt: str = PROMPT
    """Instruction for the model; {caption} is replaced by the caption."""
    max_tokens: Annotated[int, Field(ge=1, le=4096)] = 96
    """Maximum tokens per reply, 1 to 4096."""
    timeout_s: Annotated[float, Field(ge=0.01, le=3600, description="seconds")] = 60.0
    """Seconds for one request to the endpoint."""
    concurrency: Annotated[int, Field(ge=1, le=256, description="requests in flight")] = 8
    """Requests in flight per worker, 1 to 256."""
    retries: Annotated[int, Field(ge=0, le=20)] = 2
    """Further attempts after a timeout, a lost connection, 429 or 5xx."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable on the workers that holds the API key of the endpoint, if it requires one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if "{caption}" not in self.prompt:
            raise ConfigError("prompt lacks {caption}: there the caption is put in")
        if self.endpoint is not None and self.model is None:
            raise ConfigError("endpoint is given without a model; name the one that it serves")
        if self.endpoint is not None and not self.endpoint.startswith(("http://", "https://")):
            raise ConfigError(
                f"endpoint is {self.endpoint!r}, give an address such as http://127.0.0.1:8000/v1"
            )


class RewriteError(Exception):
    """A caption that was not rewritten; its text is a word such as `timeout` or `http_400`."""


class RewriteCaptions:
    """Transform: rewrites the column `text`; adds `rewrite_error`, null where that succeeded.

    Args:
        config: with a model.
    """

    def __init__(self, config: RewriteConfig) -> None:
        assert config.model is not None
        self._config = config
        self._is_remote = config.endpoint is not None
        self._reply = partial(ask_endpoint, config) if self._is_remote else local_model(config)

    def __call__(self, table: pa.Table) -> pa.Table:
        """The table with new texts."""
        texts = table["text"].to_pylist()
        with ThreadPoolExecutor(self._config.concurrency if self._is_remote else 1) as threads:
            found = list(threads.map(self._rewritten, texts))
        errors = Counter(error for _, error in found if error is not None)
        if errors:
            told = " ".join(f"{word}={count}" for word, count in sorted(errors.items()))
            log.warning(
                "shard=%s rewritten=%d kept=%d %s",
                *(shard_of(table), len(found) - errors.total(), errors.total(), told),
            )
        index = table.schema.get_field_index("text")
        new = pa.array([text for text, _ in found], pa.large_string())
        return table.set_column(index, "text", new).append_column(
            "rewrite_error", pa.array([error for _, error in found], pa.string())
        )

    def _rewritten(self, text: str) -> tuple[str, str | None]:
        try:
            return usable(self._reply(text), text), None
        except RewriteError as error:
            return text, str(error)


def usable(reply: str, caption: str) -> str:
    """The sentence of a reply; raises `RewriteError` where it is none."""
    text = " ".join(reply.split()).strip("\"'“” ")
    if not any(character.isalpha() for character in text):
        raise RewriteError("reply_empty")
    if len(text) > _MAX_GROWTH * len(caption) + _MAX_ADDED:
        raise RewriteError("reply_too_long")
    return text


def ask_endpoint(config: RewriteConfig, caption: str) -> str:
    """The reply of the endpoint; raises `RewriteError` after the last attempt."""
    request = _request(config, caption)
    for attempt in range(config.retries + 1):
        try:
            with urllib.request.urlopen(request, timeout=config.timeout_s) as response:
                return _content(response.read(_MAX_RESPONSE_BYTES))
        except urllib.error.HTTPError as error:
            problem, is_retried = f"http_{error.code}", error.code in _RETRIED
        except TimeoutError:
            problem, is_retried = "timeout", True
        except (OSError, ValueError) as error:
            is_timeout = isinstance(getattr(error, "reason", None), TimeoutError)
            problem, is_retried = "timeout" if is_timeout else "connection_failed", True
        if not is_retried or attempt == config.retries:
            raise RewriteError(problem)
        time.sleep(min(0.2 * 2**attempt, 10.0))
    raise AssertionError("the loop returns or raises")


def _request(config: RewriteConfig, caption: str) -> urllib.request.Request:
    body = {
        "model": config.model,
        "messages": [{"role": "user", "content": config.prompt.replace("{caption}", caption)}],
        "max_tokens": config.max_tokens,
        "temperature": 0,
    }
    headers = {"Content-Type": "application/json"}
    key = os.environ.get(config.key_variable)
    if key:
        headers["Authorization"] = f"Bearer {key}"
    assert config.endpoint is not None
    url = f"{config.endpoint.rstrip('/')}/chat/completions"
    return urllib.request.Request(url, json.dumps(body).encode(), headers)


def _content(body: bytes) -> str:
    try:
        content: Any = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError):
        raise RewriteError("response_malformed") from None
    if not isinstance(content, str):
        raise RewriteError("response_malformed")
    return content


def local_model(config: RewriteConfig) -> Callable[[str], str]:
    """The replies of a model that transformers loads: greedy, so that equal captions get equal replies."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert config.model is not None
    tokenizer: Any = AutoTokenizer.from_pretrained(config.model)
    model: Any = AutoModelForCausalLM.from_pretrained(config.model)
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()

    def reply(caption: str) -> str:
        prompt = config.prompt.replace("{caption}", caption)
        if tokenizer.chat_template:
            messages = [{"role": "user", "content": prompt}]
            prompt = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
        with torch.inference_mode():
            ids = model.generate(**inputs, max_new_tokens=config.max_tokens, do_sample=False)
        new: Sequence[int] = ids[0, inputs["input_ids"].shape[1] :]
        return tokenizer.decode(new, skip_special_tokens=True)

    return reply
