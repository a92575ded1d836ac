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

from pipelines.core.pipeline import Reason, Rejected
from pipelines.corpora.json_record import RECORD_REASONS, checked, load_object, shown, value_of

DOCUMENT_REASONS: dict[str, Reason] = {
    **RECORD_REASONS,
    "no_text": Reason("The document has no text, or only blank sentences."),
    "no_images": Reason("The document lists no image."),
    "matrix_shape": Reason("The size of similarity_matrix is not images x sentences."),
    "not_finite": Reason("A number is NaN or infinite."),
    "similarity_out_of_range": Reason(
        "A similarity is not between -1 and 1 (perhaps it is in percent?)."
    ),
    "index_out_of_range": Reason("matched_text_index does not point to a sentence."),
}
"""Why a line is no document: reason -> one sentence for a person."""

_ROUNDING = 1e-3  # a cosine in half precision may lie this far outside -1..1


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
    """The document that a line holds; raises `Rejected` for every other line.

    Without `needs_similarity` a document may lack `similarity_matrix`; its `similarity` is empty then.
    """
    document = load_object(line)
    texts = tuple(checked(t, str, f"text_list[{i}]") for i, t in _items(document, "text_list"))
    if not any(t.strip() for t in texts):
        raise Rejected("no_text", f"text_list holds {len(texts)} texts, all blank")
    images = [_image(image, i, len(texts)) for i, image in _items(document, "image_info")]
    if not images:
        raise Rejected("no_images", "image_info is empty")
    has_matrix = needs_similarity or document.get("similarity_matrix") is not None
    return Document(
        url=value_of(document, "url", str),
        texts=texts,
        image_urls=tuple(url for url, _, _ in images),
        image_names=tuple(name for _, name, _ in images),
        matched_text_index=tuple(index for _, _, index in images),
        similarity=_matrix(document, len(images), len(texts)) if has_matrix else (),
    )


def _image(image: Any, number: int, num_texts: int) -> tuple[str, str | None, int]:
    where = f"image_info[{number}]"
    image = checked(image, dict, where)
    url = value_of(image, "raw_url", str, where)
    index = value_of(image, "matched_text_index", int, where)
    if not 0 <= index < num_texts:
        detail = f"{where}.matched_text_index is {shown(index)}, text_list has {num_texts} texts"
        raise Rejected("index_out_of_range", detail)
    if image.get("matched_sim") is not None:
        _number(image["matched_sim"], f"{where}.matched_sim")
    if image.get("image_name") is not None:
        value_of(image, "image_name", str, where)
    return url, image.get("image_name"), index


def _matrix(
    document: dict[str, Any], num_images: int, num_texts: int
) -> tuple[tuple[float, ...], ...]:
    rows = [row for _, row in _items(document, "similarity_matrix")]
    if len(rows) != num_images:
        detail = f"similarity_matrix has {len(rows)} rows, image_info {num_images} images"
        raise Rejected("matrix_shape", detail)
    return tuple(_matrix_row(row, i, num_texts) for i, row in enumerate(rows))


def _matrix_row(row: Any, number: int, num_texts: int) -> tuple[float, ...]:
    where = f"similarity_matrix[{number}]"
    row = checked(row, list, where)
    if len(row) != num_texts:
        detail = f"{where} has {len(row)} columns, text_list {num_texts} texts"
        raise Rejected("matrix_shape", detail)
    return tuple(_similarity(value, f"{where}[{j}]") for j, value in enumerate(row))


def _similarity(value: Any, where: str) -> float:
    number = _number(value, where)
    if not -1 - _ROUNDING <= number <= 1 + _ROUNDING:
        raise Rejected("similarity_out_of_range", f"{where} is {shown(value)}")
    return number


def _number(value: Any, where: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise Rejected("wrong_type", f"{where} is {shown(value)}, expected a number")
    try:
        number = float(value)
    except OverflowError:  # a whole number beyond 1e308
        number = math.inf
    if not math.isfinite(number):
        raise Rejected("not_finite", f"{where} is {shown(value)}")
    return number


def _items(document: dict[str, Any], name: str) -> list[tuple[int, Any]]:
    return list(enumerate(value_of(document, name, list)))
