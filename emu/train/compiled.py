"""Compiled layers: torch.compile on each layer of the model, so that all layers of a part share one compiled function.

Sizes are symbols, so that what runs depends on no batch before: a resumed run takes the same steps to the bit. Dropout
masks are those of the layers as they are. Attention within the documents of a packed row is called between two compiled
parts of a layer on CPUs, where it is a loop over their lengths (`emu/models/attention.py`).
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from emu.models.emu import Emu


def compile_layers(model: Emu) -> None:
    """Compile the layers of all three parts in place; names and weights stay as they are."""
    for block in blocks_of(model):
        block.compile(dynamic=True, options={"fallback_random": True})


def check_compiler(is_cuda: bool) -> None:
    """Raise ValueError if this machine cannot compile."""
    if is_cuda:
        from torch.utils._triton import has_triton

        if not has_triton():
            raise ValueError(
                "train.compile: compiling for GPUs needs Triton; leave out --train.compile"
            )
        return
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise ValueError(
            "train.compile: no C++ compiler was found; install one (g++, clang++), name it in CXX, or leave out "
            "--train.compile"
        ) from error


def blocks_of(model: Emu) -> Iterator[nn.Module]:
    """The modules whose weights are gathered together: the layers of all three parts."""
    yield from model.visual.trunk.blocks
    yield from model.former.blocks
    yield from model.language.lm.model.layers
