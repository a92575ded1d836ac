"""One drawn web page: pictures and sentences, matched as the makers of MMC4 match them.

The external form is that of MMC4 v1.1 (arXiv 2304.06939, its README). Similarities are drawn from
what picture and sentence truly have in common: a sentence that describes a picture lies above
`SIMILARITY_GAP`, everything else below, so that every threshold within keeps the same pictures.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from pipelines.miniworld import language
from pipelines.miniworld.config import MiniworldConfig
from pipelines.miniworld.link_kinds import LINK_KINDS, PAGE_HOST, link_url
from pipelines.miniworld.mmc4_trouble import DEAD_LINKS, LOW_SIMILARITY, NO_IMAGES, Document
from pipelines.miniworld.render import FileForm, draw_file_form, size_px
from pipelines.miniworld.scene import Scene, draw_scene, pick

SIMILARITY_GAP = (0.18, 0.35)
"""No similarity of a drawn world lies between; the paper's threshold is 0.32, OpenFlamingo's 0.24."""

_BASE, _OVERLAP, _DESCRIBED, _NOISE = 0.10, 0.06, 0.21, 0.02


@dataclass(frozen=True)
class Picture:
    """A picture of a page: its scene, its file and how its link behaves."""

    name: str
    scene: Scene
    form: FileForm
    link_kind: str
    questions: tuple[language.Question, ...]

    @property
    def raw_url(self) -> str:
        """The address that the document gives."""
        return link_url(self.link_kind, self.name)


@dataclass(frozen=True)
class Sentence:
    """A sentence, the content it speaks of, and the picture that it describes, if any."""

    text: str
    content: frozenset[str] = frozenset()
    describes: int | None = None


@dataclass(frozen=True)
class Page:
    """A page with its matrix `similarity_PS` (pictures x sentences) and each picture's sentence."""

    url: str
    pictures: tuple[Picture, ...]
    sentences: tuple[Sentence, ...]
    similarity_PS: np.ndarray
    matched: tuple[int, ...]

    def is_described(self, picture: int) -> bool:
        """Whether the matched sentence is the picture's own."""
        return self.sentences[self.matched[picture]].describes == picture

    def document(self) -> Document:
        """The page in the form of an MMC4 v1.1 line."""
        matrix = self.similarity_PS.tolist()
        image_info = [
            {
                "image_name": picture.name,
                "raw_url": picture.raw_url,
                "matched_text_index": sentence,
                "matched_sim": matrix[i][sentence],
                "face_detections": None,
            }
            for i, (picture, sentence) in enumerate(zip(self.pictures, self.matched, strict=True))
        ]
        return {
            "url": self.url,
            "text_list": [sentence.text for sentence in self.sentences],
            "image_info": image_info,
            "similarity_matrix": matrix,
            "could_have_url_duplicate": 0,
        }

    def truth(self) -> list[dict[str, Any]]:
        """What is true of each picture: link, sentence, size, scene, caption, questions."""
        return [self._truth_of(i) for i in range(len(self.pictures))]

    def _truth_of(self, i: int) -> dict[str, Any]:
        picture = self.pictures[i]
        width, height = size_px(picture.scene, picture.form.shorter_side_px)
        kind = LINK_KINDS[picture.link_kind]
        return {
            "image_name": picture.name,
            "raw_url": picture.raw_url,
            "page_url": self.url,
            "link_kind": picture.link_kind,
            "arrives": kind.arrives,
            "file": f"images/{picture.name}" if kind.has_file else None,
            "described_by": self.matched[i] if self.is_described(i) else None,
            "width": width,
            "height": height,
            "orientation": picture.form.orientation,
            "caption": language.caption(picture.scene),
            "questions": [dataclasses.asdict(question) for question in picture.questions],
            "scene": dataclasses.asdict(picture.scene),
        }


