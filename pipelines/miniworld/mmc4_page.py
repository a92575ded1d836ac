"""Synthetic web pages in the form of MMC4 documents, and the faults that such documents have on the web.

The external form is that of MMC4 v1.1 (arXiv 2304.06939, its README). Similarities follow from what an image and a
sentence have in common: a sentence that describes an image lies above `SIMILARITY_GAP`, everything else below, so
that every threshold within the gap keeps the same images.

A document has at most one fault: a link kind (the link of one image behaves so), a fault of the whole document, or a
malformed line. The faults alternate over the faulty documents, so that a world of some size has them all.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from pipelines.miniworld import language
from pipelines.miniworld.config import MiniworldConfig
from pipelines.miniworld.link_kinds import LINK_KINDS, PAGE_HOST, link_url
from pipelines.miniworld.render import FileForm, sample_file_form, size_px
from pipelines.miniworld.scene import Scene, pick, sample_scene

Document = dict[str, Any]

SIMILARITY_GAP = (0.18, 0.35)
"""No similarity of a synthetic world lies between these; the paper's threshold is 0.32, OpenFlamingo's 0.24."""

LOW_SIMILARITY = "low_similarity"
"""No sentence describes one of the images: its link works, its similarity is low."""
BROKEN_LINKS = "broken_links"
"""Every link of the document returns 404."""
NO_IMAGES = "no_images"
"""A well-formed document without images."""

_BASE, _OVERLAP, _DESCRIBED, _NOISE = 0.10, 0.06, 0.21, 0.02


@dataclass(frozen=True)
class PageImage:
    """An image of a page: its scene, its file and how its link behaves."""

    name: str
    scene: Scene
    form: FileForm
    link_kind: str
    questions: tuple[language.Question, ...]

    @property
    def raw_url(self) -> str:
        """The URL in the document."""
        return link_url(self.link_kind, self.name)


@dataclass(frozen=True)
class Sentence:
    """A sentence, its content words, and the index of the image that it describes, if any."""

    text: str
    content: frozenset[str] = frozenset()
    describes: int | None = None


@dataclass(frozen=True)
class Page:
    """A page with its matrix `similarity_IS` (images x sentences) and the sentence matched to each image."""

    url: str
    images: tuple[PageImage, ...]
    sentences: tuple[Sentence, ...]
    similarity_IS: np.ndarray
    matched: tuple[int, ...]

    def is_described(self, image: int) -> bool:
        """Whether the matched sentence is the one that describes the image."""
        return self.sentences[self.matched[image]].describes == image

    def document(self) -> Document:
        """The page in the form of an MMC4 v1.1 line."""
        matrix = self.similarity_IS.tolist()
        image_info = [
            {
                "image_name": image.name,
                "raw_url": image.raw_url,
                "matched_text_index": sentence,
                "matched_sim": matrix[i][sentence],
                "face_detections": None,
            }
            for i, (image, sentence) in enumerate(zip(self.images, self.matched, strict=True))
        ]
        return {
            "url": self.url,
            "text_list": [sentence.text for sentence in self.sentences],
            "image_info": image_info,
            "similarity_matrix": matrix,
            "could_have_url_duplicate": 0,
        }

    def truth(self) -> list[dict[str, Any]]:
        """The ground truth of each image: link, sentence, size, scene, caption, questions."""
        return [self._truth_of(i) for i in range(len(self.images))]

    def _truth_of(self, i: int) -> dict[str, Any]:
        image = self.images[i]
        width, height = size_px(image.scene, image.form.shorter_side_px)
        kind = LINK_KINDS[image.link_kind]
        return {
            "image_name": image.name,
            "raw_url": image.raw_url,
            "page_url": self.url,
            "link_kind": image.link_kind,
            "arrives": kind.arrives,
            "file": f"images/{image.name}" if kind.has_file else None,
            "described_by": self.matched[i] if self.is_described(i) else None,
            "width": width,
            "height": height,
            "orientation": image.form.orientation,
            "caption": language.caption(image.scene),
            "questions": [dataclasses.asdict(question) for question in image.questions],
            "scene": dataclasses.asdict(image.scene),
        }


def sample_page(config: MiniworldConfig, index: int, fault: str | None = None) -> Page:
    """The page at `index`; it depends on the seed and the index only, not on the size of the world."""
    rng = np.random.default_rng([config.seed, index])
    images = _sample_images(config, index, fault, rng)
    undescribed = int(rng.integers(len(images))) if fault == LOW_SIMILARITY else None
    sentences = _sample_sentences(config, images, undescribed, rng)
    similarity = _sample_similarity(images, sentences, rng)
    rows, columns = linear_sum_assignment(-similarity)
    assert list(rows) == list(range(len(images)))
    return Page(
        url=f"http://{PAGE_HOST}/{config.seed}/{index:06d}.html",
        images=images,
        sentences=sentences,
        similarity_IS=similarity,
        matched=tuple(int(column) for column in columns),
    )


def _sample_images(
    config: MiniworldConfig, index: int, fault: str | None, rng: np.random.Generator
) -> tuple[PageImage, ...]:
    fewest, most = config.images_per_document
    num_images = 0 if fault == NO_IMAGES else int(rng.integers(fewest, most + 1))
    scenes: dict[frozenset[str], Scene] = {}
    while len(scenes) < num_images:  # no two images of a page have the same description
        scene = sample_scene(rng, config.max_things)
        scenes.setdefault(language.content_words(language.caption(scene)), scene)
    kinds = ["not_found" if fault == BROKEN_LINKS else "image"] * num_images
    if fault in LINK_KINDS:
        kinds[int(rng.integers(num_images))] = fault
    return tuple(
        _sample_image(f"w{config.seed}_{index:06d}_{i}", scene, kind, rng)
        for i, (scene, kind) in enumerate(zip(scenes.values(), kinds, strict=True))
    )


def _sample_image(stem: str, scene: Scene, kind: str, rng: np.random.Generator) -> PageImage:
    form = sample_file_form(rng)
    questions = language.questions(scene, rng)
    return PageImage(f"{stem}.{form.format}", scene, form, kind, questions)


def _sample_sentences(
    config: MiniworldConfig,
    images: tuple[PageImage, ...],
    undescribed: int | None,
    rng: np.random.Generator,
) -> tuple[Sentence, ...]:
    """A description of each image except the undescribed one, some questions, and unrelated sentences.

    On half of the pages the order of the descriptions differs from that of the images.
    """
    described = [i for i in range(len(images)) if i != undescribed]
    if rng.random() < 0.5:
        described = [described[i] for i in rng.permutation(len(described))]
    blocks = [[_description(i, images[i].scene, rng)] for i in described]
    unasked = list(range(len(blocks)))
    fewest, most = config.sentences_per_document
    num_extras = int(rng.integers(max(fewest, len(images)), most + 1)) - len(blocks)
    fillers = iter(rng.permutation(len(language.FILLERS)).tolist() * (1 + most // 20))
    unrelated: list[Sentence] = []
    for _ in range(num_extras):
        if unasked and rng.random() < 0.5:
            asked = unasked.pop(int(rng.integers(len(unasked))))
            blocks[asked].append(_follow_up(images[described[asked]], rng))
        else:
            unrelated.append(Sentence(language.FILLERS[next(fillers)]))
    for sentence in unrelated:
        blocks.insert(int(rng.integers(len(blocks) + 1)), [sentence])
    return tuple(sentence for block in blocks for sentence in block)


def _description(i: int, scene: Scene, rng: np.random.Generator) -> Sentence:
    content = language.content_words(language.caption(scene))
    return Sentence(language.describe(scene, rng), content, describes=i)


def _follow_up(image: PageImage, rng: np.random.Generator) -> Sentence:
    text = language.answered(pick(rng, image.questions))
    return Sentence(text, language.content_words(text))


def _sample_similarity(
    images: tuple[PageImage, ...], sentences: tuple[Sentence, ...], rng: np.random.Generator
) -> np.ndarray:
    """Images x sentences: a base value, more for shared content words, much more for the image's own description."""
    similarity = _BASE + rng.uniform(-_NOISE, _NOISE, size=(len(images), len(sentences)))
    for i, image in enumerate(images):
        content = language.content_words(language.caption(image.scene))
        for j, sentence in enumerate(sentences):
            shared = len(content & sentence.content) / len(content | sentence.content)
            similarity[i, j] += _OVERLAP * shared + _DESCRIBED * (sentence.describes == i)
    return similarity.round(6)


