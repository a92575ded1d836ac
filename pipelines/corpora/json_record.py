"""One record of JSON, read strictly: its fields checked by name, or `Rejected` with the reason why it is none."""

from typing import Any, TypeVar

from pipelines.core.pipeline import Reason, Reasons, Rejected
from schemas import strict_json
from schemas.strict_json import JsonError

T = TypeVar("T")

RECORD_REASONS: Reasons = {
    "malformed_json": Reason("The record is not JSON."),
    "nested_too_deeply": Reason("The JSON is nested too deeply."),
    "doubled_field": Reason(
        "An object of the record has a field twice, so its value is ambiguous."
    ),
    "not_an_object": Reason("The record is JSON, but not an object."),
    "missing_field": Reason("A required field is missing."),
    "wrong_type": Reason("A field has a value of a wrong type."),
    "bad_unicode": Reason(
        "A text or a name contains half of a surrogate pair, which is not a character."
    ),
}
"""Why a text holds no record: reason -> one sentence for a person."""

_UNCHECKED = frozenset({"not_finite", "bad_unicode"})
_SHOWN_CHARACTERS = 60
_TYPES = {str: "a string", list: "a list", dict: "an object", int: "a whole number"}


def load_object(text: str) -> dict[str, Any]:
    """The object that a text holds; values that no field reader asks for may be NaN or infinite.

    Raises:
        Rejected: with a reason of `RECORD_REASONS`.
    """
    try:
        value = strict_json.loads(text, tolerated=_UNCHECKED)
    except JsonError as error:
        raise _rejected(error, text) from None
    if not isinstance(value, dict):
        raise Rejected("not_an_object", f"the record is {shown(value)}")
    return value


def value_of(record: dict[str, Any], name: str, type_: type[T], where: str = "") -> T:
    """The value of a field that must be there and of a type; strings are valid Unicode."""
    path = f"{where}.{name}" if where else name
    if name not in record:
        raise Rejected("missing_field", path)
    return checked(record[name], type_, path)


def checked(value: Any, type_: type[T], where: str) -> T:
    """The value, of which the type is checked; strings are valid Unicode."""
    if not isinstance(value, type_) or isinstance(value, bool):  # bool is an int to Python
        raise Rejected("wrong_type", f"{where} is {shown(value)}, expected {_TYPES[type_]}")
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            found = f"{where} holds {value[error.start]!a} at index {error.start}"
            raise Rejected("bad_unicode", found) from None
    return value


def shown(value: Any) -> str:
    """The value in ASCII, shortened: `!a` also shows what is no character."""
    if isinstance(value, str):
        value = value[: _SHOWN_CHARACTERS + 1]
    elif isinstance(value, int) and abs(value) >= 10**_SHOWN_CHARACTERS:
        return f"a number of more than {_SHOWN_CHARACTERS} digits"
    elif isinstance(value, list | dict):
        return f"{_TYPES[type(value)]} of {len(value)}"
    text = ascii(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"


def _rejected(error: JsonError, text: str) -> Rejected:
    if error.reason == "number_too_long":
        return Rejected("malformed_json", f"number too long: {shown(text)}")
    if error.path is None:
        return Rejected(error.reason, f"{error.detail}: {shown(text)}")
    return Rejected(error.reason, f"{_where(error.path)} {error.detail}")


def _where(path: strict_json.Path) -> str:
    """The field as formats write it, shortened: `conversations[0].value`."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return "".join(parts).removeprefix(".")[: 2 * _SHOWN_CHARACTERS] or "the record"
