"""The configuration of a model on disk, and what is said where there is none (no torch here)."""

from __future__ import annotations

from pathlib import Path

from emu.config import EmuConfig

CONFIG = "config.json"
EXPECTED = (
    f"a model is a folder with {CONFIG}, model.safetensors (or its pieces and their index) and tokenizer.model, "
    "as jobs/train_emu.py writes it into OUT/model and jobs/convert_checkpoint.py into OUT"
)


def load_config(directory: str | Path) -> EmuConfig:
    """The configuration of a model directory.

    Raises FileNotFoundError where there is no model, saying what is there and what a model is, and
    ValueError naming the file for a configuration that cannot be read.
    """
    path = Path(directory) / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"no model at {directory}: {_found(Path(directory))}; {EXPECTED}")
    try:
        return EmuConfig.from_json(path.read_text("utf-8"))
    except ValueError as error:  # that it is no UTF-8, too
        raise ValueError(f"{path}: {error}") from error


def _found(directory: Path) -> str:
    """What is at a place where a model should be, and where the model may be instead."""
    if directory.is_file():
        return "it is a file"
    if not directory.is_dir():
        return "there is no such folder"
    inner = sorted(path.parent.name for path in directory.glob(f"*/{CONFIG}"))
    if "model" in inner:
        return f"{CONFIG} is absent, but there is a model in {directory / 'model'}"
    if (directory / "state.json").is_file():
        return (
            f"{CONFIG} is absent; it is a checkpoint, from which its run goes on when started again"
        )
    if (directory / "checkpoints").is_dir():
        return f"{CONFIG} is absent; it is a run that has not come to its end"
    return f"{CONFIG} is absent"
