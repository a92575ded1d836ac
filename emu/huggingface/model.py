"""The model under the names of transformers; `Emu`, its weights and the engine stay what they are.

Shapes: B batch, L positions, V rows of the vocabulary, N images of the batch, C channels, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from emu.huggingface.config import EmuPreTrainedConfig
from emu.weights.transformers_files import GENERATION_CONFIG

if TYPE_CHECKING:
    from emu.generate.engine import Engine
    from emu.generate.prompts import TextOptions
    from emu.tokenizer import EmuTokenizer

HUB = ("revision", "token", "cache_dir", "force_download", "local_files_only", "proxies")
IGNORED_HERE = ("low_cpu_mem_usage", "use_safetensors", "trust_remote_code", "adapter_kwargs")
"""Options of `from_pretrained` that change nothing: weights are always mapped safetensors of this project's code."""
IGNORED_BY_GENERATE = (
    *("pad_token_id", "eos_token_id", "bos_token_id", "use_cache"),
    *("return_dict_in_generate", "tokenizer", "assistant_tokenizer"),
)
CONFIGURED = ("max_new_tokens", "do_sample", "temperature", "top_p", "num_beams", "length_penalty")
"""Fields of a `GenerationConfig` that `generate` reads."""


@dataclass
class EmuModelOutput(ModelOutput):
    """What `EmuForConditionalGeneration.forward` gives."""

    loss: Tensor | None = None
    """Cross-entropy and weighted regression, where labels were given (paper section 2.2)."""
    logits: Tensor | None = None
    """`BLV`."""
    last_hidden_state: Tensor | None = None
    """`BLD`, after the final norm."""
    text_loss: Tensor | None = None
    visual_loss: Tensor | None = None


