"""Images and texts to the inputs of the model, under the names of transformers.

Shapes: N images of the batch, C channels, H W pixels, B texts, L positions.
"""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
from PIL import Image
from transformers import BatchEncoding, ProcessorMixin
from transformers.image_processing_base import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import make_flat_list_of_images, to_numpy_array

from emu.config import IMAGE, image_block


class EmuImageProcessor(BaseImageProcessor):
    """Resizes images to the square of the visual encoder and normalises them (see `emu.models.visual`)."""

    model_input_names: ClassVar[list[str]] = ["pixel_values"]

    def __init__(self, size: dict[str, int] | int = 224, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        sides = {"height": size, "width": size} if isinstance(size, int) else dict(size)
        if set(sides) != {"height", "width"} or len(set(sides.values())) != 1:
            raise ValueError(f"size is {size}, give a square: height and width alike")
        self.size = sides

    def __call__(self, images: Any, *args: Any, **kwargs: Any) -> BatchFeature:
        """As `preprocess`."""
        return self.preprocess(images, *args, **kwargs)

    def preprocess(
        self, images: Any, *args: Any, return_tensors: str | None = None, **kwargs: Any
    ) -> BatchFeature:
        """`pixel_values`, float32 `NCHW`, of an image or a list of them (PIL images, arrays or tensors)."""
        from emu.models.visual import normalise  # timm takes seconds

        side = self.size["height"]
        flat = [_rgb(image) for image in _flat(images)]
        pixels = torch.stack([normalise(image, side) for image in flat])
        values = pixels if return_tensors == "pt" else list(pixels.numpy())
        return BatchFeature({"pixel_values": values}, tensor_type=return_tensors)


class EmuProcessor(ProcessorMixin):
    """Prompts with images: each `<image>` of a text takes the positions of the next image.

    `processor(text="<image> What is this?", images=image, return_tensors="pt")` gives `input_ids`, `attention_mask`
    and `pixel_values`; `apply_chat_template` the prompt of a conversation as the server makes it.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        num_queries: int = 32,
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.num_queries = num_queries
        self.image_token = IMAGE
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)

    def __call__(
        self,
        images: Any = None,
        text: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> BatchFeature:
        """The inputs of the model for a text or a list of them; `kwargs` are those of the tokenizer.

        Raises ValueError where the texts hold another number of `<image>` than there are images.
        """
        tensors = cast("str | None", kwargs.get("return_tensors"))
        values: dict[str, Any] = {}
        num_images = 0
        if images is not None:
            flat = _flat(images)
            num_images = len(flat)
            if flat:
                values |= self.image_processor.preprocess(flat, return_tensors=tensors)
        if text is not None:
            texts: list[str] = [text] if isinstance(text, str) else list(text)
            num_places = sum(one.count(IMAGE) for one in texts)
            if num_places != num_images:
                raise ValueError(
                    f"text holds {num_places} {IMAGE} for {num_images} images; write one for each image"
                )
            block = image_block(self.num_queries)
            expanded = [one.replace(IMAGE, block) for one in texts]
            encoded: BatchEncoding = self.tokenizer(
                expanded if tensors or not isinstance(text, str) else expanded[0], **kwargs
            )
            values |= encoded
        return BatchFeature(values, tensor_type=tensors)

    @property
    def model_input_names(self) -> list[str]:
        """What the model takes of it."""
        return ["input_ids", "attention_mask", "pixel_values"]


def _flat(images: Any) -> list[Any]:
    return cast("list[Any]", make_flat_list_of_images(images))


def _rgb(image: Any) -> Image.Image:
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    array = to_numpy_array(image)
    if array.shape[0] in (1, 3) and array.shape[-1] not in (1, 3):  # channels first
        array = array.transpose(1, 2, 0)
    if array.dtype.kind == "f":
        array = (array * 255).round().clip(0, 255) if array.max() <= 1 else array.clip(0, 255)
    array = array.astype("uint8")
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array).convert("RGB")
