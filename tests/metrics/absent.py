"""Tests of what is said where an optional package is absent."""

import sys

import pytest


def hide_package(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the test ends, imports of the package fail as if it were not installed."""
    for module in [found for found in sys.modules if found.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    # the import system's own mark of a module that cannot be found
    monkeypatch.setitem(sys.modules, name, None)
