"""Weights of CLIP models: the visual encoder from a checkpoint of open_clip (by tag or file) or of EVA, and any model's
image tower as open_clip itself makes it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from emu.weights.reader import WeightFiles, WeightsError

MODELS = ("EVA01-g-14", "EVA01-g-14-plus")  # the same tower, with text towers of two sizes
TRUNK = "trunk."
PREFIXES = ("visual.trunk.", "trunk.", "visual.", "")  # of open_clip, its tower alone, EVA, timm
MARK = "cls_token"


def open_clip_tags() -> dict[str, str]:
    """The pretrained tags whose tower this model has, and open_clip's name of their model."""
    import open_clip  # takes seconds

    return {tag: name for name in MODELS for tag in open_clip.list_pretrained_tags_by_model(name)}


def open_clip_tower(weights: str | Path, cache_dir: str | None = None) -> dict[str, Tensor]:
    """The tower's tensors, for `VisualEncoder.load_open_clip`, of a pretrained tag or of files.

    A tag is fetched by open_clip, or found in its cache. A file may be a whole CLIP checkpoint of open_clip
    or of EVA, or the tower alone. Raises FileNotFoundError where there is no such file and where a tag
    cannot be fetched, WeightsError for a file without an EVA tower.
    """
    return {name: tensor.clone() for name, tensor in open_clip_tensors(weights, cache_dir)}


def open_clip_tensors(
    weights: str | Path, cache_dir: str | None = None
) -> Iterator[tuple[str, Tensor]]:
    """The same one after the other; each is to be used before the next is taken."""
    path = Path(weights)
    if not path.exists():
        path = _fetched(str(weights), cache_dir)
    files = WeightFiles(path)
    for prefix in PREFIXES:
        if prefix + MARK in files.entries:
            names = [name for name in files.entries if name.startswith(prefix)]
            ours = (TRUNK + name.removeprefix(prefix) for name in names)
            yield from zip(ours, files.read(names), strict=True)
            return
    some = ", ".join(list(files.entries)[:3])
    raise WeightsError(
        f"{path}: holds no EVA tower (no {PREFIXES[0]}{MARK}); its keys are {some} …"
    )


def _fetched(tag: str, cache_dir: str | None) -> Path:
    tags = open_clip_tags()
    if tag not in tags:
        raise FileNotFoundError(
            f"no weights at {tag!r}, and it is no pretrained tag of open_clip with this tower; tags are "
            f"{sorted(tags)}{_hint(tag)}"
        )
    from open_clip.pretrained import download_pretrained, get_pretrained_cfg

    try:
        found = download_pretrained(get_pretrained_cfg(tags[tag], tag), cache_dir=cache_dir)
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"open_clip's {tags[tag]} {tag} is neither in its cache nor can it be fetched; {_offline()}give the "
            "path of a downloaded checkpoint instead"
        ) from error
    return Path(found)


def is_tower_tag(weights: str) -> bool:
    """Whether this is a pretrained tag whose tower this model has, and no file of that name."""
    return not Path(weights).exists() and weights in open_clip_tags()


def open_clip_visual(model: str, with_weights: bool = True) -> nn.Module:
    """The image tower of a model as open_clip makes it, with its `preprocess_cfg`.

    Args:
        model: `MODEL:TAG`, `MODEL:FILE`, `hf-hub:OWNER/NAME` or `local-dir:FOLDER`.
        with_weights: whether its weights are read; the text tower is dropped in any case.

    Raises:
        FileNotFoundError: there are no such weights, or they cannot be fetched.
        ValueError: an unknown model; weights that do not fit it, or that are damaged.
    """
    import open_clip

    head, _, rest = model.partition(":")
    is_named = head not in ("hf-hub", "local-dir")
    name, pretrained = (head, rest) if is_named else (model, None)
    if is_named:
        _check_named(head, rest)
    make: Any = open_clip.create_model
    try:
        with _quiet():
            made = make(
                name,
                pretrained if with_weights else None,
                load_weights=with_weights,
                device="cpu" if with_weights else "meta",
                require_pretrained=with_weights,
                pretrained_text=False,
            )
    except Exception as error:  # open_clip raises nearly anything, of the hub, of torch and its own
        is_file = is_named and Path(rest).is_file()
        first = (str(error).splitlines() or [type(error).__name__])[0]
        if is_file or head == "local-dir":
            raise ValueError(f"{rest}: cannot be read as open_clip's {head}: {first}") from error
        raise FileNotFoundError(
            f"open_clip's {model} is neither in its cache nor can it be fetched ({first}); {_offline()}give "
            "MODEL:FILE, a downloaded checkpoint, instead"
        ) from error
    return made.visual


def _check_named(name: str, pretrained: str) -> None:
    import open_clip

    if name not in open_clip.list_models():
        raise ValueError(
            f"open_clip has no model {name!r}; give MODEL:TAG or MODEL:FILE with one of "
            "open_clip.list_models()"
        )
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained not in tags and not Path(pretrained).is_file():
        raise FileNotFoundError(
            f"no weights at {pretrained!r}, and it is no pretrained tag of open_clip's {name}; tags are {tags}"
        )
    known, made = open_clip.get_pretrained_cfg(name, pretrained), open_clip.get_model_config(name)
    trained_with = bool(known and known.get("quick_gelu"))
    other = f"{name}-quickgelu" if trained_with else name.removesuffix("-quickgelu")
    if known and trained_with != bool(made and made.get("quick_gelu")) and other != name:
        raise ValueError(
            f"the weights {name}:{pretrained} were trained with{'' if trained_with else 'out'} QuickGELU, the model "
            f"{name} {'has not' if trained_with else 'has'} it: its features would be wrong; give {other}:{pretrained}"
        )


def _hint(text: str) -> str:
    """What may be meant by a word that is no tag of this tower."""
    import open_clip

    if text in open_clip.list_models():
        return f"; {text} is a model: give its weights too, {text}:TAG or {text}:FILE"
    models = [model for model, tag in open_clip.list_pretrained() if tag == text]
    return f"; it is a tag of {', '.join(models)}: give MODEL:{text}" if models else ""


def _offline() -> str:
    is_offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    return "HF_HUB_OFFLINE is set; " if is_offline else ""


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the lines that open_clip writes to the root logger; its errors arrive as exceptions."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
