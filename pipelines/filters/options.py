"""Filters as a person names them: `image_size:min_side=128,images=all`, checked and put behind a pipeline's stages.

The parameters of a filter are those of its factory; a value is read by the annotation there. Several words are
joined by
`+` (`languages=en+de`), null is `none`. What the filters are, and the contents of the files they are given, is part
of the fingerprint of the dataset.
"""

import difflib
import hashlib
import inspect
import sys
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal

import fsspec
from pydantic import ConfigDict, TypeAdapter, ValidationError

from pipelines.core.pipeline import Filter, Pipeline, Reasons, Resources, Stage
from pipelines.filters import FILTERS
from pipelines.filters.files import FILE

STAGE = "filter"
"""Of the first stage of filters; further ones, for filters that need other resources, are `filter_2` and so on."""
NOT_COUNTED = ("batch_size", "gpus", "workers")
"""Parameters that say how a filter runs, not what it keeps: they may differ when a build is resumed."""
_FINITE = ConfigDict(allow_inf_nan=False)


@dataclass(frozen=True)
class Parameter:
    """A parameter of a filter."""

    name: str
    hint: Any
    default: Any

    @property
    def words(self) -> str:
        """What its value may be."""
        return _words(self.hint)

    @property
    def is_file(self) -> bool:
        """True where it names a file whose contents decide what is kept."""
        return FILE in typing.get_args(self.hint)

    def value_of(self, text: str) -> Any:
        """The value in a text; raises `ValueError` with what it may be."""
        hint = (
            typing.get_args(self.hint)[0]
            if typing.get_origin(self.hint) is Annotated
            else self.hint
        )
        if text.casefold() == "none" and types.NoneType in typing.get_args(hint):
            return None
        value = text.split("+") if typing.get_origin(hint) is tuple else text
        try:
            return TypeAdapter(hint, config=_FINITE).validate_python(value)
        except ValidationError:
            raise ValueError(f"{self.name} is {text!r}, give {self.words}") from None


@dataclass(frozen=True)
class FilterChoice:
    """A filter with the arguments that a person gave it."""

    name: str
    arguments: Mapping[str, Any]

    def make(self) -> Filter:
        """The filter; raises `ValueError` where arguments contradict each other or a file is absent or wrong."""
        return FILTERS[self.name](**self.arguments)

    def config(self) -> dict[str, Any]:
        """What decides on the samples: name, all parameters, and a hash of each file."""
        found: dict[str, Any] = {"filter": self.name}
        for parameter in parameters_of(self.name):
            value = self.arguments.get(parameter.name, parameter.default)
            digest = content_hash(str(value)) if parameter.is_file else None
            if digest is not None:
                found |= {parameter.name: Path(value).name, f"{parameter.name}_sha256": digest}
            elif parameter.name not in NOT_COUNTED:
                found[parameter.name] = list(value) if isinstance(value, tuple) else value
        return found


def parse_filters(texts: Iterable[str]) -> tuple[FilterChoice, ...]:
    """The filters that texts of the form `NAME:key=value,key=value` name; each is made once to check it.

    Raises:
        ValueError: names the filter or parameter that is wrong, the nearest one, and what a value may be.
    """
    choices = tuple(_parsed(text) for text in texts)
    for choice in choices:
        choice.make()
    return choices


def with_filters(pipeline: Pipeline, choices: Sequence[FilterChoice]) -> Pipeline:
    """The pipeline with these filters behind its last stage; filters of links also before anything is fetched."""
    if not choices:
        return pipeline
    filters = _with_own_names([choice.make() for choice in choices])
    stages = pipeline.stages
    early = tuple(f for f in filters if f.is_for_links)
    if early and len(stages) > 1 and isinstance(stages[0], Stage):
        stages = (replace(stages[0], steps=(*stages[0].steps, *early)), *stages[1:])
    added = [
        Stage(STAGE if not n else f"{STAGE}_{n + 1}", tuple(some), needs or Resources())
        for n, (needs, some) in enumerate(groupby(filters, lambda f: f.resources))
    ]
    config = {**pipeline.config, "filters": [choice.config() for choice in choices]}
    return replace(pipeline, stages=(*stages, *added), config=config)


def _with_own_names(filters: Iterable[Filter]) -> list[Filter]:
    """A filter that is there twice is counted under two names."""
    found: list[Filter] = []
    for current in filters:
        taken = sum(f.name == current.name or f.name.startswith(f"{current.name}#") for f in found)
        found.append(replace(current, name=f"{current.name}#{taken + 1}") if taken else current)
    return found


def parameters_of(name: str) -> list[Parameter]:
    """The parameters of a filter, in order."""
    factory = FILTERS[name]
    hints = typing.get_type_hints(factory, include_extras=True)
    declared = inspect.signature(factory).parameters.values()
    return [Parameter(p.name, hints[p.name], p.default) for p in declared]


def reasons_of_filter(name: str) -> Reasons:
    """The reasons that a filter may give."""
    return sys.modules[FILTERS[name].__module__].REASONS


def described(name: str) -> Iterator[str]:
    """Lines that say what a filter does, its parameters with their defaults, and its reasons."""
    yield f"{name}: {(inspect.getdoc(FILTERS[name]) or '').splitlines()[0]}"
    for parameter in parameters_of(name):
        yield f"    {parameter.name}={shown_value(parameter.default)}  ({parameter.words})"
    for word, reason in reasons_of_filter(name).items():
        yield f"    -> {word}: {reason.meaning}"


def shown_value(value: Any) -> str:
    """A value as it is written in an option."""
    return "none" if value is None else "+".join(value) if isinstance(value, tuple) else str(value)


def content_hash(path: str) -> str | None:
    """The SHA-256 of a file, or of all files of a folder with their names; null where there is none."""
    if "://" in path:
        with fsspec.open(path, "rb") as file:
            return hashlib.file_digest(typing.cast(Any, file), "sha256").hexdigest()
    found = Path(path).expanduser()
    if not path or not found.exists():
        return None
    if found.is_file():
        with found.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for part in sorted(p for p in found.rglob("*") if p.is_file()):
        digest.update(f"{part.relative_to(found)}\0{content_hash(str(part))}\0".encode())
    return digest.hexdigest()


def _parsed(text: str) -> FilterChoice:
    name, _, rest = text.strip().partition(":")
    if name not in FILTERS:
        near = difflib.get_close_matches(name, FILTERS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(
            f"no filter {name!r}; {hint}the filters are {', '.join(FILTERS)} (see emu filters)"
        )
    known = {p.name: p for p in parameters_of(name)}
    arguments: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, sign, value = part.partition("=")
        if not sign:
            raise ValueError(f"{name}: {part!r} is not key=value (parts are separated by commas)")
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(
                f"{name} has no parameter {key!r}; {hint}its parameters are {', '.join(known)}"
            )
        if key in arguments:
            raise ValueError(f"{name}: {key} is given twice")
        try:
            arguments[key] = known[key].value_of(value)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return FilterChoice(name, arguments)


def _words(hint: Any) -> str:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return "a path or name" if FILE in parts else _words(parts[0])
    if origin is Literal:
        return " or ".join(map(str, parts))
    if origin is tuple:
        return "words joined by +"
    if origin in (typing.Union, types.UnionType):
        return " or ".join("none" if p is types.NoneType else _words(p) for p in parts)
    names = {int: "a whole number", float: "a number", str: "a word", bool: "true or false"}
    return names[hint]
