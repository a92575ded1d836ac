"""Files that a filter is given: lists of lines at a path or any fsspec address, checked before a build starts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import fsspec

FILE = "file or folder whose contents decide what is kept"
InputFile = Annotated[str, FILE]
"""A parameter that names a file, a folder or an address; its contents are part of the fingerprint of a build."""


def resolved(name: str, file: str) -> str:
    """The file as an absolute path, or its address; raises `ValueError` where there is none."""
    if not file:
        raise ValueError(f"{name}: give file=PATH")
    if "://" in file:
        return file
    path = Path(file).expanduser().absolute()
    if not path.exists():
        raise ValueError(f"{name}: file is {file!r}, but there is no such file")
    return str(path)


def lines_of(file: str) -> Iterator[tuple[int, str]]:
    """Number and text of each line but blank ones and comments (`#`); raises `ValueError` if it is not UTF-8."""
    with fsspec.open(file, "rb") as opened:
        for number, line in enumerate(opened, 1):
            try:
                text = line.decode("utf-8-sig").strip()
            except UnicodeDecodeError:
                raise ValueError(f"{file}, line {number}: not UTF-8") from None
            if text and not text.startswith("#"):
                yield number, text
