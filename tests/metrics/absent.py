"""Hides an optional package, to test the error for its absence."""

import sys

import pytest


def hide_package(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the test ends, imports of the package fail as if it were not installed."""
    for module in [found for found in sys.modules if found.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    # the import system's own marker of a module that cannot be found
    monkeypatch.setitem(sys.modules, name, None)
