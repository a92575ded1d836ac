"""Packages that only some metrics need."""

from __future__ import annotations

import importlib
from types import ModuleType


def optional_module(name: str, extra: str, purpose: str) -> ModuleType:
    """The module; raises ModuleNotFoundError that names the extra to install where its package is absent."""
    package = name.partition(".")[0]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # something that the package itself lacks is another fault
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise ModuleNotFoundError(
            f"{purpose} the package {package}: install the extra with pip install 'emu-platform[{extra}]'",
            name=error.name,
        ) from error
