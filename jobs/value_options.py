"""How a command line reads and shows values where tyro's own way is unclear.

What is no number is refused in words, with the value; a list that is empty by default is shown as `(default: none)`.
"""

import dataclasses
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

VALUES = ConstructorRegistry()
"""For `tyro.cli`: whole numbers and numbers, also where None is allowed; lists and mappings."""

_COLLECTIONS = (tuple, list, set, frozenset, dict, Sequence, Mapping)
_AS_TYRO: Any = object()
"""Marks a type whose rule is to be tyro's own."""

_NOUNS: dict[type, str] = {int: "a whole number", float: "a number"}


@VALUES.primitive_rule
def number(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Reads `int`, `float` and each of them or None; leaves other types to tyro."""
    kinds = [_bare(kind) for kind in _members(info.type)]
    is_optional = type(None) in kinds
    kinds = [kind for kind in kinds if kind is not type(None)]
    if len(kinds) != 1 or kinds[0] not in _NOUNS:
        return None
    kind: Callable[[str], Any] = kinds[0]
    noun = _NOUNS[kinds[0]] + (" or None" if is_optional else "")

    def read(words: list[str]) -> Any:
        if is_optional and words[0] == "None":
            return None
        try:
            return kind(words[0])
        except ValueError:
            raise ValueError(f"{words[0]!r} is not {noun}") from None

    def is_instance(value: Any) -> bool:
        return (is_optional and value is None) or type(value) in (int, kind)

    name = kinds[0].__name__.upper()
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=f"{{None}}|{name}" if is_optional else name,
        instance_from_str=read,
        is_instance=is_instance,
        str_from_instance=lambda value: [str(value)],
    )


@VALUES.primitive_rule
def collection(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Reads lists, tuples, sets and mappings as tyro does; the help shows an empty one as `none`."""
    if info.type_origin not in _COLLECTIONS or _AS_TYRO in info.markers:
        return None
    marked = dataclasses.replace(info, markers={*info.markers, _AS_TYRO})
    spec = ConstructorRegistry.get_primitive_spec(marked)
    if not isinstance(spec, PrimitiveConstructorSpec):
        return None  # tyro says what it cannot read
    in_words = spec.str_from_instance
    return dataclasses.replace(spec, str_from_instance=lambda value: in_words(value) or ["none"])


def _members(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _bare(kind: Any) -> Any:
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind
