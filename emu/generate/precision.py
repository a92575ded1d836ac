"""In what numbers a model is held, and on which device."""

from __future__ import annotations

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def dtype_of(name: str) -> torch.dtype:
    """The dtype of this name; raises ValueError for an unknown one."""
    if name not in DTYPES:
        raise ValueError(f"dtype is {name!r}, give one of {sorted(DTYPES)}")
    return DTYPES[name]


def check_device(device: str) -> None:
    """Raises ValueError for a device that is unknown or not there."""
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ValueError(f"device is {device!r}, give cpu, cuda or cuda:N") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {device!r}, and no CUDA device is available; give cpu")
