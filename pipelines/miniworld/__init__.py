"""A synthetic world of shapes, written in the external form of each corpus.

`scene` samples scenes, `render` turns them into image files and `language` describes them; they know no corpus. A
module of `WORLDS` writes them in the form of one corpus, and `server` stands for the web servers that the links point
to. Such a module offers

| name          | meaning                                                                                   |
|---------------|-------------------------------------------------------------------------------------------|
| `write_world` | `write_world(config, directory)` writes the world (`folder.write_world_folder`), returns its summary |
| `BUILD`       | the command that builds it, with `{out}` for the folder                                   |
"""

from collections.abc import Mapping
from types import MappingProxyType

WORLDS: Mapping[str, str] = MappingProxyType(
    {
        "instruct": "pipelines.miniworld.dialogues",
        "laion": "pipelines.miniworld.laion",
        "mmc4": "pipelines.miniworld.mmc4",
        "obelics": "pipelines.miniworld.obelics",
        "webvid": "pipelines.miniworld.clips",
        "yt_storyboard": "pipelines.miniworld.storyboards",
    }
)
"""Corpus -> module."""
