"""API keys: who may send requests, how many per minute, and how many at the same time.

The file is TOML, one table per key; it holds hashes, never the keys:

    [alice]
    sha256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    requests_per_minute = 60    # optional
    parallel_requests = 4       # optional
    is_active = true            # optional; false refuses the key with status 403

A key should be random, since its hash is not salted: `openssl rand -hex 32`, hashed by `printf %s KEY | sha256sum`.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from emu.serve.errors import ApiError
from schemas.validation import Checked, ConfigError


@dataclass(frozen=True)
class ApiKey(Checked):
    """One key of the file."""

    name: str
    sha256: Annotated[
        str, Field(pattern="^[0-9a-f]{64}$", description="64 hexadecimal digits in lower case")
    ]
    requests_per_minute: Annotated[float, Field(gt=0)] | None = None
    parallel_requests: Annotated[int, Field(ge=1)] | None = None
    is_active: bool = True


_TABLES = TypeAdapter(dict[str, dict[str, Any]])
_FIELDS = ("sha256", "requests_per_minute", "parallel_requests", "is_active")


def load_keys(path: Path) -> tuple[ApiKey, ...]:
    """The keys of a file.

    Raises:
        ConfigError: for a file that is no TOML, has no key, or has a wrong or unknown field.
        OSError: if it cannot be read.
    """
    try:
        tables = _TABLES.validate_python(tomllib.loads(path.read_text("utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, ValidationError) as error:
        raise ConfigError(f"{path}: not a file of API keys, {_first_line(error)}") from error
    if not tables:
        raise ConfigError(f"{path}: no key in it; give a table [name] with sha256 for each")
    keys = []
    for name, fields in tables.items():
        unknown = [each for each in fields if each not in _FIELDS]
        if unknown or "sha256" not in fields:
            problem = f"unknown field {unknown[0]}" if unknown else "sha256 is missing"
            raise ConfigError(f"{path}: [{name}]: {problem}; fields are {', '.join(_FIELDS)}")
        try:
            keys.append(ApiKey(name, **fields))
        except ConfigError as error:
            raise ConfigError(f"{path}: [{name}]: {error}") from error
    return tuple(keys)


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return "each key is a table [name] with sha256"
    return str(error).splitlines()[0]


@dataclass
class _Use:
    """What one key does: its requests now, and how many it may send at once (a token bucket)."""

    key: ApiKey
    num_running: int = 0
    num_left: float = 0.0
    counted_at: float = 0.0


@dataclass
class Keys:
    """Checks the keys of requests and counts their use; for one thread."""

    keys: Sequence[ApiKey]
    clock: Callable[[], float] = time.monotonic
    _uses: dict[str, _Use] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        for key in self.keys:
            self._uses[key.name] = _Use(key, 0, key.requests_per_minute or 0.0, self.clock())

    def admit(self, authorization: str | None) -> str:
        """The name of the key that a request shows; call `leave` with it at the end of the request.

        Raises:
            ApiError: 401 without a known key, 403 for one that is not active, 429 beyond its rate or number.
        """
        kind, _, given = (authorization or "").partition(" ")
        if kind.lower() != "bearer" or not given.strip():
            message = "no API key; send the header Authorization: Bearer KEY"
            raise ApiError(401, message, code="missing_api_key")
        digest = hashlib.sha256(given.strip().encode("utf-8", "surrogateescape")).hexdigest()
        found = [use for use in self._uses.values() if hmac.compare_digest(use.key.sha256, digest)]
        if not found:
            raise ApiError(401, "the API key is not known", code="invalid_api_key")
        use = found[0]
        if not use.key.is_active:
            raise ApiError(403, f"the API key {use.key.name} is not active", code="inactive_key")
        self._count(use)
        return use.key.name

    def leave(self, name: str) -> None:
        """Notes that a request of this key has ended."""
        self._uses[name].num_running -= 1

    def _count(self, use: _Use) -> None:
        parallel, rate = use.key.parallel_requests, use.key.requests_per_minute
        if parallel is not None and use.num_running >= parallel:
            message = f"the key {use.key.name} has {parallel} requests running, which is its limit"
            raise ApiError(429, message, code="rate_limit_exceeded", retry_after_s=1)
        if rate is not None:
            now = self.clock()
            grown = use.num_left + (now - use.counted_at) * rate / 60
            use.num_left, use.counted_at = min(max(rate, 1.0), grown), now
            if use.num_left < 1:
                wait_s = math.ceil((1 - use.num_left) * 60 / rate)
                message = f"the key {use.key.name} may send {rate:g} requests per minute"
                raise ApiError(429, message, code="rate_limit_exceeded", retry_after_s=wait_s)
            use.num_left -= 1
        use.num_running += 1
