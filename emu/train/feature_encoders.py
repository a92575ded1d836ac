"""The encoders that features are computed with: the visual encoder of Emu, or any image tower of open_clip.

| model                        | encoder                                                                         |
|------------------------------|---------------------------------------------------------------------------------|
| None                         | Emu's visual encoder at the sizes of the recipe, initialised from the seed      |
| a folder with `config.json`  | the visual encoder of that model                                                |
| a tag of EVA01-g-14          | Emu's visual encoder at the paper's sizes, with the weights of open_clip's tag  |
| a checkpoint file            | Emu's visual encoder at the sizes of the recipe, with the EVA tower in the file |
| `EVA01-g-14:TAG` or `:FILE`  | the same at the paper's sizes                                                   |
| `MODEL:TAG`, `MODEL:FILE`    | open_clip's model of that name, with pretrained weights or those of a file      |
| `hf-hub:OWNER/NAME`          | open_clip's model of a repository on the Hugging Face hub, or of its cache      |
| `local-dir:FOLDER`           | open_clip's model of a folder with `open_clip_config.json`                      |

Emu's visual encoder takes images as training does (`emu.models.visual.normalise`); open_clip's models take them as
open_clip says. The embedding is CLIP's, not normalised. Tokens are those after the last block, class token first,
without the final norm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from emu.config import EmuConfig
from emu.models.visual import VisualEncoder, normalise, preprocessing
from emu.recipes import RECIPES, Precision
from emu.train.start import start_tower
from emu.weights.layout import load_config
from emu.weights.open_clip import MODELS, is_tower_tag, open_clip_visual
from emu.weights.store import weights_hash
from schemas.images import decode_image
from schemas.sample import canonical_json

FULL_SIZE = "emu_14b"
"""The recipe with the sizes of EVA01-g-14."""


@dataclass(frozen=True)
class FeatureSizes:
    """The width of the embedding, and number and width of the tokens; zeros for a network without tokens."""

    pooled_width: int
    num_tokens: int
    width: int


@dataclass(frozen=True)
class EncoderSpec:
    """Which encoder; travels to the workers, which make it. See the table at the top of this module."""

    model: str | None = None
    recipe: str = "tiny"
    seed: int = 0
    precision: Precision = "float32"

    @property
    def name(self) -> str:
        """For a person."""
        return self.model or f"{self.recipe}, seed {self.seed}"

    def sizes(self) -> FeatureSizes:
        """Of its features, without reading weights where the sizes are known without them."""
        if not self._is_open_clip:
            vision = self._config().vision
            return FeatureSizes(vision.embed_dim, vision.num_tokens, vision.width)
        with torch.device("meta"):
            visual: Any = open_clip_visual(str(self.model), with_weights=False)
            side: int | tuple[int, int] = visual.preprocess_cfg["size"]
            height, width = (side, side) if isinstance(side, int) else side
            pooled, tokens = _embedded(visual.eval(), torch.empty(1, 3, height, width), True)
        shape = (0, 0) if tokens is None else tokens.shape[1:]
        return FeatureSizes(pooled.shape[1], *shape)

    def make(self, with_tokens: bool = True, weights_sha256: str | None = None) -> FeatureEncoder:
        """The encoder; it computes on a GPU where there is one.

        Args:
            with_tokens: whether `encode` returns tokens.
            weights_sha256: what the hash of its weights must be; None accepts any.

        Raises:
            FileNotFoundError: there are no such weights, or they cannot be fetched.
            ValueError: the weights do not fit, or have another hash.
        """
        made = self._open_clip(with_tokens) if self._is_open_clip else self._tower(with_tokens)
        if weights_sha256 not in (None, made.weights_sha256):
            raise ValueError(
                f"'{self.name}' has weights {made.weights_sha256[:12]}… on this worker, {weights_sha256[:12]}… "
                "where the job was started; give all nodes the same files"
            )
        return made

    @property
    def _is_open_clip(self) -> bool:
        head, colon, _ = (self.model or "").partition(":")
        return bool(colon) and head not in MODELS

    def _config(self) -> EmuConfig:
        if self.model is None:
            return RECIPES[self.recipe]().model
        if Path(self.model).is_dir():
            return load_config(self.model)
        is_full = ":" in self.model or is_tower_tag(self.model)
        return RECIPES[FULL_SIZE if is_full else self.recipe]().model

    def _tower(self, with_tokens: bool) -> FeatureEncoder:
        config = self._config()
        is_folder = self.model is not None and Path(self.model).is_dir()
        weights = None if self.model is None or is_folder else self.model.rpartition(":")[2]
        tower = start_tower(config, self.seed, self.model if is_folder else None, weights)
        side = config.vision.image_size
        prepare = _Normalise(side)
        return FeatureEncoder(tower, prepare, preprocessing(side), self.precision, with_tokens)

    def _open_clip(self, with_tokens: bool) -> FeatureEncoder:
        from open_clip.transform import PreprocessCfg, image_transform_v2

        visual = open_clip_visual(str(self.model))
        described: dict[str, Any] = visual.preprocess_cfg  # type: ignore[assignment]
        transform = image_transform_v2(PreprocessCfg(**described), is_train=False)
        words = f"open_clip: {canonical_json(described)}"
        return FeatureEncoder(visual, transform, words, self.precision, with_tokens)  # type: ignore[arg-type]


class FeatureEncoder:
    """Encoded images to embeddings and tokens: an `Encoder` of `pipelines.transforms.features`."""

    def __init__(
        self,
        network: nn.Module,
        transform: Callable[[Any], Tensor],
        preprocessing: str,
        precision: Precision,
        with_tokens: bool,
    ) -> None:
        self.weights_sha256 = weights_hash(network)
        self.preprocessing, self.precision, self.with_tokens = preprocessing, precision, with_tokens
        self.transform = transform
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.network = network.eval().requires_grad_(False)

    def prepare(self, image: bytes) -> Tensor:
        """The pixels `CHW`, normalised; raises `ImageError` for bytes that do not decode."""
        return self.transform(decode_image(image))

    def encode(self, prepared: Sequence[Tensor]) -> tuple[np.ndarray, np.ndarray | None]:
        """The embeddings `[N, E]` and, if wanted, the tokens `[N, P, V]`, in float32."""
        is_half = self.precision == "bfloat16"
        pixels = torch.stack(list(prepared)).to(self.device)
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, torch.bfloat16, enabled=is_half),
        ):
            pooled, tokens = _embedded(self._placed, pixels, self.with_tokens)
        stored = None if tokens is None else tokens.float().cpu().numpy()
        return pooled.float().cpu().numpy(), stored

    @cached_property
    def _placed(self) -> nn.Module:
        """The network on its device: moved when it is first used, so that a driver needs no GPU."""
        return self.network.to(self.device)


@dataclass(frozen=True)
class _Normalise:
    side: int

    def __call__(self, image: Any) -> Tensor:
        return normalise(image, self.side)


def _embedded(
    network: nn.Module, pixels_BCHW: Tensor, with_tokens: bool
) -> tuple[Tensor, Tensor | None]:
    """The embeddings and, if wanted and there are any, the tokens."""
    if isinstance(network, VisualEncoder):
        tokens_BPV = network(pixels_BCHW)
        return network.pool(tokens_BPV), tokens_BPV if with_tokens else None
    if not with_tokens or not _has_tokens(network):
        found = network(pixels_BCHW)
        return found[0] if isinstance(found, tuple) else found, None
    found = network.forward_intermediates(  # type: ignore[operator]
        pixels_BCHW, indices=1, output_fmt="NLC", output_extra_tokens=True
    )
    (tokens_BPV,) = found["image_intermediates"]
    prefix = found.get("image_intermediates_prefix")
    if prefix:
        tokens_BPV = torch.cat([prefix[0], tokens_BPV], dim=1)
    return found["image_features"], tokens_BPV


def _has_tokens(network: nn.Module) -> bool:
    from open_clip.transformer import VisionTransformer

    is_timm = hasattr(getattr(network, "trunk", None), "num_prefix_tokens")
    return is_timm or isinstance(network, VisionTransformer)
