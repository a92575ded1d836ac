"""Reads JSON strictly: every value is certain, finite and valid text, or the error names the field that is not.

Python's reader and `pydantic_core.from_json` accept some documents silently: of two equal keys they keep the last,
`1e999` becomes infinity, half of a surrogate pair becomes a string that cannot be encoded. One reader serves the
bodies of HTTP requests, the lines of datasets and the files of the scorers; each caller turns `JsonError` into its
own kind of error. A valid document costs little more than `json.loads`: fields are searched for only after
something was found. A large one that consists of few long strings, such as an image in base64, costs a tenth.
"""

from __future__ import annotations

import json
import math
import re
import sys
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from pydantic_core import from_json

Path = tuple[str | int, ...]
"""The names and indices that lead from the document to a value; empty for the document itself."""

REASONS: Mapping[str, str] = MappingProxyType(
    {
        "malformed_json": "The text is not JSON.",
        "not_utf8": "The bytes are not UTF-8.",
        "nested_too_deeply": "Objects and lists are nested too deeply.",
        "doubled_field": "An object has a field twice, so its value is not certain.",
        "bad_unicode": "A string or a name holds half of a surrogate pair, which is not a character.",
        "not_finite": "A number is NaN, infinite, or too large for a float.",
        "number_too_long": "A whole number has more digits than allowed.",
        "too_many_fields": "An object has more fields than allowed.",
    }
)
"""Why a document is refused: reason -> one sentence for a person."""

MAX_DIGITS = 4300
"""Digits of a whole number by default: the limit of Python's `int`."""
MAX_SHOWN = 60
"""Characters of a name or number that an error repeats."""

LARGE = 1 << 16
"""Bytes of a document from which on it is worth a look whether it consists of few long strings."""
_BYTES_PER_STRING = 1000
_SLOW = object()
_MAYBE_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # the escape of a surrogate


class JsonError(ValueError):
    """A document that is refused.

    Args:
        reason: a word of `REASONS`.
        detail: what is wrong. Of a field, without its name: "appears twice in the same object".
        path: the field; None where the text as a whole is not JSON.
    """

    def __init__(self, reason: str, detail: str, path: Path | None = None) -> None:
        assert reason in REASONS, reason
        self.reason, self.detail, self.path = reason, detail, path
        where = "not JSON:" if path is None else self.field or "the document"
        super().__init__(f"{where} {detail}")

    @property
    def field(self) -> str | None:
        """The path joined by dots, such as `messages.0.role`; None for the document itself."""
        return ".".join(str(part)[:MAX_SHOWN] for part in self.path or ()) or None


