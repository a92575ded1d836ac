"""One MMC4 v1.1 document, parsed strictly: a checked `Document`, or the reason why the line is none.

| field              | required | checked                                                                |
|--------------------|----------|------------------------------------------------------------------------|
| url                | yes      | string                                                                 |
| text_list          | yes      | strings; at least one that is not blank                                |
| image_info         | yes      | objects; at least one                                                  |
| · raw_url          | yes      | string                                                                 |
| · matched_text_index | yes    | whole number, an index into text_list                                  |
| · matched_sim      | no       | finite number or null                                                  |
| · image_name       | no       | string or null                                                         |
| similarity_matrix  | yes      | images x sentences, finite numbers in -1..1 (CLIP ViT-L/14)            |

Further fields (`face_detections`, `could_have_url_duplicate`, those of other releases) are not checked: a NaN in one of
them costs no document. A name that an object has twice refuses the line wherever it occurs.
Source: MMC4 v1.1 as released (github.com/allenai/mmc4, README).
"""

import math
from dataclasses import dataclass
from typing import Any

from pipelines.core.pipeline import Reason
from pipelines.corpora.json_record import RECORD_REASONS
from schemas import strict_json
from schemas.strict_json import JsonError

DOCUMENT_REASONS: dict[str, Reason] = {
    **RECORD_REASONS,
    "no_text": Reason("The document has no sentence that is not blank."),
    "no_images": Reason("The document lists no image."),
    "matrix_shape": Reason("similarity_matrix is not images x sentences."),
    "not_finite": Reason("A number is NaN or infinite."),
    "similarity_out_of_range": Reason("A similarity is not in -1..1 (perhaps in percent?)."),
    "index_out_of_range": Reason("matched_text_index points at no sentence."),
}
"""Why a line is no document: reason -> one sentence for a person."""

_CHECKED_BY_FIELD = frozenset({"not_finite", "bad_unicode"})
_SHOWN_CHARACTERS = 60
_TYPES = {str: "a string", list: "a list", dict: "an object", int: "a whole number"}
_ROUNDING = 1e-3  # a cosine in half precision may lie this far outside -1..1


class DocumentError(Exception):
    """A line that is no document: data, not an error of the program.

    Args:
        reason: a word of `DOCUMENT_REASONS`.
        detail: the field and the value, shortened.
    """

    def __init__(self, reason: str, detail: str) -> None:
        assert reason in DOCUMENT_REASONS, reason
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Document:
    """A checked document: N images and M sentences."""

    url: str
    texts: tuple[str, ...]
    image_urls: tuple[str, ...]
    image_names: tuple[str | None, ...]
    """File names of the N images; None where the document gives none."""
    matched_text_index: tuple[int, ...]
    """As released: the sentence of each image, from an assignment over all N images."""
    similarity: tuple[tuple[float, ...], ...]
    """N rows of M cosine similarities; empty where the document has none."""


def parse_document(line: str, needs_similarity: bool = True) -> Document:
    """The document that a line holds; raises `DocumentError` for every other line.

    Without `needs_similarity` a document may lack `similarity_matrix`; its `similarity` is empty then.
    """
    document = _loaded(line)
    if not isinstance(document, dict):
        raise DocumentError("not_an_object", f"the line is {_shown(document)}")
    texts = tuple(_string(t, f"text_list[{i}]") for i, t in _items(document, "text_list"))
    if not any(t.strip() for t in texts):
        raise DocumentError("no_text", f"text_list holds {len(texts)} texts, all blank")
    images = [_image(image, i, len(texts)) for i, image in _items(document, "image_info")]
    if not images:
        raise DocumentError("no_images", "image_info is empty")
    has_matrix = needs_similarity or document.get("similarity_matrix") is not None
    return Document(
        url=_string(_field(document, "url"), "url"),
        texts=texts,
        image_urls=tuple(url for url, _, _ in images),
        image_names=tuple(name for _, name, _ in images),
        matched_text_index=tuple(index for _, _, index in images),
        similarity=_matrix(document, len(images), len(texts)) if has_matrix else (),
    )


def _loaded(line: str) -> Any:
    try:
        return strict_json.loads(line, tolerated=_CHECKED_BY_FIELD)
    except JsonError as error:
        raise _document_error(error, line) from None


