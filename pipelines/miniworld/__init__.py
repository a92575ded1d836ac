"""A drawn world, written in the external form of each corpus.

`scene` draws, `render` paints and `language` speaks; they know no corpus. `mmc4` writes the scenes as
MMC4 documents, and `server` stands for the web that the pictures lie on.
"""
