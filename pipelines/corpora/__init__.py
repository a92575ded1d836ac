"""Corpora: one module of rules each, with its external form, its stages and its samples.

A module of `CORPORA` offers

| name       | meaning                                                                                    |
|------------|--------------------------------------------------------------------------------------------|
| `CORPUS`   | the name, which shards and samples carry                                                   |
| `READER`   | the class that reads its input files: `READER(patterns, samples_per_shard, limit, base, hash_inputs)` |
| `REPORT`, `CARD` | what writes `report.html` and `README.md` of a dataset                               |
| `Rules`    | a frozen dataclass with defaults: what decides which samples there are, and their form     |
| `pipeline` | `pipeline(source, rules, fetch, *, extra, prior, fetch_resources, media)` gives the `Pipeline` |

The contract test runs over the registry, so that a corpus that is added here is tested without a test of its own.
"""

from collections.abc import Mapping
from types import MappingProxyType

CORPORA: Mapping[str, str] = MappingProxyType(
    {
        "instruct": "pipelines.corpora.instruct.rules",
        "laion": "pipelines.corpora.laion.rules",
        "mmc4": "pipelines.corpora.mmc4.rules",
        "obelics": "pipelines.corpora.obelics.rules",
        "webvid": "pipelines.corpora.webvid.rules",
        "yt_storyboard": "pipelines.corpora.yt_storyboard.rules",
    }
)
"""Name -> module."""
