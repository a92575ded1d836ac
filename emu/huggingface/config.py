"""`config.json` of a model directory as a configuration of transformers."""

from __future__ import annotations

import json
from typing import Any, ClassVar

from transformers import PreTrainedConfig

from emu.config import EmuConfig

MODEL_TYPE = EmuConfig.model_type
SECTIONS = ("vision", "former", "language", "objective", "instruct", "adapter", "decoder", "init")


class EmuPreTrainedConfig(PreTrainedConfig):
    """The sections of `EmuConfig` as dictionaries; a section that is None has the paper's sizes, `adapter` and
    `decoder` then are absent.

    Raises ConfigError naming the path of an unknown or absent key, or of a value that is not allowed.
    """

    model_type: ClassVar[str] = MODEL_TYPE
    vision: dict[str, Any] | None = None
    former: dict[str, Any] | None = None
    language: dict[str, Any] | None = None
    objective: dict[str, Any] | None = None
    instruct: bool = False
    adapter: dict[str, Any] | None = None
    decoder: dict[str, Any] | None = None
    init: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.emu()  # raises here for what is not allowed

    @classmethod
    def of(cls, config: EmuConfig) -> EmuPreTrainedConfig:
        """The same as a configuration of transformers."""
        values = json.loads(config.to_json())
        return cls(**{name: values.get(name) for name in SECTIONS})

    def emu(self) -> EmuConfig:
        """The same as a configuration of this project."""
        given = {name: getattr(self, name) for name in SECTIONS}
        values = json.loads(EmuConfig().to_json()) | {
            k: v for k, v in given.items() if v is not None
        }
        return EmuConfig.from_json(json.dumps(values))

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding, added tokens included."""
        return self.emu().num_embeddings

    @property
    def hidden_size(self) -> int:
        """Width of the language model."""
        return self.emu().language.hidden_size

    @property
    def num_hidden_layers(self) -> int:
        """Layers of the language model."""
        return self.emu().language.num_layers

    @property
    def num_attention_heads(self) -> int:
        """Heads of a layer of the language model."""
        return self.emu().language.num_heads

    @property
    def max_position_embeddings(self) -> int:
        """Positions that the model has."""
        return self.emu().language.max_positions

    @property
    def image_token_id(self) -> int:
        """The id whose positions take the embeddings of images."""
        return self.emu().special.image

    def get_text_config(self, *args: Any, **kwargs: Any) -> EmuPreTrainedConfig:
        """This configuration: `decoder` is the visual decoder, no language model."""
        return self

    def to_json_string(self, use_diff: bool = True) -> str:
        """The text of `config.json` as this project writes and reads it."""
        return self.emu().to_json()
