"""Ledger and index: what became of every record and link, and where every sample lies.

Ledger, `OUT/ledger/<shard>.parquet`, version 1: a row for every input record (slot null) and every link.
Every record and every link stands in it exactly once, as kept or dropped.

| column | type   | meaning                                                                     |
|--------|--------|-----------------------------------------------------------------------------|
| key    | string | of the record, also where it never became a sample                          |
| slot   | int32  | null for the record itself, the number of the link for a link               |
| source | string | input file, as named by the user                                            |
| record | int64  | 1-based line (or row) number in that file                                   |
| url    | string | of the link; null for a record                                              |
| stage  | string | where its fate was decided                                                  |
| status | string | `kept` or `dropped`                                                         |
| reason | string | null if kept, else one word of `[a-z0-9_]+`                                 |
| detail | string | more for a person, or null                                                  |

Index, `OUT/index/<shard>.parquet`, version 1: a row a sample, in the order of the tar.

| column        | type                        | meaning                                              |
|---------------|-----------------------------|------------------------------------------------------|
| key           | string                      | of the sample                                        |
| shard         | string                      | name without suffix, such as `mmc4-000000`           |
| members       | list<name, offset, size>    | tar members: suffix after the key, first byte, bytes |
| num_segments  | int32                       | texts and images                                     |
| num_images    | int32                       | images                                               |
| text_length   | int64                       | characters over all texts                            |
| image_widths  | list<int32>                 | pixels, in order                                     |
| image_heights | list<int32>                 | pixels, in order                                     |
| image_sha256  | list<string>                | hex digests of the encoded bytes, in order           |
| text_sha256   | string                      | hex digest of the UTF-8 texts, each ended by a NUL   |
| scores        | map<string, double>         | `meta["scores"]` of the sample                       |
"""

import pyarrow as pa

from schemas.sample import KEY_PATTERN
from schemas.table_spec import Column, TableSpec, at_least, matches, one_of

KEPT, DROPPED = "kept", "dropped"
REASON_PATTERN = r"^[a-z0-9_]+$"
SHARD_PATTERN = r"^[a-z0-9_]+-[0-9]{6,}$"

LEDGER = TableSpec(
    "ledger",
    1,
    (
        Column(
            "key", pa.string(), "of the record", is_valid=matches(KEY_PATTERN), rule=KEY_PATTERN
        ),
        Column(
            "slot", pa.int32(), "number of the link", True, is_valid=at_least(0), rule="at least 0"
        ),
        Column("source", pa.string(), "input file"),
        Column("record", pa.int64(), "line number", is_valid=at_least(1), rule="at least 1"),
        Column("url", pa.string(), "of the link", True),
        Column("stage", pa.string(), "where it was decided"),
        Column(
            "status",
            pa.string(),
            "kept or dropped",
            is_valid=one_of(KEPT, DROPPED),
            rule="'kept' or 'dropped'",
        ),
        Column(
            "reason",
            pa.string(),
            "why",
            True,
            is_valid=matches(REASON_PATTERN),
            rule=REASON_PATTERN,
        ),
        Column("detail", pa.string(), "more for a person", True),
    ),
)

MEMBER_TYPE = pa.struct([("name", pa.string()), ("offset", pa.int64()), ("size", pa.int64())])

INDEX = TableSpec(
    "index",
    1,
    (
        Column(
            "key", pa.string(), "of the sample", is_valid=matches(KEY_PATTERN), rule=KEY_PATTERN
        ),
        Column(
            "shard", pa.string(), "its shard", is_valid=matches(SHARD_PATTERN), rule=SHARD_PATTERN
        ),
        Column("members", pa.list_(MEMBER_TYPE), "tar members"),
        Column("num_segments", pa.int32(), "segments", is_valid=at_least(1), rule="at least 1"),
        Column("num_images", pa.int32(), "images", is_valid=at_least(0), rule="at least 0"),
        Column("text_length", pa.int64(), "characters", is_valid=at_least(0), rule="at least 0"),
        Column("image_widths", pa.list_(pa.int32()), "pixels"),
        Column("image_heights", pa.list_(pa.int32()), "pixels"),
        Column("image_sha256", pa.list_(pa.string()), "digests of images"),
        Column("text_sha256", pa.string(), "digest of texts"),
        Column("scores", pa.map_(pa.string(), pa.float64()), "scores"),
    ),
)