def loads(
    document: str | bytes,
    max_digits: int = MAX_DIGITS,
    tolerated: frozenset[str] = frozenset(),
    max_fields: int | None = None,
) -> Any:
    """The value of a JSON document; bytes are UTF-8, with or without a byte order mark.

    `max_fields` limits the fields of each object in a document that does not consist of few long strings.
    `tolerated` may hold `not_finite` and `bad_unicode`: such values are then read as Python reads them. That is for
    readers that check the fields they use and must not refuse a document for a field they ignore.

    Raises:
        JsonError: with the reason and the path of the first field, in the order of the document, that is
            refused.
    """
    if isinstance(document, bytes) and len(document) >= LARGE:
        quick = _few_strings(document)
        if quick is not _SLOW:
            return quick
    text = document if isinstance(document, str) else _decoded(document)
    assert tolerated <= {"not_finite", "bad_unicode"}, tolerated
    allows_infinity = "not_finite" in tolerated
    hooks = _Hooks(max_digits, max_fields)
    try:
        # A function that is left out is Python's own, which takes a fraction of the time.
        value = json.loads(
            text,
            object_pairs_hook=hooks.object,
            parse_constant=None if allows_infinity else hooks.constant,
            parse_int=None if len(text) <= max_digits else hooks.integer,
            parse_float=None if allows_infinity else hooks.float,
        )
    except RecursionError:
        raise JsonError("nested_too_deeply", "it is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise JsonError("malformed_json", f"{error.msg} at character {error.pos}") from None
    is_unicode = "bad_unicode" in tolerated or not (
        ("\\" in text and _MAYBE_HALF.search(text)) or not (text.isascii() or _is_unicode(text))
    )
    if hooks.found or not is_unicode:
        for node, each in _values(value):
            _check(node, each, is_unicode)
    return value


def _few_strings(document: bytes) -> Any:
    """The value of a document of few long strings that nothing is wrong with; `_SLOW` for any other.

    `from_json` refuses all that this module refuses, except for three things: a double field, of which a string is then
    missing (without escapes each string has two quotes), a float above the largest, and a number of many digits.
    """
    most = len(document) // _BYTES_PER_STRING
    num_quotes = _count(document, b'"', most)
    if num_quotes > most or _count(document, b",", most) > most or b"\\" in document:
        return _SLOW
    try:
        value = from_json(document, allow_inf_nan=False)
    except ValueError:
        return _SLOW
    num_strings = 0
    for _, each in _values(value):
        if isinstance(each, str):
            num_strings += 1
        elif each is not None and not -(2**63) <= each < 2**63:
            return _SLOW
    return value if 2 * num_strings == num_quotes else _SLOW


def _count(document: bytes, byte: bytes, most: int) -> int:
    """How often the byte occurs, counted up to one more than `most`; `count` takes many times as long for few."""
    number, index = 0, document.find(byte)
    while index >= 0 and number <= most:
        number, index = number + 1, document.find(byte, index + 1)
    return number


@dataclass(frozen=True)
class _Refused:
    """Takes the position of a refused value until its path is known."""

    reason: str
    detail: str


class _Hooks:
    """What `json.loads` calls for each part; a refused part is marked, since its path is not known yet."""

    def __init__(self, max_digits: int, max_fields: int | None) -> None:
        self.max_digits = max_digits
        self.max_fields = max_fields or sys.maxsize
        self.found = False

    def object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any] | _Refused:
        if len(pairs) > self.max_fields:
            detail = f"has {len(pairs):,} fields, the limit is {self.max_fields:,}"
            return self._refused("too_many_fields", detail)
        values = dict(pairs)
        if len(values) < len(pairs):
            twice = self._refused("doubled_field", "appears twice in the same object; give it once")
            counts = Counter(name for name, _ in pairs)
            values |= {name: twice for name, count in counts.items() if count > 1}
        return values

    def integer(self, digits: str) -> int | _Refused:
        if len(digits) <= self.max_digits:
            return int(digits)
        num_digits = len(digits.lstrip("-"))
        if num_digits <= self.max_digits:
            return int(digits)
        detail = f"is a number of {num_digits:,} digits, the limit is {self.max_digits:,}"
        return self._refused("number_too_long", detail)

    def float(self, text: str) -> float | _Refused:
        value = float(text)
        if -math.inf < value < math.inf:
            return value
        return self._refused(
            "not_finite", f"is {text[:MAX_SHOWN]}, the largest number is 1.797e308"
        )

    def constant(self, name: str) -> _Refused:
        return self._refused("not_finite", f"is {name}, which is not a JSON number")

    def _refused(self, reason: str, detail: str) -> _Refused:
        self.found = True
        return _Refused(reason, detail)


def _decoded(document: bytes) -> str:
    try:
        return document.removeprefix(BOM_UTF8).decode()  # the codec utf-8-sig is many times slower
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        detail = f"byte {byte:#04x} at index {error.start} is not UTF-8"
        raise JsonError("not_utf8", detail) from None


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


_Node = tuple[Any, str | int]
"""The node of the container (None: the document), and the name or index in it: linear where a path is quadratic."""


def _values(value: Any) -> Iterator[tuple[_Node | None, Any]]:
    """Every name, and every value that is not a container, with its node, in the order of the document."""
    left: list[tuple[_Node | None, Any]] = [(None, value)]
    while left:
        node, each = left.pop()
        if isinstance(each, dict):
            yield from ((node, name) for name in each)
            left += [((node, name), one) for name, one in reversed(each.items())]
        elif isinstance(each, list):
            left += [((node, i), each[i]) for i in reversed(range(len(each)))]
        else:
            yield node, each


def _path(node: _Node | None) -> Path:
    parts: list[str | int] = []
    while node is not None:
        node, part = node
        parts.append(part)
    return tuple(reversed(parts))


def _check(node: _Node | None, value: Any, is_unicode: bool) -> None:
    if isinstance(value, _Refused):
        raise JsonError(value.reason, value.detail, _path(node))
    if not is_unicode and isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            half = value[error.start].encode("ascii", "backslashreplace").decode()
            detail = (
                f"is not valid Unicode: {half} at index {error.start} is half of a surrogate pair"
            )
            raise JsonError("bad_unicode", detail, _path(node)) from None
