"""Features: precomputed outputs of a visual encoder, `OUT/features/<shard>.arrow`.

Arrow IPC, memory-mappable, one row an image, in the order of the index. Version 1.

| column  | type                              | meaning                                                  |
|---------|-----------------------------------|----------------------------------------------------------|
| key     | string                            | of the sample                                            |
| segment | int32                             | number of the image's segment in the sample              |
| pooled  | fixed list<float16>[V]            | mean over the patch tokens                               |
| tokens  | fixed list<float16 or int8>[P*V]  | all tokens of the last block, row-major                  |
| scales  | fixed list<float32>[P]            | int8 only: token = tokens * scale; null for float16      |

The file's Arrow metadata and the manifest's `features` field carry `FeatureInfo`: the hash of the weights,
P, V and the storage type. A reader that trains on features checks the hash against its own encoder.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pyarrow as pa

from schemas.sample import KEY_PATTERN, canonical_json
from schemas.table_spec import Column, TableSpec, at_least, matches
from schemas.validation import SchemaError

FEATURES_VERSION = 1
INFO_KEY = b"emu.features"

Storage = Literal["float16", "int8"]


@dataclass(frozen=True)
class FeatureInfo:
    """What made the features, and their shape: P tokens of width V."""

    encoder: str
    """Name of the encoder, for a person."""
    weights_sha256: str
    """Hash of the encoder's weights; equal hash, equal features up to rounding."""
    num_tokens: int
    width: int
    storage: Storage = "float16"

    def as_dict(self) -> dict[str, Any]:
        """JSON form, as in the manifest."""
        return asdict(self)


def feature_info(document: Mapping[str, Any], where: str = "features") -> FeatureInfo:
    """A checked `FeatureInfo` from its JSON form."""
    try:
        info = FeatureInfo(**{n: document[n] for n in FeatureInfo.__dataclass_fields__})
    except KeyError as error:
        raise SchemaError(
            f"{where}: field {error} of the feature description is missing"
        ) from error
    if info.storage not in ("float16", "int8"):
        raise SchemaError(f"{where}: storage '{info.storage}' is not 'float16' or 'int8'")
    if info.num_tokens < 1 or info.width < 1:
        raise SchemaError(f"{where}: {info.num_tokens} tokens of width {info.width}: both are >= 1")
    return info


def features_spec(info: FeatureInfo) -> TableSpec:
    """The table of features of that shape and storage."""
    item = pa.int8() if info.storage == "int8" else pa.float16()
    return TableSpec(
        "features",
        FEATURES_VERSION,
        (
            Column(
                "key", pa.string(), "of the sample", is_valid=matches(KEY_PATTERN), rule=KEY_PATTERN
            ),
            Column("segment", pa.int32(), "of the image", is_valid=at_least(0), rule="at least 0"),
            Column("pooled", pa.list_(pa.float16(), info.width), "mean of the tokens"),
            Column("tokens", pa.list_(item, info.num_tokens * info.width), "tokens"),
            Column("scales", pa.list_(pa.float32(), info.num_tokens), "int8 scales", True),
        ),
    )


def features_schema(info: FeatureInfo) -> pa.Schema:
    """The Arrow schema with version and `FeatureInfo` in its metadata."""
    schema = features_spec(info).schema
    extra = {INFO_KEY: canonical_json(info.as_dict()).encode()}
    return schema.with_metadata({**(schema.metadata or {}), **extra})
