"""How a command line reads numbers: what is no number is refused in words, with the value."""

import types
from collections.abc import Callable
from typing import Annotated, Any, Union, get_args, get_origin

from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

NUMBERS = ConstructorRegistry()
"""For `tyro.cli`: whole numbers and numbers, also where None is allowed."""

_NOUNS: dict[type, str] = {int: "a whole number", float: "a number"}


@NUMBERS.primitive_rule
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


def _members(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _bare(kind: Any) -> Any:
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind
