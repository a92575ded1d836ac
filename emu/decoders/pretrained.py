"""One network of a decoder's directory, with every weight from its files and none left as it was drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def load_part(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    """The network of class `kind` in a folder in the layout of diffusers or transformers.

    Their loaders only warn where names are absent, and go on with random weights. Here that is a ValueError
    that names them; FileNotFoundError where there are no files.
    """
    try:
        network, found = kind.from_pretrained(
            folder, local_files_only=True, torch_dtype=dtype, output_loading_info=True
        )
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"no {kind.__name__} in {folder}: {str(error).splitlines()[0]}"
        ) from error
    problems = [
        f"{what.removesuffix('_keys')} {key}"
        for what in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
        for key in sorted(map(str, found.get(what) or []))
    ]
    if problems:
        raise ValueError(f"the {kind.__name__} in {folder} does not fit: " + "; ".join(problems))
    return network