def to_line(document: Document) -> bytes:
    """The document as one line of JSON, without a line feed."""
    return json.dumps(document, ensure_ascii=False).encode()


def _cut_line(document: Document) -> bytes:
    line = to_line(document)
    return line[: len(line) * 2 // 3]


def _not_utf8(document: Document) -> bytes:
    return to_line(document).replace(b'"text_list": ["', b'"text_list": ["\xff\xfe', 1)


def _not_an_object(document: Document) -> bytes:
    return json.dumps(document["text_list"]).encode()


def _missing_field(document: Document) -> bytes:
    return to_line({name: value for name, value in document.items() if name != "text_list"})


def _wrong_type(document: Document) -> bytes:
    return to_line(document | {"text_list": " ".join(document["text_list"])})


def _short_matrix(document: Document) -> bytes:
    first, *others = document["similarity_matrix"]
    return to_line(document | {"similarity_matrix": [first[:-1], *others]})


def _index_out_of_range(document: Document) -> bytes:
    first, *others = document["image_info"]
    first = first | {"matched_text_index": len(document["text_list"])}
    return to_line(document | {"image_info": [first, *others]})


MALFORMED: dict[str, Callable[[Document], bytes]] = {
    "cut_line": _cut_line,
    "missing_field": _missing_field,
    "short_matrix": _short_matrix,
    "index_out_of_range": _index_out_of_range,
    "wrong_type": _wrong_type,
    "not_utf8": _not_utf8,
    "not_an_object": _not_an_object,
}
"""Malformed lines by kind: functions from a well-formed document with an image to the bytes of an invalid line."""

FAULTS: tuple[str, ...] = (
    *("not_found", LOW_SIMILARITY, "cut_line", "throttled", "html", "missing_field", "noai"),
    *("loopback", BROKEN_LINKS, "redirect", "truncated", "short_matrix", "flaky", NO_IMAGES),
    *("huge", "index_out_of_range", "redirect_loopback", "empty", "wrong_type", "forbidden"),
    *("local_file", "not_utf8", "not_an_object"),
)
"""Every fault, in the order in which they appear in a world: the common ones first."""

assert set(FAULTS) == {*LINK_KINDS, *MALFORMED, LOW_SIMILARITY, BROKEN_LINKS, NO_IMAGES} - {"image"}


def fault_of(config: MiniworldConfig, index: int) -> str | None:
    """The fault of the document at `index`, or None; faulty documents are evenly spread."""
    turn = int(index * config.bad_share + 1e-9)
    is_faulty = int((index + 1) * config.bad_share + 1e-9) > turn
    return FAULTS[turn % len(FAULTS)] if is_faulty else None
