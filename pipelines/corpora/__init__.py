"""Corpora: one module of rules each, with its external form, its stages and its samples.

A module of `CORPORA` offers

| name       | meaning                                                                                    |
|------------|--------------------------------------------------------------------------------------------|
| `CORPUS`   | the name, which shards and samples carry                                                   |
| `READER`   | the class that reads its input files, a `FileSource`                                        |
| `REPORT`, `CARD` | what writes `report.html` and `README.md` of a dataset                               |
| `Rules`    | a frozen dataclass with defaults: what decides which samples there are, and their form     |
| `pipeline` | `pipeline(build, rules)` gives the `Pipeline`; `build` (`pipelines.corpora.build.Build`) says from what |

The contract test runs over the registry, so that a corpus that is added here is tested without a test of its own.
"""

from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from schemas.manifest import Manifest

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


def corpus_of(manifest: "Manifest") -> Any:
    """The module by whose rules a dataset was built, whatever its name; null where it is none of `CORPORA`."""
    name = manifest.config.get("corpus", manifest.corpus)
    return import_module(CORPORA[name]) if name in CORPORA else None
