"""`EmuTokenizer` as a tokenizer of transformers: the same ids, beside special tokens too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizer

from emu.config import INSTRUCT_TOKENS, PRETRAIN_TOKENS
from emu.tokenizer import BASE_TOKENS, EmuTokenizer

FILE = "tokenizer.model"


class EmuPreTrainedTokenizer(PreTrainedTokenizer):
    """The segmentation of the released code (see `emu.tokenizer`); `<s>` stands in front.

    Special tokens that are written in a text become their ids, unless `split_special_tokens` is true.
    """

    vocab_files_names = {"vocab_file": FILE}  # noqa: RUF012 (declared by the base class)
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012
    padding_side = "right"

    def __init__(self, vocab_file: str, instruct: bool = False, **kwargs: Any) -> None:
        self.emu = EmuTokenizer.load(vocab_file, instruct)
        self.vocab_file = vocab_file
        self.instruct = instruct
        unk, bos, eos = BASE_TOKENS
        added = INSTRUCT_TOKENS if instruct else PRETRAIN_TOKENS
        names = {"unk_token": unk, "bos_token": bos, "eos_token": eos, "pad_token": added[0]}
        kwargs = {"special_tokens_pattern": "bos", **kwargs, **names}
        super().__init__(instruct=instruct, extra_special_tokens=list(added[1:]), **kwargs)
        assert len(self) == len(self.emu), "transformers added tokens of its own"

    @property
    def vocab_size(self) -> int:
        """Pieces of the sentencepiece model, without the added tokens."""
        return self.emu.num_pieces

    def get_vocab(self) -> dict[str, int]:
        """Every token and its id."""
        return {self.emu.token(i): i for i in range(len(self.emu))}

    def tokenize(self, text: str, **kwargs: Any) -> list[str]:
        """The tokens of a text, without `<s>`."""
        if kwargs.get("split_special_tokens", self.split_special_tokens):
            return self._tokenize(text)
        return [self.emu.token(i) for i in self.emu.encode(text, bos=False)]

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return [self.emu.token(i) for i in self.emu.encode_text(text)]

    def _convert_token_to_id(self, token: str) -> int:
        return self.emu.id_of(token)

    def _convert_id_to_token(self, index: int) -> str:
        return self.emu.token(index)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of tokens; special ones stay, with a space on each side."""
        return self.emu.decode(map(self.emu.id_of, tokens), skip_special=False)

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """`<s>`, then the ids; a second text follows the first."""
        return [self.emu.special.bos, *token_ids_0, *(token_ids_1 or [])]

    def save_vocabulary(
        self, save_directory: str, filename_prefix: str | None = None
    ) -> tuple[str]:
        """Writes the sentencepiece model."""
        path = Path(save_directory) / (f"{filename_prefix}-{FILE}" if filename_prefix else FILE)
        self.emu.save(path)
        return (str(path),)

    def _decode(
        self,
        token_ids: int | list[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs: Any,
    ) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else token_ids
        return self.emu.decode(ids, skip_special_tokens)
