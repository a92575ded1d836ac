"""The EVA-CLIP tower (paper section 2.1): an image in, one vector per token out; and the pixels that it takes.

An image is resized to the tower's square without keeping its aspect ratio, with Pillow's bicubic filter, scaled to
0..1 and normalised by the mean and deviation of OpenAI's CLIP (paper section 3; released code).

Shapes: N images, B batch, C channels, H W pixels, P tokens of an image (class token first), V vision width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from timm.models.eva import Eva
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from emu.config import VisionConfig
from schemas.images import decode_image

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def normalise(image: Image.Image, side: int) -> Tensor:
    """The image as a float32 `CHW` tensor of `side` x `side`, normalised."""
    squashed = image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    pixels_HWC = np.asarray(squashed, dtype=np.float32) / 255.0
    mean, std = np.asarray(CLIP_MEAN, np.float32), np.asarray(CLIP_STD, np.float32)
    return torch.from_numpy(((pixels_HWC - mean) / std).transpose(2, 0, 1).copy())


def pixels_of(images: Sequence[bytes], side: int) -> Tensor:
    """Encoded images as one `NCHW` tensor; raises `ImageError` for bytes that do not decode."""
    if not images:
        return torch.empty(0, 3, side, side)
    return torch.stack([normalise(decode_image(data), side) for data in images])


class VisualEncoder(nn.Module):
    """All tokens after the last block of EVA-CLIP g/14, or of the same design at another size.

    `trunk` is timm's `Eva`, the class behind open_clip's `EVA01-g-14`, so open_clip's weights fit
    under their own names. Emu leaves out its final norm and its CLIP head (released code,
    `forward_features`); they stay with the weights, frozen, and serve `pool` alone.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = Eva(
            img_size=config.image_size,
            patch_size=config.patch_size,
            num_classes=config.embed_dim,
            global_pool="token",
            embed_dim=config.width,
            depth=config.layers,
            num_heads=config.heads,
            # Eva cuts width * ratio down to a whole number; the half keeps rounding out of it
            mlp_ratio=(config.mlp_hidden + 0.5) / config.width,
            qkv_fused=True,
        )
        self.trunk.norm.requires_grad_(False)
        self.trunk.head.requires_grad_(False)
        self.recompute_blocks = False  # trade time for memory in training

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """The tokens `BPV` of normalised images, without the tower's own final norm."""
        side = self.config.image_size
        if pixels_BCHW.dim() != 4 or pixels_BCHW.shape[1:] != (3, side, side):
            shape = tuple(pixels_BCHW.shape)
            raise ValueError(f"images have shape {shape}, the tower takes (B, 3, {side}, {side})")
        trunk = self.trunk
        assert trunk.cls_token is not None and trunk.pos_embed is not None
        tokens = trunk.patch_embed(pixels_BCHW.to(trunk.pos_embed.dtype))
        tokens = torch.cat([trunk.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        tokens = tokens + trunk.pos_embed
        for block in trunk.blocks:
            if self.recompute_blocks and self.training:
                tokens = checkpoint(block, tokens, use_reentrant=False)
            else:
                tokens = block(tokens)
        return tokens

    def pool(self, patches_BPV: Tensor) -> Tensor:
        """CLIP's image embedding, `embed_dim` wide and not normalised, from the tower's tokens."""
        classes_BV = patches_BPV[:, 0].to(self.trunk.get_parameter("norm.weight").dtype)
        return self.trunk.head(self.trunk.norm(classes_BV))

    def load_open_clip(self, tower: Mapping[str, Tensor]) -> None:
        """Takes the weights of an open_clip tower: `model.visual.state_dict()`.

        Raises ValueError naming every key that is missing, unexpected or of another shape.
        """
        ours = self.state_dict()
        problems = [f"missing {name}" for name in sorted(set(ours) - set(tower))]
        problems += [f"unexpected {name}" for name in sorted(set(tower) - set(ours))]
        problems += [
            f"{name} has shape {tuple(tower[name].shape)}, needs {tuple(ours[name].shape)}"
            for name in sorted(set(ours) & set(tower))
            if tower[name].shape != ours[name].shape
        ]
        if problems:
            raise ValueError("the open_clip tower does not fit: " + "; ".join(problems))
        self.load_state_dict(dict(tower))

    def fill_buffers(self) -> None:
        """Gives the constant buffers their values after construction on the meta device.

        The tower has no bias on K; timm keeps a zero vector in its place, outside the state dict.
        """
        for name, buffer in list(self.trunk.named_buffers()):
            if buffer.is_meta:
                assert name.endswith(".k_bias"), name
                attention = self.trunk.get_submodule(name.rpartition(".")[0])
                attention.k_bias = torch.zeros_like(attention.get_parameter("q_bias").detach())
