"""The files of a model directory that transformers and the hub read beside `config.json` and the weights.

| file                      | contents                                                            |
|---------------------------|---------------------------------------------------------------------|
| `tokenizer_config.json`   | the tokenizer's class, its special tokens                            |
| `chat_template.jinja`     | a conversation as a prompt, as the server makes it                   |
| `preprocessor_config.json`| the side of an image                                                |
| `processor_config.json`   | positions of an image                                               |
| `generation_config.json`  | defaults of generation                                              |
| `README.md`               | the model card                                                      |

The classes that they name are those of `emu.huggingface`. No torch here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from emu.config import IMAGE, INSTRUCT_TOKENS, PRETRAIN_TOKENS, EmuConfig
from emu.tokenizer import BASE_TOKENS, EmuTokenizer
from schemas.dialogue import IMAGE_SYSTEM_MESSAGE

TOKENIZER_CONFIG, GENERATION_CONFIG = "tokenizer_config.json", "generation_config.json"
PROCESSOR, IMAGE_PROCESSOR = "EmuProcessor", "EmuImageProcessor"
CARD = "README.md"

_TURN = (
    "{%- macro content(message) -%}"
    "{%- if message.content is string -%}{{ message.content }}{%- else -%}"
    "{%- for part in message.content -%}"
    "{%- if part.type == 'text' -%}{{ part.text }}"
    "{%- elif part.type in ('image', 'image_url') -%}" + IMAGE + "{%- else -%}"
    "{{ raise_exception('a part of type ' ~ part.type ~ '; give text or image') }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}{%- endmacro -%}"
)
_BASE = (
    _TURN
    + "{%- for message in messages -%}{{ ' ' if not loop.first else '' }}{{ content(message) }}"
    "{%- endfor -%}"
)
_INSTRUCT = (
    _TURN
    + "{%- set system = messages | selectattr('role', 'in', ['system', 'developer']) | list -%}"
    "{%- set spoken = messages | rejectattr('role', 'in', ['system', 'developer']) | list -%}"
    "{%- set all = namespace(text='') -%}"
    "{%- for message in spoken -%}{%- set all.text = all.text ~ content(message) -%}{%- endfor -%}"
    "{%- for message in system -%}{{ content(message) }}{%- endfor -%}"
    "{%- if not system and all.text.count('" + IMAGE + "') == 1 -%}"
    "{{ '" + IMAGE_SYSTEM_MESSAGE + "' }}{%- endif -%}"
    "{%- for message in spoken -%}"
    "{%- if message.role == 'user' -%}{{ ' [USER]: ' ~ content(message) }}"
    "{{ ' [ASSISTANT]:' if loop.last and add_generation_prompt else '' }}"
    "{%- elif message.role == 'assistant' -%}{{ ' [ASSISTANT]: ' ~ content(message) }}"
    "{{ '</s>' if not loop.last else '' }}{%- else -%}"
    "{{ raise_exception('a message of role ' ~ message.role ~ '; give system, user or assistant') }}"
    "{%- endif -%}{%- endfor -%}"
)


def chat_template(instruct: bool) -> str:
    """The Jinja template of a conversation: the prompts of the server, token for token."""
    return _INSTRUCT if instruct else _BASE


def write_generation_config(directory: Path, config: EmuConfig) -> None:
    """Writes the special ids and the five beams of the released evaluations in the form of transformers."""
    special = config.special
    _write(
        directory / GENERATION_CONFIG,
        {
            "bos_token_id": special.bos,
            "eos_token_id": special.eos,
            "pad_token_id": special.pad,
            "do_sample": False,
            "num_beams": 5,
        },
    )


def write_tokenizer(directory: Path, tokenizer: EmuTokenizer, config: EmuConfig) -> None:
    """Writes the sentencepiece model, and for transformers the classes, the special tokens and the chat template."""
    tokenizer.save(directory / "tokenizer.model")
    added = INSTRUCT_TOKENS if tokenizer.instruct else PRETRAIN_TOKENS
    ids = dict(enumerate(BASE_TOKENS)) | dict(enumerate(added, tokenizer.num_pieces))
    _write(
        directory / TOKENIZER_CONFIG,
        {
            "tokenizer_class": "EmuPreTrainedTokenizer",
            "processor_class": PROCESSOR,
            "instruct": tokenizer.instruct,
            "model_max_length": config.language.max_positions,
            "padding_side": "right",
            "added_tokens_decoder": {str(i): _token(text) for i, text in ids.items()},
        },
    )
    (directory / "chat_template.jinja").write_text(chat_template(tokenizer.instruct))
    side = config.vision.image_size
    _write(
        directory / "preprocessor_config.json",
        {
            "image_processor_type": IMAGE_PROCESSOR,
            "processor_class": PROCESSOR,
            "size": {"height": side, "width": side},
        },
    )
    _write(
        directory / "processor_config.json",
        {"processor_class": PROCESSOR, "num_queries": config.former.num_queries},
    )


def write_card(directory: Path, config: EmuConfig) -> None:
    """Writes the model card; one that someone wrote or changed stays."""
    path = directory / CARD
    if not path.exists():
        path.write_text(model_card(config))


def model_card(config: EmuConfig) -> str:
    """What a model is, its sizes, and how it is opened, for the hub."""
    language, vision = config.language, config.vision
    rows = [
        (
            "visual encoder",
            f"{vision.layers} layers of width {vision.width}, {vision.image_size} pixels",
        ),
        (
            "Causal Transformer",
            f"{config.former.num_layers} layers, {config.former.num_queries} queries",
        ),
        ("language model", f"{language.num_layers} layers of width {language.hidden_size}"),
        ("positions", f"{language.max_positions:,}"),
        ("vocabulary", f"{config.num_embeddings:,} tokens"),
        ("tuned on instructions", "yes" if config.instruct else "no: it continues texts"),
        ("LoRA", f"rank {config.adapter.rank}" if config.adapter else "none, or merged"),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return f"""---
library_name: emu-platform
pipeline_tag: image-text-to-text
tags: [emu, multimodal]
---

# Emu

A multimodal model after [Emu: Generative Pretraining in Multimodality](https://arxiv.org/abs/2307.05222).

| | |
|---|---|
{table}

```python
import emu  # registers the classes with transformers

engine = emu.load("PATH")
print(engine.generate_text(["The colours of the rainbow are"]))

from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("PATH")
processor = AutoProcessor.from_pretrained("PATH")
inputs = processor(text="The colours of the rainbow are", return_tensors="pt")
print(processor.batch_decode(model.generate(**inputs, max_new_tokens=20)))
```

Data, training and evaluation are not described here; whoever publishes the model adds them.
"""


def _token(text: str) -> dict[str, Any]:
    plain = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    return {"content": text, "special": True} | plain


def _write(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n")