def _document_error(error: JsonError, line: str) -> DocumentError:
    if error.reason == "number_too_long":
        return DocumentError("malformed_json", f"number too long: {_shown(line)}")
    if error.reason == "nested_too_deeply":
        return DocumentError(error.reason, _shown(line))
    if error.path is None:
        return DocumentError(error.reason, f"{error.detail}: {_shown(line)}")
    return DocumentError(error.reason, f"{_where(error.path)} {error.detail}")


def _where(path: strict_json.Path) -> str:
    """The field as the format writes it, shortened: `image_info[0].raw_url`."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return "".join(parts).removeprefix(".")[: 2 * _SHOWN_CHARACTERS] or "the line"


def _image(image: Any, number: int, num_texts: int) -> tuple[str, str | None, int]:
    where = f"image_info[{number}]"
    _check_type(image, dict, where)
    url = _string(_field(image, "raw_url", where), f"{where}.raw_url")
    index = _field(image, "matched_text_index", where)
    _check_type(index, int, f"{where}.matched_text_index")
    if not 0 <= index < num_texts:
        detail = f"{where}.matched_text_index is {_shown(index)}, text_list has {num_texts} texts"
        raise DocumentError("index_out_of_range", detail)
    if image.get("matched_sim") is not None:
        _number(image["matched_sim"], f"{where}.matched_sim")
    if image.get("image_name") is not None:
        _string(image["image_name"], f"{where}.image_name")
    return url, image.get("image_name"), index


def _matrix(
    document: dict[str, Any], num_images: int, num_texts: int
) -> tuple[tuple[float, ...], ...]:
    rows = [row for _, row in _items(document, "similarity_matrix")]
    if len(rows) != num_images:
        detail = f"similarity_matrix has {len(rows)} rows, image_info {num_images} images"
        raise DocumentError("matrix_shape", detail)
    return tuple(_matrix_row(row, i, num_texts) for i, row in enumerate(rows))


def _matrix_row(row: Any, number: int, num_texts: int) -> tuple[float, ...]:
    where = f"similarity_matrix[{number}]"
    _check_type(row, list, where)
    if len(row) != num_texts:
        detail = f"{where} has {len(row)} columns, text_list {num_texts} texts"
        raise DocumentError("matrix_shape", detail)
    return tuple(_similarity(value, f"{where}[{j}]") for j, value in enumerate(row))


def _similarity(value: Any, where: str) -> float:
    number = _number(value, where)
    if not -1 - _ROUNDING <= number <= 1 + _ROUNDING:
        raise DocumentError("similarity_out_of_range", f"{where} is {_shown(value)}")
    return number


def _number(value: Any, where: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise DocumentError("wrong_type", f"{where} is {_shown(value)}, expected a number")
    try:
        number = float(value)
    except OverflowError:  # a whole number beyond 1e308
        number = math.inf
    if not math.isfinite(number):
        raise DocumentError("not_finite", f"{where} is {_shown(value)}")
    return number


def _string(value: Any, where: str) -> str:
    _check_type(value, str, where)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        detail = f"{where} holds {value[error.start]!a} at index {error.start}"
        raise DocumentError("bad_unicode", detail) from None
    return value


def _items(document: dict[str, Any], name: str) -> list[tuple[int, Any]]:
    value = _field(document, name)
    _check_type(value, list, name)
    return list(enumerate(value))


def _field(values: dict[str, Any], name: str, where: str = "") -> Any:
    if name not in values:
        raise DocumentError("missing_field", f"{where}.{name}" if where else name)
    return values[name]


def _check_type(value: Any, type_: type, where: str) -> None:
    # bool is an int to Python, not to the format
    if not isinstance(value, type_) or isinstance(value, bool):
        raise DocumentError("wrong_type", f"{where} is {_shown(value)}, expected {_TYPES[type_]}")


def _shown(value: Any) -> str:
    """The value in ASCII, shortened: `!a` also shows what is no character."""
    if isinstance(value, str):
        value = value[: _SHOWN_CHARACTERS + 1]
    elif isinstance(value, int) and abs(value) >= 10**_SHOWN_CHARACTERS:
        return "a number of more than 60 digits"
    elif isinstance(value, list | dict):
        return f"{_TYPES[type(value)]} of {len(value)}"
    shown = ascii(value)
    return shown if len(shown) <= _SHOWN_CHARACTERS else shown[:_SHOWN_CHARACTERS] + "…"
