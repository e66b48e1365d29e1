"""Loading the tokenizer of a checkpoint directory, without running code from that directory.

Knows the two forms there are: a fast `tokenizer.json`, or the official sentencepiece `tokenizer.model`. Knows
nothing of prompts.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

END_TOKENS = ("<|im_end|>", "<|im_start|>")
PICTURE_TOKEN = "<IMG_CONTEXT>"


def load_tokenizer(directory: str | Path) -> Any:
    """The transformers tokenizer of a checkpoint directory. Raises FileNotFoundError if there is none."""
    directory = Path(directory)
    if (directory / "tokenizer.json").is_file():
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(directory)
    if (directory / "tokenizer.model").is_file():
        from inference.internvl2.tokenization_internlm2 import InternLM2Tokenizer

        return InternLM2Tokenizer.from_pretrained(directory)
    raise FileNotFoundError(
        f"{directory} holds neither tokenizer.json nor tokenizer.model: not a checkpoint's tokenizer"
    )


def token_id(tokenizer: Any, token: str) -> int:
    """The id of one special token, asked of the tokenizer. Raises ValueError if it does not know the token."""
    known = tokenizer.get_added_vocab().get(token)
    if known is None:
        raise ValueError(f"the tokenizer has no token {token}: it is not an InternVL2 tokenizer")
    return int(known)


def text_decoder(tokenizer: Any) -> Callable[[list[int]], str]:
    """Token ids → their text, special tokens left out; the official decoding, made for many short calls.

    A sentencepiece tokenizer in Python asks anew for all its special tokens at every id (0.1 ms a token).
    """
    processor = getattr(tokenizer, "sp_model", None)
    if processor is None:
        # Cleaning up would move spaces after they were shown; the official code does not either.
        return lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
    special = frozenset(tokenizer.all_special_ids)
    size = processor.get_piece_size()
    return lambda ids: str(processor.decode([index for index in ids if index not in special and index < size]))
