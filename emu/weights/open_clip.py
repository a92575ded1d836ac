"""Reads the visual encoder from a CLIP checkpoint: of open_clip by tag or file, or of EVA's own file."""

from __future__ import annotations

import os
from pathlib import Path

from torch import Tensor

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
    path = Path(weights)
    if not path.exists():
        path = _fetched(str(weights), cache_dir)
    files = WeightFiles(path)
    for prefix in PREFIXES:
        if prefix + MARK in files.entries:
            names = [name for name in files.entries if name.startswith(prefix)]
            tensors = (tensor.clone() for tensor in files.read(names))
            ours = (TRUNK + name.removeprefix(prefix) for name in names)
            return dict(zip(ours, tensors, strict=True))
    some = ", ".join(list(files.entries)[:3])
    raise WeightsError(
        f"{path}: holds no EVA tower (no {PREFIXES[0]}{MARK}); its keys are {some} …"
    )


def _fetched(tag: str, cache_dir: str | None) -> Path:
    tags = open_clip_tags()
    if tag not in tags:
        raise FileNotFoundError(
            f"no weights at {tag!r}, and it is no pretrained tag of open_clip with this tower; tags are "
            f"{sorted(tags)}"
        )
    from open_clip.pretrained import download_pretrained, get_pretrained_cfg

    try:
        found = download_pretrained(get_pretrained_cfg(tags[tag], tag), cache_dir=cache_dir)
    except (OSError, RuntimeError) as error:
        offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
        hint = "HF_HUB_OFFLINE is set; " if offline else ""
        raise FileNotFoundError(
            f"open_clip's {tags[tag]} {tag} is neither in its cache nor can it be fetched; {hint}give the "
            "path of a downloaded checkpoint instead"
        ) from error
    return Path(found)
