#!/usr/bin/env python3
"""Imports released Emu weights into a model directory, and exports a model directory in the released form."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jobs.cli import checked_options, run_job
from jobs.progress import say_importing

STARTS_AGAIN = "nothing is written; the same command starts again from the beginning"


@dataclass(frozen=True)
class ConvertCheckpoint:
    """Converts released Emu weights to a model directory, or a model directory to the released format.

    Import and serve:
        emu convert --weights Emu/pretrain/multimodal_encoder --model-config Emu-14B.json \\
            --tokenizer llama/tokenizer.model --decoder Emu/pretrain --out emu-14b
        emu serve --model emu-14b

    Export for the published code:
        emu convert --to released --weights runs/mine/model --out mine-released

    Every key is checked before anything is written: an error names each key that is missing, unexpected or of
    another shape. Tensors are converted one by one, within about 1.5 GB of memory, including 1 GB for imports.
    OUT is written atomically. A stopped conversion starts from the beginning.
    """

    weights: str
    """Weights to convert: a .safetensors, .bin, .pt or .pth file, an index, or a folder of shards.
    A `module` wrapper around the keys is recognised. With --to released, give a model folder.
    PyTorch files are read with weights_only: a file with more than tensors is refused, not executed."""
    out: str
    """Folder to write. It needs as much disk space as the weights."""
    model_config: str | None = None
    """The released Emu-14B.json, or a file of the same form. Required for import.
    Its optional sections c_former, llama and lora set other sizes.
    With --to released, the model's own configuration is used."""
    tokenizer: str | None = None
    """LLaMA's tokenizer.model, or its folder. None: import without one; the model needs one to run.
    With --to released, None uses the model's own."""
    decoder: str | None = None
    """Folder with the visual decoder in the layout of diffusers: unet/, vae/, scheduler/.
    If present, safety_checker/ and feature_extractor/ are imported too.
    None: import without one; the model generates no images. With --to released, None uses the model's own."""
    to: Literal["emu", "released"] = "emu"
    """emu: import. released: export."""
    kind: Literal["auto", "emu", "emu-i"] = "auto"
    """Family of the released weights. auto: detect it from the keys (emu-i has LoRA or 32006 rows).
    emu, emu-i: fail if the keys belong to the other family."""
    dtype: Literal["keep", "float32", "bfloat16", "float16"] = "keep"
    """Dtype of the written weights. keep: the dtype of each tensor, bit for bit."""
    shard_size_gb: float = 5.0
    """Maximum size of a shard of the imported weights, in GB (10^9 bytes)."""
    form: Literal["bin", "safetensors"] = "bin"
    """With --to released: bin is the format that the published code reads.
    safetensors can be read without unpickling."""
    fill_unused: bool = True
    """With --to released: also write tensors that the published code requires but never uses.
    They are T5's word embedding (here zeros) and the constants of the rotary positions.
    The published code cannot load the weights without them."""
    overwrite: bool = False
    """Replace an existing model in OUT."""

    def __post_init__(self) -> None:
        if not self.shard_size_gb * 1e9 >= 1:
            raise ValueError(
                f"shard_size_gb={self.shard_size_gb}: give a number above 0, such as 5"
            )


def convert_checkpoint(options: ConvertCheckpoint) -> str:
    """Convert as the options say; returns the summary."""
    say_importing("torch")
    from jobs.conversion import convert, summary_text

    began = time.monotonic()
    with checked_options():
        report = convert(options)
    return summary_text(report, options.out, time.monotonic() - began)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code (see `jobs.cli`)."""
    return run_job(ConvertCheckpoint, convert_checkpoint, arguments, hint=STARTS_AGAIN)


if __name__ == "__main__":
    sys.exit(main())