class EmuForConditionalGeneration(PreTrainedModel):
    """Emu as transformers' users call a model: `from_pretrained`, `forward`, `generate`, `save_pretrained`.

    `engine` gives everything else: images, interleaved replies, ranking.
    """

    config_class = EmuPreTrainedConfig
    base_model_prefix = "emu"
    main_input_name = "input_ids"

    def __init__(
        self, config: EmuPreTrainedConfig, *args: Any, emu: nn.Module | None = None
    ) -> None:
        from emu.models.emu import Emu

        super().__init__(config)
        if emu is None:
            emu = Emu(config.emu())
            emu.init_weights(seed=0)
        self.emu: Any = emu
        self._tokenizer: EmuTokenizer | None = None
        self._folder: Path | None = None
        self._engine: Engine | None = None

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Any,
        *model_args: Any,
        config: Any = None,
        dtype: str | torch.dtype | None = None,
        torch_dtype: str | torch.dtype | None = None,
        device_map: Any = None,
        **kwargs: Any,
    ) -> Self:
        """The model of a directory, or of a repository on the hub, in evaluation mode.

        Args:
            pretrained_model_name_or_path: a model directory, an adapter's folder or the name of a repository.
            config: must be that of the directory; it is read from there.
            dtype: of the weights; as they are stored by default.
            device_map: one device, such as `cuda` or `{"": 0}`; the CPU by default.

        Raises:
            FileNotFoundError: naming an absent file.
            TypeError: for options that this model does not have.
            ValueError: for weights that do not fit the configuration.
        """
        from emu.weights.adapter import open_model

        hub = {name: kwargs.pop(name) for name in HUB if name in kwargs}
        unknown = [name for name in kwargs if name not in IGNORED_HERE and not name.startswith("_")]
        if unknown or model_args:
            raise TypeError(
                f"from_pretrained got {unknown or model_args}; give dtype, device_map or {', '.join(HUB)}"
            )
        folder = _folder_of(pretrained_model_name_or_path, hub)
        given = dtype if dtype is not None else torch_dtype
        model, tokenizer = open_model(folder, _device_of(device_map), _dtype_of(given, folder))
        made = cls(EmuPreTrainedConfig.of(model.config), emu=model)
        made.config.name_or_path = str(pretrained_model_name_or_path)
        made._tokenizer, made._folder = tokenizer, folder
        if (folder / GENERATION_CONFIG).is_file():
            made.generation_config = GenerationConfig.from_pretrained(folder)
        return made.eval()

    def save_pretrained(
        self,
        save_directory: Any,
        *args: Any,
        state_dict: dict[str, Tensor] | None = None,
        max_shard_size: str | int = "5GB",
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Writes a model directory; a processor saved beside it adds the tokenizer, if the model has none.

        `state_dict` replaces the weights, as trainers use it. Other options are refused with TypeError.
        """
        from emu.weights.store import save_model

        unknown = [name for name in kwargs if name not in ("is_main_process", "safe_serialization")]
        if unknown or args or push_to_hub:
            raise TypeError(
                f"save_pretrained got {unknown or args or 'push_to_hub'}; give state_dict or max_shard_size, and call "
                "push_to_hub(…) for the hub"
            )
        if not kwargs.get("is_main_process", True):
            return
        if state_dict is not None:
            self.load_state_dict(state_dict)
        save_model(save_directory, self.emu, self._tokenizer, str(max_shard_size))

    @classmethod
    def can_generate(cls) -> bool:
        """Yes: see `generate`."""
        return True

    @property
    def engine(self) -> Engine:
        """The engine over the same weights, with the visual decoder of the model directory if it has one.

        Raises ValueError for a model that was not loaded with a tokenizer.
        """
        if self._engine is None:
            from emu.decoders import load_decoder
            from emu.generate.engine import Engine
            from emu.weights.layout import DECODER

            if self._tokenizer is None:
                raise ValueError(
                    "this model has no tokenizer; load it with from_pretrained of a model directory"
                )
            decoder = None
            if self._folder is not None and (self._folder / DECODER).is_dir():
                decoder = load_decoder(self._folder / DECODER, self.device, self.dtype)
            self._engine = Engine(self.emu, self._tokenizer, decoder)
        return self._engine

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> EmuModelOutput:
        """One pass over right-padded sequences.

        Args:
            input_ids: `BL`.
            attention_mask: `BL`, true at positions that count; all by default.
            pixel_values: `NCHW`, the images in reading order.
            labels: `BL`, ids where a text is learned and -100 elsewhere; images are regressed in any case.
        """
        from emu.models.objective import IGNORED, Batch, Objective

        mask_BL = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        labels_BL = torch.full_like(input_ids, IGNORED) if labels is None else labels
        batch = Batch(input_ids, mask_BL.bool(), labels_BL, pixel_values)
        output = self.emu(batch)
        made = EmuModelOutput(logits=output.logits_BLV, last_hidden_state=output.hidden_BLD)
        if labels is not None:
            losses = Objective(self.emu.config.objective)(output, batch)
            made.loss, made.text_loss, made.visual_loss = losses.total, losses.text, losses.visual
        return made

    @torch.inference_mode()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        """The ids `BL` of prompts and replies, as decoder-only models of transformers give them.

        Padding of the prompts may stand on either side and stays; replies are padded with `[PAD]`. `options` are
        those of `TextOptions` (`max_new_tokens`, `do_sample`, `temperature`, `top_p`, `num_beams`, `seed`, …); what is
        not given is taken from `generation_config` (five beams without sampling, as the released evaluation).
        """
        from emu.generate.prompts import EncodedPrompt

        mask_BL = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        special, per_image = self.emu.config.special, self.emu.config.former.num_queries
        images = iter(() if pixel_values is None else pixel_values.cpu().float())
        prompts: list[EncodedPrompt] = []
        for ids_L, mask_L in zip(input_ids, mask_BL.bool(), strict=True):
            ids = ids_L[mask_L].tolist()
            num_images = ids.count(special.image) // per_image
            pixels = tuple(islice(images, num_images))
            if len(pixels) * per_image != ids.count(special.image):
                raise ValueError(
                    f"row {len(prompts)} has {ids.count(special.image)} <image> positions for {len(pixels)} images; "
                    f"an image needs exactly {per_image}"
                )
            prompts.append(EncodedPrompt(tuple(ids), pixels))
        replies = self.engine.generate_ids(prompts, self._text_options(options))
        rows = [torch.tensor(ids[1:], dtype=torch.long) for ids in replies]  # without <s>
        padded = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=special.pad)
        return torch.cat((input_ids, padded.to(input_ids.device)), dim=1)

    def _text_options(self, options: dict[str, Any]) -> TextOptions:
        from emu.generate.prompts import TextOptions

        defaults = options.pop("generation_config", None) or self.generation_config
        given = {k: v for k, v in options.items() if k not in IGNORED_BY_GENERATE}
        configured = {name: getattr(defaults, name, None) for name in CONFIGURED}
        values = {k: v for k, v in configured.items() if v is not None} | given
        if values.get("do_sample") and "num_beams" not in given:
            values["num_beams"] = 1
        return TextOptions(**values)

    def get_input_embeddings(self) -> nn.Module:
        """The token embeddings of the language model."""
        return self.emu.language.lm.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        """The vocabulary head."""
        return self.emu.language.lm.get_output_embeddings()


def _folder_of(name: Any, hub: dict[str, Any]) -> Path:
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(str(name), **{k: v for k, v in hub.items() if v is not None}))


def _device_of(device_map: Any) -> torch.device:
    if isinstance(device_map, dict) and set(device_map) == {""}:
        device_map = device_map[""]
    if device_map in (None, "auto"):
        on_gpu = device_map == "auto" and torch.cuda.is_available()
        return torch.device("cuda" if on_gpu else "cpu")
    if isinstance(device_map, dict):
        raise ValueError(f"device_map is {device_map}, give one device for the whole model")
    return torch.device(device_map)


def _dtype_of(given: str | torch.dtype | None, folder: Path) -> torch.dtype:
    if isinstance(given, torch.dtype):
        return given
    if given not in (None, "auto"):
        return getattr(torch, str(given))
    from emu.weights.adapter import is_adapter
    from emu.weights.store import read_weights

    if is_adapter(folder):
        return torch.float32
    return next(read_weights(folder))[1].dtype
