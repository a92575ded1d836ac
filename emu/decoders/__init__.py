"""Visual decoders by name."""

from emu.decoders.base import VisualDecoder
from emu.decoders.stable_diffusion import StableDiffusionDecoder

DECODERS: dict[str, type[VisualDecoder]] = {"stable_diffusion": StableDiffusionDecoder}
