"""Configurations: frozen dataclasses whose annotations carry their bounds, checked when a value is made.

    @dataclass(frozen=True)
    class Fetch(Checked):
        concurrency: Annotated[int, Field(ge=1, le=4096, description="links in flight")] = 64

    Fetch(concurrency=0)  # ConfigError: concurrency is 0, give a whole number from 1 to 4,096 (links in flight)

Bounds are pydantic's `Field` (`ge`, `gt`, `le`, `lt`, `min_length`); its `description` is the hint of the error.
Values are checked strictly: nothing is converted, a bool is no number, NaN and infinity are refused.
"""

import dataclasses
import functools
import typing
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError
from pydantic.fields import FieldInfo

_STRICT = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
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


class ConfigError(ValueError):
    """A value of a configuration that cannot be used: names the field, the value, the limit and a hint."""


class Checked:
    """A dataclass that checks its fields when it is made.

    A subclass with rules between fields defines `__post_init__` and calls `super().__post_init__()` first.

    Raises:
        ConfigError: for the first field whose value its annotation does not allow.
    """

    def __post_init__(self) -> None:
        for name, field in _fields(type(self)).items():
            value = getattr(self, name)
            try:
                field.adapter.validate_python(value)
            except ValidationError as error:
                raise ConfigError(f"{name} is {value!r}, {_advice(error, field)}") from None


@dataclasses.dataclass(frozen=True)
class _Field:
    """How one field is checked, and what an error says of it."""

    adapter: TypeAdapter[Any]
    info: FieldInfo | None
    """Its bounds and its hint."""
    noun: str
    """What a number of this field is called."""


@functools.cache
def _fields(kind: type) -> dict[str, _Field]:
    """The checks of a dataclass by field; nested dataclasses check themselves."""
    found: dict[str, _Field] = {}
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(typing.cast("Any", kind)):
        hint = hints[field.name]
        parts = typing.get_args(hint) if typing.get_origin(hint) is Annotated else (hint,)
        if any(dataclasses.is_dataclass(part) for part in (parts[0], *typing.get_args(parts[0]))):
            continue
        info = next(_field_infos(hint), None)
        noun = "a number" if _has_float(hint) else "a whole number"
        try:
            found[field.name] = _Field(TypeAdapter(hint, config=_STRICT), info, noun)
        except PydanticSchemaGenerationError as error:
            raise TypeError(f"{kind.__name__}.{field.name}: no validator for {hint}") from error
    return found


def _field_infos(hint: Any) -> Iterator[FieldInfo]:
    """The bounds in an annotation, also in a branch of a union such as `Annotated[int, Field(ge=1)] | None`."""
    if isinstance(hint, FieldInfo):
        yield hint
    for part in typing.get_args(hint):
        yield from _field_infos(part)


def _has_float(hint: Any) -> bool:
    return hint is float or any(_has_float(part) for part in typing.get_args(hint))


def _advice(error: ValidationError, field: _Field) -> str:
    """What to give instead: the bounds or the choices, and the hint."""
    first = error.errors(include_url=False)[0]
    if first["type"] == "literal_error":
        wanted = f"one of {first.get('ctx', {}).get('expected')}"
    elif first["type"] in _KINDS:
        wanted = _KINDS[first["type"]]
    else:
        wanted = _range(first, field)
    info = field.info
    hint = f" ({info.description})" if info is not None and info.description else ""
    return f"give {wanted}{hint}"


def _range(first: Any, field: _Field) -> str:
    info, noun = field.info, field.noun
    bounds: dict[str, Any] = {}
    for part in info.metadata if info is not None else ():
        bounds |= {n: getattr(part, n) for n in ("ge", "gt", "le", "lt") if hasattr(part, n)}
    if not bounds:
        return first["msg"][:1].lower() + first["msg"][1:]
    shown = {name: f"{bound:,}" for name, bound in bounds.items()}
    if "ge" in bounds and "le" in bounds:
        return f"{noun} from {shown['ge']} to {shown['le']}"
    words = {"ge": "of at least", "gt": "above", "le": "of at most", "lt": "below"}
    return f"{noun} " + " and ".join(f"{words[name]} {bound}" for name, bound in shown.items())
