"""Manifest: what a dataset holds, and that it is complete.

`OUT/manifest.json` is written last; its existence means that every shard, index and ledger it names is
whole. Version 2, or 3 where tars lie elsewhere.

| field       | meaning                                                                                |
|-------------|----------------------------------------------------------------------------------------|
| schema      | `manifest/2`                                                                           |
| corpus      | such as `mmc4`                                                                         |
| sample      | version of the samples, `sample/1`                                                     |
| shards      | list: `name`, `num_samples`, `num_images`, `num_bytes`, `sha256` of the tar; `path` if adopted |
| records     | `total`, `kept`, `dropped` by reason                                                   |
| links       | the same for links                                                                     |
| stages      | by stage and filter: `seen`, and `dropped` by reason                                   |
| alarms      | filters that dropped more than their bound, in words                                   |
| fingerprint | hashes of `inputs`, `config` and `code`: equal fingerprints, equal work                |
| modules     | the modules behind `fingerprint.code`, each with its hash, to name those that differ   |
| config      | the configuration, for a person                                                        |
| features    | null, or what `schemas/features.py` says of precomputed features                       |

Version 1 has no `modules` and is read too.
"""

import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from schemas.sample import SAMPLE_VERSION
from schemas.shard import SHARDS
from schemas.validation import SchemaError

MANIFEST_VERSION = 2
ADOPTED_VERSION = 3
READABLE = ("manifest/1", f"manifest/{MANIFEST_VERSION}", f"manifest/{ADOPTED_VERSION}")
MANIFEST_FILE = "manifest.json"
REPORT_FILE = "report.html"
"""Beside the manifest: the dataset as a page, for a person."""
CARD_FILE = "README.md"
CARD_MARK = "<!-- dataset card, written by its build -->"
"""A line of a card that a build wrote; a `README.md` without it is somebody else's and is left alone."""


@dataclass(frozen=True)
class ShardEntry:
    """One shard of a dataset: its name, what it holds, and the hash of its tar."""

    name: str
    num_samples: int
    num_images: int
    num_bytes: int
    sha256: str
    path: str | None = None
    """Of a tar that was adopted: relative to the dataset, absolute, or an address."""

    @property
    def tar(self) -> str:
        """Where the tar lies: relative to the dataset, absolute, or an address."""
        return self.path or f"{SHARDS}/{self.name}.tar"

    def as_dict(self) -> dict[str, Any]:
        """As JSON, without what is not set."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Tally:
    """A count of records or links: total = kept + all dropped."""

    total: int
    kept: int
    dropped: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_whole(self) -> bool:
        """True when nothing is lost and nothing counted twice."""
        return self.total == self.kept + sum(self.dropped.values())


@dataclass(frozen=True)
class Fingerprint:
    """Hashes of what a dataset was made from; equal fingerprints mean equal work."""

    inputs: str
    config: str
    code: str


@dataclass(frozen=True)
class Manifest:
    """The contents of `manifest.json`; see the table at the top of this module."""

    corpus: str
    shards: tuple[ShardEntry, ...]
    records: Tally
    links: Tally
    fingerprint: Fingerprint
    stages: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    alarms: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    features: Mapping[str, Any] | None = None
    modules: Mapping[str, str] = field(default_factory=dict)

    @property
    def num_samples(self) -> int:
        """Samples over all shards."""
        return sum(s.num_samples for s in self.shards)

    @property
    def num_images(self) -> int:
        """Images over all shards."""
        return sum(s.num_images for s in self.shards)

    def to_json(self) -> str:
        """Indented JSON with sorted keys; raises `SchemaError` if the manifest does not hold."""
        check_manifest(self)
        is_adopted = any(shard.path is not None for shard in self.shards)
        version = ADOPTED_VERSION if is_adopted else MANIFEST_VERSION
        document = {"schema": f"manifest/{version}", "sample": f"sample/{SAMPLE_VERSION}"}
        document |= asdict(replace(self, shards=()))
        document |= {"shards": [shard.as_dict() for shard in self.shards]}
        text = io.StringIO()
        # `dumps` would hold every word of the text as a string of its own: 1,400 bytes per shard.
        json.dump(document, text, indent=2, sort_keys=True)
        return text.getvalue() + "\n"


def check_manifest(manifest: Manifest) -> Manifest:
    """Return the manifest, or raise `SchemaError` naming the count or the shard that is wrong."""
    for name, tally in (("records", manifest.records), ("links", manifest.links)):
        if not tally.is_whole:
            raise SchemaError(
                f"manifest: {name}: total {tally.total} is not kept {tally.kept} + dropped "
                f"{sum(tally.dropped.values())}"
            )
    if manifest.records.kept != manifest.num_samples:
        raise SchemaError(
            f"manifest: {manifest.records.kept} records kept, but the shards hold "
            f"{manifest.num_samples} samples"
        )
    names = [s.name for s in manifest.shards]
    if names != sorted(set(names), key=lambda n: (len(n), n)):
        raise SchemaError("manifest: shards are doubled or out of order")
    return manifest


def manifest_from_json(text: str, where: str = MANIFEST_FILE) -> Manifest:
    """A checked manifest; raises `SchemaError` naming the file and what is wrong with it."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SchemaError(f"{where}: not a manifest: no JSON: {error}") from error
    if not isinstance(document, dict):
        raise SchemaError(f"{where}: not a manifest: a {type(document).__name__}, not an object")
    try:
        version = document.pop("schema")
        if version not in READABLE:
            raise SchemaError(
                f"{where}: version '{version}', this release reads {' and '.join(READABLE)}"
            )
        sample = document.pop("sample")
        if sample != f"sample/{SAMPLE_VERSION}":
            raise SchemaError(
                f"{where}: samples of version '{sample}', this release reads "
                f"'sample/{SAMPLE_VERSION}'"
            )
        manifest = Manifest(
            **document
            | {
                "shards": tuple(ShardEntry(**s) for s in document["shards"]),
                "records": Tally(**document["records"]),
                "links": Tally(**document["links"]),
                "fingerprint": Fingerprint(**document["fingerprint"]),
                "alarms": tuple(document["alarms"]),
            }
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise SchemaError(f"{where}: not a manifest: {error!r}") from error
    return check_manifest(manifest)
