"""A synthetic world of shapes, written in the external form of each corpus.

`scene` samples scenes, `render` turns them into image files and `language` describes them; they know no corpus. `mmc4`
writes them as an MMC4 download, and `server` stands for the web servers that the links point to.
"""
