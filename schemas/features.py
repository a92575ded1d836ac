"""Features: precomputed outputs of a visual encoder, `OUT/features/<shard>.arrow`.

Arrow IPC, uncompressed, memory-mappable; one row per image, in the order of the index and of the segments. Version 2.

| column  | type                                     | meaning                                              |
|---------|------------------------------------------|------------------------------------------------------|
| key     | string                                   | of the sample                                        |
| segment | int32                                    | number of the image's segment in the sample          |
| pooled  | fixed list<float16 or float32>[E]        | CLIP's image embedding, not normalised               |
| tokens  | fixed list<float16, float32 or int8>[P*V] | tokens of the last block, row-major; if stored      |
| scales  | fixed list<float32>[P]                   | int8 only: token = int8 * scale                      |

`patches` of `FeatureInfo` decides the types. With b(x) the largest absolute value of a token x:

| patches | pooled  | tokens  | error of a token                                                              |
|---------|---------|---------|-------------------------------------------------------------------------------|
| none    | float16 | –       | –                                                                             |
| float16 | float16 | float16 | at most 2^-11 of each value (2^-25 for values below 2^-14)                    |
| float32 | float32 | float32 | none                                                                          |
| int8    | float16 | int8    | at most b(x) / 254 + 2^-22 b(x); tokens with b(x) below 1.5e-36 are zero      |

The file's Arrow metadata carry `FeatureInfo` and the hash of the tar that the features were made from; the field
`features` of the manifest repeats `FeatureInfo`. A reader checks weights and preprocessing against its own encoder.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import pyarrow as pa

from schemas.sample import KEY_PATTERN, canonical_json
from schemas.table_spec import Column, TableSpec, at_least, matches
from schemas.validation import SchemaError

FEATURES_VERSION = 2
INFO_KEY = b"emu.features"
SOURCE_KEY = b"emu.features.tar_sha256"

Patches = Literal["none", "float16", "float32", "int8"]
Precision = Literal["float32", "bfloat16"]
TOKEN_TYPES = {"float16": pa.float16(), "float32": pa.float32(), "int8": pa.int8()}
KEY_BYTES = 24
"""Bytes of a key and its offset, for estimates."""


@dataclass(frozen=True)
class FeatureInfo:
    """What made the features, and their form: an embedding of width E and P tokens of width V per image."""

    encoder: str
    """Name of the encoder, for a person."""
    weights_sha256: str
    """Hash of the encoder's weights; equal weights, preprocessing and precision: equal features up to rounding."""
    preprocessing: str
    """From decoded pixels to the encoder's input."""
    precision: Precision
    """In which the encoder computed."""
    pooled_width: int
    num_tokens: int
    """0 without patch tokens."""
    width: int
    """0 without patch tokens."""
    patches: Patches = "float16"

    @property
    def row_bytes(self) -> int:
        """Bytes on disk of an image; files add about 1 kB per record batch."""
        if self.patches == "none":
            return KEY_BYTES + 4 + 2 * self.pooled_width
        pooled = 4 if self.patches == "float32" else 2
        item = {"float16": 2, "float32": 4, "int8": 1}[self.patches]
        scales = 4 * self.num_tokens if self.patches == "int8" else 0
        stored = self.num_tokens * self.width * item + scales
        return KEY_BYTES + 4 + pooled * self.pooled_width + stored

    def as_dict(self) -> dict[str, Any]:
        """JSON form, as in the manifest."""
        return asdict(self)


def feature_info(document: Mapping[str, Any], where: str = "features") -> FeatureInfo:
    """A checked `FeatureInfo` from its JSON form; raises `SchemaError` naming what is wrong."""
    try:
        info = FeatureInfo(**{n: document[n] for n in FeatureInfo.__dataclass_fields__})
    except KeyError as error:
        raise SchemaError(
            f"{where}: field {error} of the feature description is missing: features of an earlier release; "
            "compute them again with --overwrite"
        ) from error
    if info.patches not in get_args(Patches):
        raise SchemaError(f"{where}: patches '{info.patches}' is not one of {get_args(Patches)}")
    least = 0 if info.patches == "none" else 1
    if info.num_tokens < least or info.width < least or info.pooled_width < 1:
        raise SchemaError(
            f"{where}: {info.num_tokens} tokens of width {info.width}, an embedding of width "
            f"{info.pooled_width}: all are >= 1"
        )
    return info


def features_spec(info: FeatureInfo) -> TableSpec:
    """The table of features of that form."""
    pooled = pa.float32() if info.patches == "float32" else pa.float16()
    columns = [
        Column(
            "key", pa.string(), "of the sample", is_valid=matches(KEY_PATTERN), rule=KEY_PATTERN
        ),
        Column("segment", pa.int32(), "of the image", is_valid=at_least(0), rule="at least 0"),
        Column("pooled", pa.list_(pooled, info.pooled_width), "CLIP's embedding"),
    ]
    if info.patches != "none":
        item = TOKEN_TYPES[info.patches]
        columns.append(Column("tokens", pa.list_(item, info.num_tokens * info.width), "tokens"))
    if info.patches == "int8":
        columns.append(Column("scales", pa.list_(pa.float32(), info.num_tokens), "of the tokens"))
    return TableSpec("features", FEATURES_VERSION, tuple(columns))


def features_schema(info: FeatureInfo, tar_sha256: str) -> pa.Schema:
    """The Arrow schema with version, `FeatureInfo` and the hash of the tar in its metadata."""
    schema = features_spec(info).schema
    return schema.with_metadata({**(schema.metadata or {}), **stamps(info, tar_sha256)})


def stamps(info: FeatureInfo, tar_sha256: str) -> dict[bytes, bytes]:
    """The metadata by which features are known to be of this encoder and of this tar."""
    return {
        INFO_KEY: canonical_json(info.as_dict()).encode(),
        SOURCE_KEY: tar_sha256.encode(),
    }
