"""The dataset card, `OUT/README.md`: what a dataset is, for a person, the Hugging Face Hub and `datasets`.

The front matter (YAML) follows huggingface.co/docs/hub/datasets-cards. Its `configs` name what `load_dataset(OUT)`
reads: the Parquet twin where there is one of every shard; else the tars, if every sample has the same members, which
the `webdataset` builder of `datasets` demands; else nothing, and the card says how to get a twin.

A `README.md` that no build wrote is left as it is.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import jinja2
import pyarrow.compute as pc
import yaml

from pipelines.core.pipeline import Reasons
from pipelines.core.storage import Storage, read_parquet
from pipelines.core.workspace import is_card
from schemas.manifest import CARD_FILE, CARD_MARK, Manifest
from schemas.shard import INDEXES, PARQUET, SHARDS
from schemas.tables import INDEX

log = logging.getLogger(__name__)

PARQUET_CONFIG = {"config_name": "default", "data_files": f"{PARQUET}/*.parquet"}
TAR_CONFIG = {"config_name": "default", "data_files": f"{SHARDS}/*.tar"}
SIZES = {1e3: "n<1K", 1e4: "1K<n<10K", 1e5: "10K<n<100K", 1e6: "100K<n<1M", 1e7: "1M<n<10M"}
_FRONT = re.compile(r"\A---\n(.*?)\n---\n(.*)\Z", re.DOTALL)


@dataclass(frozen=True)
class Card:
    """Writes the dataset card; to be put into `Pipeline.finish`."""

    title: str
    about: str
    """One paragraph: what a sample is."""
    sources: tuple[str, ...] = ()
    """Addresses of the corpus: its page, its paper."""
    licence: str = (
        "The media belong to their owners; the licence of the metadata is that of its source."
    )
    """A sentence; the field `license` of the front matter is `other`."""
    record_word: str = "document"
    tasks: tuple[str, ...] = ("image-text-to-text",)
    """Task categories of the Hub."""

    def __call__(self, storage: Storage, manifest: Manifest, reasons: Reasons) -> None:
        """Write the card of a dataset whose shards and indexes are complete."""
        if storage.exists(CARD_FILE) and not is_card(storage):
            log.warning("out=%s file=%s status=kept: no build wrote it", storage.root, CARD_FILE)
            return
        configs = _configs(storage, manifest)
        body = _template().render(
            card=self,
            manifest=manifest,
            mark=CARD_MARK,
            has_configs=bool(configs),
            is_tar=configs == [TAR_CONFIG],
            num_bytes=sum(s.num_bytes for s in manifest.shards),
            meanings={word: reason.meaning for word, reason in reasons.items()},
            settings=yaml.safe_dump(dict(manifest.config), sort_keys=True, allow_unicode=True),
        )
        front: dict[str, Any] = {
            "pretty_name": self.title,
            "license": "other",
            "task_categories": list(self.tasks),
            "size_categories": [_size_category(manifest.num_samples)],
            **({"configs": configs} if configs else {}),
        }
        _commit(storage, front, body)


def refresh_card(storage: Storage, manifest: Manifest) -> None:
    """Name in the card of a dataset what `load_dataset` reads now, after a twin was written."""
    if not is_card(storage):
        return
    found = _FRONT.match(storage.read_bytes(CARD_FILE).decode())
    if found is None:
        log.warning("out=%s file=%s status=kept: it has no front matter", storage.root, CARD_FILE)
        return
    front = yaml.safe_load(found[1])
    configs = _configs(storage, manifest)
    front.pop("configs", None)
    _commit(storage, {**front, **({"configs": configs} if configs else {})}, found[2])


def _commit(storage: Storage, front: Mapping[str, Any], body: str) -> None:
    head = yaml.safe_dump(dict(front), sort_keys=False, allow_unicode=True)
    storage.commit(CARD_FILE, f"---\n{head}---\n{body}".encode())


def _configs(storage: Storage, manifest: Manifest) -> list[dict[str, str]]:
    if storage.exists(PARQUET):
        from pipelines.publish.export import is_exported  # few datasets have a twin

        if is_exported(storage, manifest):
            return [PARQUET_CONFIG]
    if any(entry.path is not None for entry in manifest.shards):
        return []  # tars of others lie elsewhere, and hold what was dropped too
    return [TAR_CONFIG] if _has_equal_members(storage, manifest) else []


def _has_equal_members(storage: Storage, manifest: Manifest) -> bool:
    """Whether every sample consists of members of the same names, such as jpg, json and txt."""
    found: set[tuple[str, ...]] = set()
    for shard in manifest.shards:
        index = read_parquet(storage, f"{INDEXES}/{shard.name}.parquet", INDEX, ("members",))
        lists = index["members"].combine_chunks()
        names = pc.struct_field(lists.flatten(), "name").to_pylist()
        start = 0
        for length in lists.value_lengths().to_pylist():
            found.add(tuple(names[start : start + length]))
            start += length
        if len(found) > 1:
            return False
    return bool(found)


def _size_category(num_samples: int) -> str:
    return next((name for bound, name in SIZES.items() if num_samples < bound), "n>10M")


def _template() -> jinja2.Template:
    text = files("pipelines.publish").joinpath("templates/card.md.jinja").read_text()
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    return environment.from_string(text)
