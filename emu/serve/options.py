"""How the application is distributed over a cluster, and who may call it; light to import: no Ray."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError

from emu.serve.errors import nearest
from emu.serve.limits import Limits
from schemas.validation import Checked, ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class ServeOptions(Checked):
    """How the application is distributed over a cluster, and the limits of one request."""

    model: Path
    """The model directory; every node that runs a replica must be able to read it."""
    name: str | None = None
    """The value of `model` in requests; by default the directory's name."""
    device: str = "cpu"
    """`cpu` or `cuda`."""
    dtype: str = "float32"
    """`float32`, `bfloat16` or `float16`."""
    weights: Literal["full", "int8"] = "full"
    """`int8` rounds the weights of the language model's layers to 8 bits; not with adapters."""
    num_replicas: Annotated[int, Field(ge=1)] = 1
    """Copies of the model; with `max_replicas`, the smallest number of them."""
    max_replicas: Annotated[int, Field(ge=1)] | None = None
    """The largest number of copies: Ray Serve starts and stops them by the number of requests that run."""
    num_cpus: Annotated[float, Field(ge=0)] = 1
    """CPU cores per replica."""
    num_gpus: Annotated[float, Field(ge=0)] = 0
    """GPUs per replica; with a fraction, replicas share one."""
    requests_per_replica: Annotated[int, Field(ge=1)] = 4
    """Requests that one replica handles at the same time."""
    requests_waiting: Annotated[int, Field(ge=1)] = 64
    """Requests that may wait for a replica; further ones get status 503."""
    adapters: Mapping[str, Path] = field(default_factory=dict)
    """LoRA adapters by name; a request calls one as `name:adapter`."""
    drain_s: Annotated[float, Field(gt=0)] = 30.0
    """Seconds that requests may take to end when the server, or a replica, is stopped."""
    api_keys: Path | None = None
    """File of API keys (`emu.serve.keys`); None: everyone who reaches the address may call."""
    cors_origins: tuple[str, ...] = ()
    """Origins of web pages that may call the API from a browser; `*` for all."""
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weights == "int8" and self.adapters:
            raise ConfigError(
                f"weights is 'int8' with adapters {sorted(self.adapters)}; give one or the other"
            )
        if self.max_replicas is not None and self.max_replicas < self.num_replicas:
            raise ConfigError(
                f"max_replicas is {self.max_replicas}, give at least num_replicas, {self.num_replicas}"
            )


def options_of(arguments: Mapping[str, Any]) -> ServeOptions:
    """The options in the arguments of `serve run`, or under `args:` of a configuration of Ray Serve.

    Values may be texts (`num_replicas=2`); a limit is `limits.timeout_s=30` or a nested mapping.

    Raises:
        ConfigError: for an unknown name or a wrong value.
    """
    flat: dict[str, Any] = {}
    limits: dict[str, Any] = {}
    adapters: dict[str, Path] = {}
    for name, value in arguments.items():
        first, _, rest = name.partition(".")
        if first == "limits" and rest:
            limits[rest] = value
        elif first == "adapters" and rest:
            adapters[rest] = Path(value)
        elif name == "adapters":
            adapters |= {each: Path(path) for each, path in value.items()}
        elif name == "limits":
            limits |= value
        elif name == "cors_origins" and isinstance(value, str):
            flat[name] = tuple(value.split(","))
        else:
            flat[name] = value
    if "model" not in flat:
        raise ConfigError("model is missing; give model=DIRECTORY")
    if adapters:
        flat["adapters"] = adapters
    if limits:
        flat["limits"] = _converted(Limits, limits, "limits.")
    return _converted(ServeOptions, flat, "")


def _converted(kind: type[T], values: Mapping[str, Any], prefix: str) -> T:
    hints = get_type_hints(kind, include_extras=True)
    known = [each.name for each in dataclasses.fields(kind)]  # pyright: ignore[reportArgumentType]
    fields: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            near = nearest(name, known)
            hint = f"; did you mean {prefix}{near}?" if near else ""
            raise ConfigError(f"{prefix}{name} is not a known option{hint}")
        if isinstance(value, str):
            try:
                value = TypeAdapter(hints[name]).validate_python(value)
            except ValidationError as error:
                problem = error.errors(include_url=False)[0]["msg"]
                raise ConfigError(f"{prefix}{name} is {value!r}: {problem}") from error
        elif name in ("cors_origins",) and isinstance(value, list):
            value = tuple(value)
        fields[name] = value
    return kind(**fields)
