"""A file of options: YAML or JSON in, the words of a command line out, and the reverse.

    documents: [docs/*.jsonl.zip]
    out: mmc4
    fetch:
      deadline_s: 60

says `--documents 'docs/*.jsonl.zip' --out mmc4 --fetch.deadline-s=60`. Keys are the names of options, nested or dotted,
with `_` or `-`. As its words stand before those of the command line, the command line takes precedence, and both
are checked in the same way.
"""

import dataclasses
import difflib
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
import yaml


def arguments_of(path: str, kind: Any, help_command: str, typed: Sequence[str]) -> list[str]:
    """The words of a command line that say what a file says.

    Args:
        path: of the file.
        kind: the dataclass of the options.
        help_command: what lists the options, for errors.
        typed: the words of the command line; one that begins with a positional argument replaces that of the file.

    Raises:
        ValueError: for a file that is not YAML, a key given twice, an unknown key (the nearest one is named), or a
            value of the wrong kind.
        OSError: for a file that cannot be read.
    """
    options = dict(_options(kind))
    positional: list[str] = []
    words: list[str] = []
    for name, value in _leaves(_document(path), options, path, help_command):
        if _has_marker(options[name], tyro.conf.Positional):
            positional = [str(value)]
        else:
            words += _words(name, value, options[name], path)
    is_typed = bool(typed) and not typed[0].startswith("-")
    return words if is_typed else [*positional, *words]


def as_yaml(options: Any) -> str:
    """All values of options, as a file that `arguments_of` reads."""
    return yaml.safe_dump(_plain(options), sort_keys=False, allow_unicode=True, width=100)


class _Loader(yaml.SafeLoader):
    """YAML without duplicate keys, of which PyYAML silently takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = [key for key in keys if keys.count(key) > 1]
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {twice[0]!r} is given twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


def _document(path: str) -> Mapping[str, Any]:
    try:
        found = yaml.load(Path(path).expanduser().read_text("utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is neither YAML nor JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds {type(found).__name__}, give a mapping of options")
    return found


def _options(kind: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The options of a dataclass as a command line names them, with `_`, and the annotation of each."""
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        inner = _inner(hints[field.name])
        if inner is None:
            yield prefix + field.name, hints[field.name]
        else:
            is_flat = _is_flat(hints[field.name])
            yield from _options(inner, prefix if is_flat else f"{prefix}{field.name}.")


def _leaves(
    values: Mapping[Any, Any],
    options: Mapping[str, Any],
    path: str,
    help_command: str,
    at: str = "",
) -> Iterator[tuple[str, Any]]:
    """The values of a document by the names of options."""
    for key, value in values.items():
        name = at + str(key).replace("-", "_")
        is_group = any(option.startswith(f"{name}.") for option in options)
        if name in options:
            yield name, value
        elif is_group and isinstance(value, dict):
            yield from _leaves(value, options, path, help_command, f"{name}.")
        elif is_group:
            raise ValueError(f"{path}: {name} is {value!r}, give a mapping of its options")
        else:
            near = difflib.get_close_matches(name, options, 1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            raise ValueError(f"{path}: unknown option '{name}'; {hint}{help_command} lists them")


def _words(name: str, value: Any, hint: Any, path: str) -> list[str]:
    """One option as words of a command line."""
    option = f"--{name.replace('_', '-')}"
    is_flag = hint is bool or typing.get_args(hint)[:1] == (bool,)
    if is_flag and isinstance(value, bool):
        group, dot, last = option[2:].rpartition(".")
        return [option if value else f"--{group}{dot}no-{last}"]
    if is_flag or isinstance(value, bool):
        wanted = "true or false" if is_flag else "no truth value; a text must be quoted"
        raise ValueError(f"{path}: {name} is {value!r}, give {wanted}")
    if isinstance(value, list):
        return [option, *map(str, value)]
    if isinstance(value, dict):
        return [option, *(str(each) for pair in value.items() for each in pair)]
    return [f"{option}={value}"]


def _plain(value: Any) -> Any:
    """Options as values of YAML; a group whose options have no prefix is part of the group around it."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if not dataclasses.is_dataclass(value):
        return value if value is None or isinstance(value, bool | int | float) else str(value)
    hints = typing.get_type_hints(type(value), include_extras=True)
    found: dict[str, Any] = {}
    for field in dataclasses.fields(value):
        inner = getattr(value, field.name)
        is_flat = dataclasses.is_dataclass(inner) and _is_flat(hints[field.name])
        found |= _plain(inner) if is_flat else {field.name: _plain(inner)}
    return found


def _inner(hint: Any) -> Any:
    """The dataclass of a group of options; None for an option."""
    bare = typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint
    return bare if dataclasses.is_dataclass(bare) else None


def _is_flat(hint: Any) -> bool:
    """Whether the options of a group are named without it."""
    named_empty = any(getattr(m, "name", None) == "" for m in getattr(hint, "__metadata__", ()))
    return named_empty or _has_marker(hint, tyro.conf.OmitArgPrefixes)


def _has_marker(hint: Any, marker: Any) -> bool:
    return marker in getattr(hint, "__metadata__", ())
