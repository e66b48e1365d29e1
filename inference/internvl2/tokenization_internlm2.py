"""InternLM2's SentencePiece tokenizer, which produces the same tokens as the official tokenizer.

This file is copied into checkpoints that have a `tokenizer.model` but no `tokenizer.json`, to serve as
their tokenizer code.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, ClassVar

import sentencepiece
from transformers import PreTrainedTokenizer


class InternLM2Tokenizer(PreTrainedTokenizer):
    """BPE tokenizer with byte fallback, loaded from `tokenizer.model`.

    Sequences start with `<s>` unless `add_bos_token` is False.
    """

    vocab_files_names: ClassVar[dict[str, str]] = {"vocab_file": "tokenizer.model"}
    model_input_names: ClassVar[list[str]] = ["input_ids", "attention_mask"]

    def __init__(
        self,
        vocab_file: str,
        unk_token: str = "<unk>",
        bos_token: str = "<s>",
        eos_token: str = "</s>",
        pad_token: str = "</s>",
        sp_model_kwargs: dict[str, Any] | None = None,
        add_bos_token: bool = True,
        add_eos_token: bool = False,
        clean_up_tokenization_spaces: bool = False,
        **kwargs: Any,
    ) -> None:
        self.vocab_file = vocab_file
        self.add_bos_token = add_bos_token
        self.add_eos_token = add_eos_token
        self.sp_model = sentencepiece.SentencePieceProcessor(model_file=vocab_file, **(sp_model_kwargs or {}))
        self._pieces: list[str] = self.sp_model.id_to_piece(list(range(self.vocab_size)))
        super().__init__(
            bos_token=bos_token,
            eos_token=eos_token,
            unk_token=unk_token,
            pad_token=pad_token,
            sp_model_kwargs=sp_model_kwargs,
            add_bos_token=add_bos_token,
            add_eos_token=add_eos_token,
            clean_up_tokenization_spaces=clean_up_tokenization_spaces,
            **kwargs,
        )

    @property
    def vocab_size(self) -> int:
        """Number of SentencePiece pieces, without added tokens."""
        return int(self.sp_model.get_piece_size())

    def get_vocab(self) -> dict[str, int]:
        """Return a mapping of all tokens, including added tokens, to their IDs."""
        # Built from the IDs, because an added token may replace an unused piece. transformers calls this method several
        # times as it loads the tokenizer, and asking for 92,000 pieces one at a time would take most of that time.
        tokens = self._pieces.copy()
        for index, token in self.added_tokens_decoder.items():
            if index < len(tokens):
                tokens[index] = token.content
        return {token: index for index, token in enumerate(tokens)} | self.added_tokens_encoder

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return list(self.sp_model.encode(text, out_type=str))

    def _convert_token_to_id(self, token: str) -> int:
        return int(self.sp_model.piece_to_id(token))

    def _convert_id_to_token(self, index: int) -> str:
        return str(self.sp_model.id_to_piece(index))

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Return the text of `tokens` with the same spacing as the official tokenizer.

        One space is inserted before each stretch of text that is followed by a special token, and before a
        special token at the very start of the text. Spaces before English punctuation are removed.
        """
        special = set(self.all_special_tokens)
        parts: list[str] = []
        pending: list[str] = []
        after_special = False
        for token in tokens:
            if token not in special:
                pending.append(token)
                after_special = False
                continue
            parts.append(("" if after_special else " ") + self.sp_model.decode(pending) + token)
            pending = []
            after_special = True
        return str(self.clean_up_tokenization("".join([*parts, self.sp_model.decode(pending)])))

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Return the token IDs of one or two sequences with special tokens added.

        The result starts with `<s>` if `add_bos_token` is set and ends with `</s>` if `add_eos_token` is set.
        """
        first = [self.sp_model.bos_id()] if self.add_bos_token else []
        last = [self.sp_model.eos_id()] if self.add_eos_token else []
        return first + token_ids_0 + (token_ids_1 or []) + last

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        """Copy `tokenizer.model` into `save_directory` and return the new path in a tuple."""
        target = Path(save_directory) / f"{filename_prefix + '-' if filename_prefix else ''}tokenizer.model"
        if not target.exists() or not target.samefile(self.vocab_file):
            shutil.copyfile(self.vocab_file, target)
        return (str(target),)
