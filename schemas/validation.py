"""Configurations that are checked where they are made.

A configuration is a frozen dataclass whose annotations carry its bounds:

    @dataclass(frozen=True)
    class Fetch(Checked):
        concurrency: Annotated[int, Field(ge=1, le=4096, description="links in flight")] = 64

    Fetch(concurrency=0)  # ConfigError: concurrency is 0, give a whole number from 1 to 4,096 (links in flight)

Bounds are pydantic's `Field` (`ge`, `gt`, `le`, `lt`, `min_length`); its `description` is the hint of the error.
Values are checked strictly: nothing is converted, a bool is no number, NaN and infinity are refused.

`from_json` reads a nested configuration from a JSON document and names the path of what it refuses.
"""

import dataclasses
import difflib
import functools
import json
import operator
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError
from pydantic.fields import FieldInfo

_MAX_SHOWN = 80


class SchemaError(ValueError):
    """A table, sample or manifest that does not keep the contract; names the column and the row."""


def shown(value: object) -> str:
    """A value as errors repeat it: shortened."""
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 1]}…"


T = TypeVar("T")

_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True)
_KINDS = {
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "finite_number": "a finite number",
    "float_type": "a number",
    "int_from_float": "a whole number",
    "int_type": "a whole number",
    "mapping_type": "a mapping",
    "path_type": "a path",
    "string_type": "a string",
    "tuple_type": "a tuple",
}
_JSON_KINDS = _KINDS | {
    "dataclass_type": "an object",
    "dict_type": "an object",
    "mapping_type": "an object",
    "tuple_type": "a list",
}
"""Characters of a value that an error repeats."""


class ConfigError(ValueError):
    """A value of a configuration that cannot be used: names the field, the value, the limit and a hint."""


