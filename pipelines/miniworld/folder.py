"""The folder of a synthetic world, in whatever form: written atomically, recognised by its summary.

DIR/summary.json has the corpus in whose form the world is written, its configuration, the version of the writer and the
exact counts. A folder gets its name when it is complete, so a killed run leaves only `DIR.partial`, which the next run
replaces.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.miniworld.config import MiniworldConfig

SUMMARY_FILE = "summary.json"
IN_PROGRESS = ".in_progress"
"""Marks `DIR.partial` as a folder of this module; removed before the folder is renamed."""


def write_world_folder(
    directory: Path | str,
    corpus: str,
    version: int,
    config: MiniworldConfig,
    write: Callable[[Path], Any],
) -> None:
    """Write a world and its summary; an existing one of the same corpus, configuration and version is left as it is.

    Args:
        directory: where; new, empty, or with that world.
        corpus: in whose form.
        version: of the form.
        config: decides every byte.
        write: writes the files into an empty folder and returns the summary, a dataclass with `config` and `version`.

    Raises:
        FileExistsError: `directory` or `DIR.partial` contains something else; nothing is deleted then.
    """
    directory = Path(directory).resolve()
    if _holds(directory, {"corpus": corpus, "version": version, "config": config}):
        return
    if directory.is_file() or (directory.is_dir() and any(directory.iterdir())):
        raise FileExistsError(
            f"{str(directory)!r} holds something other than a world with these settings; "
            "give a new or empty folder, or delete it"
        )
    partial = directory.with_name(directory.name + ".partial")
    _clear(partial)
    partial.mkdir(parents=True)
    (partial / IN_PROGRESS).touch()
    text = json.dumps({"corpus": corpus} | dataclasses.asdict(write(partial)), indent=2)
    (partial / SUMMARY_FILE).write_text(text + "\n")
    (partial / IN_PROGRESS).unlink()
    partial.replace(directory)


def read_world_summary(
    directory: Path | str, version: int
) -> tuple[MiniworldConfig, dict[str, Any]]:
    """The configuration of a world, and the other fields of its summary.

    Raises:
        FileNotFoundError: the folder has none.
        ValueError: another version of the writer wrote it.
    """
    data = _summary(Path(directory))
    if data["version"] != version:
        raise ValueError(
            f"the world in {str(directory)!r} has version {data['version']}, this release reads "
            f"version {version}: build it again with emu build miniworld"
        )
    data.pop("corpus", None)
    config = data.pop("config")
    pairs = {n: tuple(value) for n, value in config.items() if isinstance(value, list)}
    return MiniworldConfig(**config | pairs), data


def _holds(directory: Path, wanted: dict[str, Any]) -> bool:
    if not _is_world(directory):
        return False
    wanted = wanted | {"config": dataclasses.asdict(wanted["config"])}
    found = {"corpus": "mmc4"} | _summary(directory)
    return {name: found[name] for name in wanted} == json.loads(json.dumps(wanted))


def _clear(partial: Path) -> None:
    """Delete what a killed run left; a folder that this module did not create is kept."""
    if not partial.exists():
        return
    is_ours = (partial / IN_PROGRESS).is_file() or _is_world(partial)
    if not is_ours and (not partial.is_dir() or any(partial.iterdir())):
        raise FileExistsError(
            f"{str(partial)!r} is needed while the world is written, but contains something else: move it, or "
            "give another folder"
        )
    shutil.rmtree(partial)


def _is_world(directory: Path) -> bool:
    """Whether the folder contains a complete world, of any corpus, configuration and version."""
    if not (directory / SUMMARY_FILE).is_file():
        return False
    try:
        data = _summary(directory)
    except ValueError:
        return False
    return isinstance(data, dict) and {"config", "version"} <= set(data)


def _summary(directory: Path) -> Any:
    return json.loads((directory / SUMMARY_FILE).read_text())
