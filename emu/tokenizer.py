"""Text to ids and back, with the segmentation that the released weights were trained on.

Emu uses LLaMA's sentencepiece pieces and a few added tokens. The text between two special tokens is stripped at the
sides that touch one and encoded separately, so it starts with a word boundary mark. This is the behaviour of the
slow LLaMA tokenizer of transformers 4.29 to 4.31; later versions split the same prompts differently, so it is
implemented here on sentencepiece alone.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import sentencepiece

from emu.config import INSTRUCT_TOKENS, PRETRAIN_TOKENS, SpecialTokens, image_block

IMAGE_BLOCK = image_block
BASE_TOKENS = ("<unk>", "<s>", "</s>")


class EmuTokenizer:
    """Encodes prompts and decodes replies with the ids of the released models."""

    def __init__(self, model: bytes, instruct: bool = False) -> None:
        """Takes the bytes of a sentencepiece model whose first three pieces are LLaMA's."""
        self._pieces = sentencepiece.SentencePieceProcessor()
        try:
            self._pieces.LoadFromSerializedProto(model)
        except RuntimeError as error:
            raise ValueError(f"{len(model)} bytes are not a sentencepiece model") from error
        found = tuple(self._pieces.IdToPiece(i) for i in range(3))
        if found != BASE_TOKENS:
            raise ValueError(f"the vocabulary starts with {found}, Emu needs {BASE_TOKENS}")
        self.model_bytes = model
        self.instruct = instruct
        self.num_pieces: int = self._pieces.GetPieceSize()
        self.special = SpecialTokens.after(self.num_pieces, instruct)
        added = INSTRUCT_TOKENS if instruct else PRETRAIN_TOKENS
        self._id_of = {token: i for i, token in enumerate(BASE_TOKENS)}
        self._id_of |= {token: self.num_pieces + i for i, token in enumerate(added)}
        self._token_of = {i: token for token, i in self._id_of.items()}
        self._split = re.compile("(" + "|".join(re.escape(token) for token in self._id_of) + ")")

    @staticmethod
    def load(path: str | Path, instruct: bool = False) -> EmuTokenizer:
        """The tokenizer of a `tokenizer.model` file, or of a directory that holds one."""
        path = Path(path)
        path = path / "tokenizer.model" if path.is_dir() else path
        if not path.is_file():
            raise FileNotFoundError(f"no tokenizer at {path}; give a sentencepiece tokenizer.model")
        try:
            return EmuTokenizer(path.read_bytes(), instruct)
        except ValueError as error:
            raise ValueError(f"no tokenizer at {path}: {error}") from error

    def __len__(self) -> int:
        return len(self._id_of) - len(BASE_TOKENS) + self.num_pieces

    def encode(self, text: str, bos: bool = True, eos: bool = False) -> list[int]:
        """The ids of `text`; special tokens written in it become their ids."""
        ids = [self.special.bos] if bos else []
        parts = self.split(text)
        for index, part in enumerate(parts):
            if isinstance(part, int):
                ids.append(part)
            else:
                ids += self.encode_run(part, index == 0, index == len(parts) - 1)
        return ids + [self.special.eos] if eos else ids

    def token(self, index: int) -> str:
        """The token or the piece of an id; raises ValueError outside the vocabulary."""
        if not 0 <= index < len(self):
            raise ValueError(f"token id {index} is outside the vocabulary of {len(self)}")
        return self._token_of.get(index) or self._pieces.IdToPiece(index)

    def id_of(self, token: str) -> int:
        """The id of a token or piece, that of `<unk>` for one that does not exist."""
        known = self._id_of.get(token)
        return self._pieces.PieceToId(token) if known is None else known

    def split(self, text: str) -> list[str | int]:
        """Texts, at even indices and perhaps empty, and the ids of the special tokens between them."""
        parts = self._split.split(text)
        return [self._id_of[part] if n % 2 else part for n, part in enumerate(parts)]

    def encode_run(self, text: str, is_first: bool, is_last: bool) -> list[int]:
        """The ids of a text between special tokens, stripped at the sides that touch one."""
        text = text if is_first else text.lstrip()
        return self.encode_text(text if is_last else text.rstrip())

    def encode_text(self, text: str) -> list[int]:
        """The ids of a text; special tokens written in it are plain text."""
        return self._pieces.EncodeAsIds(text) if text else []

    def piece(self, token: int) -> str:
        """One token on its own: a space where a word begins, `<0x0A>` for a byte, a special token by its name."""
        return self._token_of.get(token) or self._pieces.IdToPiece(token).replace("\u2581", " ")

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of `ids`; special tokens are omitted, or kept with a space on each side."""
        texts: list[str] = []
        run: list[int] = []
        for token in map(int, ids):
            if not 0 <= token < len(self):
                raise ValueError(f"token id {token} is outside the vocabulary of {len(self)}")
            if token not in self._token_of:
                run.append(token)
            elif not skip_special:
                texts += (
                    [self._text(run), self._token_of[token]] if run else [self._token_of[token]]
                )
                run = []
        return " ".join(texts + [self._text(run)] if run else texts)

    def save(self, path: str | Path) -> None:
        """Write the sentencepiece model, from which `load` gives the same tokenizer."""
        Path(path).write_bytes(self.model_bytes)

    def _text(self, ids: Sequence[int]) -> str:
        return self._pieces.DecodeIds(list(ids))


def train_tokenizer(texts: Iterable[str], vocab_size: int, path: str | Path) -> None:
    """Train a sentencepiece model with LLaMA's conventions on `texts` and write it to `path`.

    BPE with byte fallback, one piece per digit, identity normalisation. The same texts give the same bytes.
    `vocab_size` is an upper limit: few texts give fewer pieces.
    """
    minimum = len(BASE_TOKENS) + 256 + 1
    if vocab_size <= minimum:
        raise ValueError(f"vocab_size is {vocab_size}, give more than {minimum} (256 are bytes)")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        character_coverage=0.9999,
        num_threads=1,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        minloglevel=2,
    )
    Path(path).write_bytes(model.getvalue())