class Checked:
    """A dataclass that checks its fields when it is made.

    A subclass with rules between fields defines `__post_init__` and calls `super().__post_init__()` first.

    Raises:
        ConfigError: for the first field whose value its annotation does not allow.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    def __post_init__(self) -> None:
        values, validator = _whole(type(self))
        try:  # in one call: configurations are made for each request of a server
            validator.validate_python(values(self))
        except ValidationError:
            self._refuse()

    def _refuse(self) -> None:
        for name, (adapter, hint) in _adapters(type(self)).items():
            value = getattr(self, name)
            try:
                adapter.validate_python(value)
            except ValidationError as error:
                first = error.errors(include_url=False)[0]
                path = ".".join([name, *map(str, first["loc"])])
                raise ConfigError(
                    f"{path} is {first['input']!r}, {_advice(first, hint, _KINDS)}"
                ) from None


class Complete(Checked):
    """A configuration that JSON must give in full, such as the sizes of a model: its defaults are for Python code."""

    optional_in_json: ClassVar[frozenset[str]] = frozenset()
    """Fields that may be absent all the same, because older documents lack them."""


def from_json(kind: type[T], text: str, name: str = "config", left_out: Collection[str] = ()) -> T:
    """The configuration `kind` in a JSON document, nested dataclasses included.

    Keys of fields with a default may be absent, except those of `Complete` configurations.

    Args:
        kind: a dataclass derived from `Checked`.
        name: what errors call the document; `NAME.field.field` is the path of a value.
        left_out: keys of the document that are not part of the configuration.

    Raises:
        ConfigError: for text that is not JSON, unknown keys (with the nearest known one), absent keys, a value of
            the wrong type or beyond its bounds.
    """
    from schemas.strict_json import JsonError, loads

    try:
        document = loads(text)
        if isinstance(document, dict) and left_out:
            document = {key: value for key, value in document.items() if key not in left_out}
            text = json.dumps(document)
        _check_keys(kind, document, name)
        return _document_adapter(kind).validate_json(text)
    except JsonError as error:
        raise ConfigError(f"{name}: {error}") from None
    except ValidationError as error:
        raise ConfigError(_refusal(kind, error, name)) from None


@functools.cache
def _adapters(kind: type) -> dict[str, tuple[TypeAdapter[Any], Any]]:
    """The validator and the annotation of each field; nested dataclasses check themselves."""
    found: dict[str, tuple[TypeAdapter[Any], Any]] = {}
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(typing.cast("Any", kind)):
        hint = hints[field.name]
        if _dataclass_in(hint) is not None:
            continue
        try:
            found[field.name] = TypeAdapter(hint, config=_STRICT), hint
        except PydanticSchemaGenerationError as error:
            raise TypeError(f"{kind.__name__}.{field.name}: no validator for {hint}") from error
    return found


@functools.cache
def _whole(kind: type) -> tuple[Callable[[Any], tuple[Any, ...]], TypeAdapter[Any]]:
    """Gives the values of all these fields, and validates them together."""
    hints = {name: hint for name, (_, hint) in _adapters(kind).items()}
    # twice the same name where there is one: a getter of one name gives no tuple
    names = [*hints, *hints][: max(2, len(hints))]
    values = operator.attrgetter(*names) if names else lambda _: ()
    row: Any = typing.cast("Any", tuple)[tuple(hints[name] for name in names)]
    return values, TypeAdapter(row, config=_STRICT)


def _field_infos(hint: Any) -> Iterator[FieldInfo]:
    """The bounds in an annotation, also in a branch of a union such as `Annotated[int, Field(ge=1)] | None`."""
    if isinstance(hint, FieldInfo):
        yield hint
    for part in typing.get_args(hint):
        yield from _field_infos(part)


def _dataclass_in(hint: Any) -> Any:
    """The dataclass of `Inner`, `Inner | None` or `Annotated[Inner, …]`; None for other annotations."""
    if typing.get_origin(hint) is Annotated:
        hint = typing.get_args(hint)[0]
    return next((p for p in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(p)), None)


@functools.cache
def _document_adapter(kind: type[T]) -> TypeAdapter[T]:
    return TypeAdapter(kind)


def _check_keys(kind: Any, document: Any, name: str) -> None:
    """Raise `ConfigError` for keys that are unknown or absent, in the document and in the objects inside it."""
    if not isinstance(document, dict):
        raise ConfigError(f"{name} is {shown(document)}, give an object")
    hints, fields = typing.get_type_hints(kind), dataclasses.fields(kind)
    known = [field.name for field in fields]
    for key in document:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigError(
                f"{name} has the unknown key {key!r}; {hint}Known keys: {', '.join(known)}"
            )
    absent = [f.name for f in fields if f.name not in document and _is_required(kind, f, hints)]
    if absent:
        raise ConfigError(
            f"{name} lacks the keys {', '.join(absent)}; give them, they are never guessed"
        )
    for key, value in document.items():
        inner = _dataclass_in(hints[key])
        if inner is not None and isinstance(value, dict):
            _check_keys(inner, value, f"{name}.{key}")


def _is_required(kind: Any, field: dataclasses.Field[Any], hints: Mapping[str, Any]) -> bool:
    if (field.default, field.default_factory) == (dataclasses.MISSING,) * 2:
        return True
    if issubclass(kind, Complete):
        return field.name not in kind.optional_in_json
    hint = hints[field.name]
    return isinstance(hint, type) and issubclass(hint, Complete)


def _refusal(kind: Any, error: ValidationError, name: str) -> str:
    """What pydantic found first, as a sentence with the path, the value and the limit."""
    first = error.errors(include_url=False)[0]
    path = ".".join([name, *map(str, first["loc"])])
    if first["type"] == "value_error":  # a rule between the fields of a dataclass
        return f"{path}: {first.get('ctx', {}).get('error')}"
    hint: Any = kind
    for part in first["loc"]:
        if (
            owner := _dataclass_in(hint)
        ) is None:  # inside a list or mapping, whose annotation has the bounds
            break
        hint = typing.get_type_hints(owner, include_extras=True).get(str(part))
    return f"{path} is {shown(first['input'])}, {_advice(first, hint, _JSON_KINDS)}"


def _advice(first: Mapping[str, Any], hint: Any, kinds: Mapping[str, str]) -> str:
    """What to give instead: the bounds or the choices, and the description of the field."""
    info = next(_field_infos(hint), None)
    if first["type"] == "literal_error":
        wanted = f"one of {first.get('ctx', {}).get('expected')}"
    elif first["type"] == "string_pattern_mismatch":
        wanted = f"a text that matches {first.get('ctx', {}).get('pattern')}"
    elif first["type"] in kinds:
        wanted = kinds[first["type"]]
    else:
        wanted = _range(first, hint, info)
    described = f" ({info.description})" if info is not None and info.description else ""
    return f"give {wanted}{described}"


def _range(first: Mapping[str, Any], hint: Any, info: FieldInfo | None) -> str:
    bounds: dict[str, Any] = {}
    for part in info.metadata if info is not None else ():
        bounds |= {n: getattr(part, n) for n in ("ge", "gt", "le", "lt") if hasattr(part, n)}
    if not bounds:
        return first["msg"][:1].lower() + first["msg"][1:]
    noun = "a number" if _has(hint, float) else "a whole number"
    shown = {name: f"{bound:,}" for name, bound in bounds.items()}
    if "ge" in bounds and "le" in bounds:
        return f"{noun} from {shown['ge']} to {shown['le']}"
    words = {"ge": "of at least", "gt": "above", "le": "of at most", "lt": "below"}
    return f"{noun} " + " and ".join(f"{words[name]} {bound}" for name, bound in shown.items())


def _has(hint: Any, kind: type) -> bool:
    return hint is kind or any(_has(part, kind) for part in typing.get_args(hint))
