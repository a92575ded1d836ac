"""Registers the classes of this package with transformers and diffusers, when those are imported.

Importing them takes seconds, so `import emu` only leaves hooks with the import system (wrapt).
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

import wrapt

AUTO = "transformers.models.auto."


def register() -> None:
    """From now on the `Auto` classes and `DiffusionPipeline` know Emu, whether they are imported already or later."""
    wrapt.register_post_import_hook(_config, AUTO + "configuration_auto")
    wrapt.register_post_import_hook(_tokenizer, AUTO + "tokenization_auto")
    wrapt.register_post_import_hook(_image_processor, AUTO + "image_processing_auto")
    wrapt.register_post_import_hook(_processor, AUTO + "processing_auto")
    wrapt.register_post_import_hook(_model, AUTO + "modeling_auto")
    wrapt.register_post_import_hook(_pipeline, "diffusers.pipelines.pipeline_utils")


def _config(auto: ModuleType) -> None:
    from emu.huggingface.config import MODEL_TYPE, EmuPreTrainedConfig

    auto.AutoConfig.register(MODEL_TYPE, EmuPreTrainedConfig, exist_ok=True)


def _tokenizer(auto: ModuleType) -> None:
    from emu.huggingface.config import EmuPreTrainedConfig
    from emu.huggingface.tokenizer import EmuPreTrainedTokenizer

    auto.AutoTokenizer.register(EmuPreTrainedConfig, EmuPreTrainedTokenizer, exist_ok=True)


def _image_processor(auto: ModuleType) -> None:
    from emu.huggingface.config import EmuPreTrainedConfig
    from emu.huggingface.processor import EmuImageProcessor

    classes = {"pil": EmuImageProcessor}
    auto.AutoImageProcessor.register(
        EmuPreTrainedConfig, image_processor_classes=classes, exist_ok=True
    )


def _processor(auto: ModuleType) -> None:
    from emu.huggingface.config import EmuPreTrainedConfig
    from emu.huggingface.processor import EmuProcessor

    auto.AutoProcessor.register(EmuPreTrainedConfig, EmuProcessor, exist_ok=True)


def _model(auto: ModuleType) -> None:
    from emu.huggingface.config import EmuPreTrainedConfig
    from emu.huggingface.model import EmuForConditionalGeneration

    for name in ("AutoModel", "AutoModelForImageTextToText"):
        getattr(auto, name).register(
            EmuPreTrainedConfig, EmuForConditionalGeneration, exist_ok=True
        )


def _pipeline(utils: ModuleType) -> None:
    # not here: this may be in the middle of an import of the class that ours is derived from
    wrapt.wrap_function_wrapper(utils, "DiffusionPipeline.from_pretrained", _with_pipeline)


def _with_pipeline(
    from_pretrained: Callable[..., Any],
    _: object,
    arguments: tuple[Any, ...],
    named: dict[str, Any],
) -> Any:
    import_module("emu.huggingface.pipeline")  # which registers itself
    return from_pretrained(*arguments, **named)