def draw_page(config: MiniworldConfig, index: int, trouble: str | None = None) -> Page:
    """The page at `index`; it depends on the seed and the index alone, not on the world's size."""
    rng = np.random.default_rng([config.seed, index])
    pictures = _draw_pictures(config, index, trouble, rng)
    silent = int(rng.integers(len(pictures))) if trouble == LOW_SIMILARITY else None
    sentences = _draw_sentences(config, pictures, silent, rng)
    similarity = _similarity(pictures, sentences, rng)
    rows, columns = linear_sum_assignment(-similarity)
    assert list(rows) == list(range(len(pictures)))
    return Page(
        url=f"http://{PAGE_HOST}/{config.seed}/{index:06d}.html",
        pictures=pictures,
        sentences=sentences,
        similarity_PS=similarity,
        matched=tuple(int(column) for column in columns),
    )


def _draw_pictures(
    config: MiniworldConfig, index: int, trouble: str | None, rng: np.random.Generator
) -> tuple[Picture, ...]:
    few, most = config.images_per_document
    num_pictures = 0 if trouble == NO_IMAGES else int(rng.integers(few, most + 1))
    scenes: dict[frozenset[str], Scene] = {}
    while len(scenes) < num_pictures:  # no two pictures of a page have the same description
        scene = draw_scene(rng, config.max_things)
        scenes.setdefault(language.content_words(language.caption(scene)), scene)
    kinds = ["not_found" if trouble == DEAD_LINKS else "image"] * num_pictures
    if trouble in LINK_KINDS:
        kinds[int(rng.integers(num_pictures))] = trouble
    return tuple(
        _draw_picture(f"w{config.seed}_{index:06d}_{i}", scene, kind, rng)
        for i, (scene, kind) in enumerate(zip(scenes.values(), kinds, strict=True))
    )


def _draw_picture(stem: str, scene: Scene, kind: str, rng: np.random.Generator) -> Picture:
    form = draw_file_form(rng)
    questions = language.questions(scene, rng)
    return Picture(f"{stem}.{form.format}", scene, form, kind, questions)


def _draw_sentences(
    config: MiniworldConfig,
    pictures: tuple[Picture, ...],
    silent: int | None,
    rng: np.random.Generator,
) -> tuple[Sentence, ...]:
    """A description of each picture but the silent one, a question here and there, and chatter.

    On half of the pages the descriptions come in another order than the pictures are listed in.
    """
    spoken = [i for i in range(len(pictures)) if i != silent]
    if rng.random() < 0.5:
        spoken = [spoken[i] for i in rng.permutation(len(spoken))]
    blocks = [[_description(i, pictures[i].scene, rng)] for i in spoken]
    unasked = list(range(len(blocks)))
    few, most = config.sentences_per_document
    num_extras = int(rng.integers(max(few, len(pictures)), most + 1)) - len(blocks)
    fillers = iter(rng.permutation(len(language.FILLERS)).tolist() * (1 + most // 20))
    chatter: list[Sentence] = []
    for _ in range(num_extras):
        if unasked and rng.random() < 0.5:
            asked = unasked.pop(int(rng.integers(len(unasked))))
            blocks[asked].append(_follow_up(pictures[spoken[asked]], rng))
        else:
            chatter.append(Sentence(language.FILLERS[next(fillers)]))
    for sentence in chatter:
        blocks.insert(int(rng.integers(len(blocks) + 1)), [sentence])
    return tuple(sentence for block in blocks for sentence in block)


def _description(i: int, scene: Scene, rng: np.random.Generator) -> Sentence:
    content = language.content_words(language.caption(scene))
    return Sentence(language.describe(scene, rng), content, describes=i)


def _follow_up(picture: Picture, rng: np.random.Generator) -> Sentence:
    text = language.answered(pick(rng, picture.questions))
    return Sentence(text, language.content_words(text))


def _similarity(
    pictures: tuple[Picture, ...], sentences: tuple[Sentence, ...], rng: np.random.Generator
) -> np.ndarray:
    """Pictures x sentences: a base, more for shared content, much more for the own description."""
    similarity = _BASE + rng.uniform(-_NOISE, _NOISE, size=(len(pictures), len(sentences)))
    for i, picture in enumerate(pictures):
        content = language.content_words(language.caption(picture.scene))
        for j, sentence in enumerate(sentences):
            shared = len(content & sentence.content) / len(content | sentence.content)
            similarity[i, j] += _OVERLAP * shared + _DESCRIBED * (sentence.describes == i)
    return similarity.round(6)
