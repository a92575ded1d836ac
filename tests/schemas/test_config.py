"""Configurations refuse values beyond their bounds, and say the field, the value, the limit and a hint."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import tyro
from pydantic import Field

from schemas.validation import Checked, Complete, ConfigError, from_json


@dataclass(frozen=True)
class Inner(Checked):
    depth: Annotated[int, Field(ge=1)] = 1


@dataclass(frozen=True)
class Example(Checked):
    workers: Annotated[int, Field(ge=1, le=4096, description="one a core")] = 2
    rate: Annotated[float, Field(gt=0)] = 1.0
    share: Annotated[float, Field(ge=0, lt=1)] = 0.5
    kind: Literal["small", "large"] = "small"
    limit: Annotated[int, Field(ge=1)] | None = None
    name: str = "x"
    folder: Path | None = None
    sizes: tuple[int, ...] = (1, 2)
    by_name: Mapping[str, int] = field(default_factory=dict)
    is_on: bool = False
    inner: Inner = field(default_factory=Inner)


def test_values_within_the_bounds_are_taken_as_they_are() -> None:
    made = Example(4096, 2, 0.0, "large", 1, "y", Path("a"), (), {"a": 1}, True, Inner(3))
    assert (made.workers, made.rate, made.inner.depth) == (4096, 2, 3)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"workers": 0}, ("workers", "0", "1 to 4,096", "one a core")),
        ({"workers": 4097}, ("workers", "4097", "1 to 4,096")),
        ({"workers": True}, ("workers", "True", "whole number")),
        ({"workers": 2.0}, ("workers", "2.0", "whole number")),
        ({"workers": "2"}, ("workers", "'2'", "whole number")),
        ({"rate": 0.0}, ("rate", "0.0", "give a number above 0")),
        ({"rate": -1}, ("rate", "-1", "give a number above 0")),
        ({"rate": math.nan}, ("rate", "nan", "finite")),
        ({"rate": math.inf}, ("rate", "inf", "finite")),
        ({"share": 1.0}, ("share", "1.0", "at least 0", "below 1")),
        ({"kind": "tiny"}, ("kind", "'tiny'", "'small' or 'large'")),
        ({"limit": 0}, ("limit", "0", "at least 1")),
        ({"name": 3}, ("name", "3", "a string")),
        ({"sizes": [1]}, ("sizes", "[1]", "a tuple")),
        ({"is_on": 1}, ("is_on", "1", "true or false")),
    ],
)
def test_a_value_beyond_them_is_named_with_the_limit(
    values: dict[str, Any], words: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError) as caught:
        Example(**values)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_command_line_keeps_the_bounds(capsys: pytest.CaptureFixture[str]) -> None:
    assert tyro.cli(Example, args=["--workers", "3", "--inner.depth", "2"]).inner.depth == 2
    with pytest.raises((SystemExit, ConfigError)):
        tyro.cli(Example, args=["--inner.depth", "0"])


def test_a_bound_of_a_float_asks_for_a_number() -> None:
    @dataclass(frozen=True)
    class Half(Checked):
        share: Annotated[float, Field(gt=0, le=1)] = 1.0

    with pytest.raises(ConfigError, match=r"^share is 0, give a number above 0 and of at most 1$"):
        Half(share=0)


@dataclass(frozen=True)
class Sizes(Complete):
    width: Annotated[int, Field(ge=1, description="of a layer")] = 8
    heads: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.heads:
            raise ValueError(f"width is {self.width}, give a multiple of heads = {self.heads}")


@dataclass(frozen=True)
class Document(Checked):
    sizes: Sizes = field(default_factory=Sizes)
    spare: Sizes | None = None
    rates: tuple[float, ...] = (0.5,)
    counts: Mapping[str, Annotated[int, Field(ge=1)]] = field(default_factory=dict)
    is_on: bool = False


SIZES = '"sizes": {"width": 4, "heads": 2}'


def test_a_json_document_becomes_nested_dataclasses() -> None:
    text = f'{{{SIZES}, "spare": {{"width": 6, "heads": 3}}, "rates": [1, 0.25], "counts": {{"a": 2}}}}'
    made = from_json(Document, text)
    assert made == Document(Sizes(4, 2), Sizes(6, 3), (1.0, 0.25), {"a": 2})
    assert from_json(Document, f"{{{SIZES}}}") == Document(Sizes(4, 2))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", ("file: ", "not JSON")),
        ("[]", ("file is []", "an object")),
        (f"{{{SIZES}, {SIZES}}}", ("file: sizes", "twice")),
        (f'{{{SIZES}, "ratse": []}}', ("file has the unknown key 'ratse'", "'rates'", "counts")),
        ('{"sizes": {"wdith": 4}}', ("file.sizes has the unknown key 'wdith'", "'width'")),
        ("{}", ("file lacks the keys sizes",)),
        ('{"sizes": {}}', ("file.sizes lacks the keys width, heads",)),
        (f'{{{SIZES}, "spare": {{"heads": 1}}}}', ("file.spare lacks the keys width",)),
        ('{"sizes": null}', ("file.sizes is None", "an object")),
        (
            '{"sizes": {"width": 0, "heads": 2}}',
            ("file.sizes.width is 0", "a whole number of at least 1 (of a layer)"),
        ),
        ('{"sizes": {"width": 4, "heads": true}}', ("file.sizes.heads is True", "a whole number")),
        (
            '{"sizes": {"width": 4, "heads": 3}}',
            ("file.sizes: width is 4", "multiple of heads = 3"),
        ),
        (f'{{{SIZES}, "rates": 1}}', ("file.rates is 1", "a list")),
        (f'{{{SIZES}, "rates": [1, "x"]}}', ("file.rates.1 is 'x'", "a number")),
        (f'{{{SIZES}, "counts": {{"a": 0}}}}', ("file.counts.a is 0", "at least 1")),
        (f'{{{SIZES}, "is_on": 1}}', ("file.is_on is 1", "true or false")),
    ],
)
def test_a_wrong_json_document_is_refused_with_the_path(text: str, words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        from_json(Document, text, "file")
    assert all(word in str(caught.value) for word in words), str(caught.value)
