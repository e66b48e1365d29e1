"""Loading of a checkpoint's tokenizer without running code from the checkpoint.

A checkpoint contains a `tokenizer.json`, the SentencePiece model (`tokenizer.model`) of InternLM2 or Phi-3,
or the vocabulary and merges of Qwen's byte-level BPE (`vocab.json`, `merges.txt`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from inference.internvl2.checkpoint_check import BPE_FILES, TOKENIZER_FILES, has_llama_tokenizer

END_TOKENS: Final = ("<|im_end|>", "<|im_start|>", "<|end|>", "<|assistant|>")
"""The end tokens of the official generation configurations: those of InternLM2 and Qwen, and those of Phi-3."""

PICTURE_TOKEN: Final = "<IMG_CONTEXT>"
"""The token that stands for one picture feature."""

_QUIET: Final = {"fix_mistral_regex": False}
"""An argument that keeps transformers 4.57 from warning of a wrong pattern in every checkpoint that it wrote."""


def load_tokenizer(directory: str | Path) -> Any:
    """Return the transformers tokenizer of the checkpoint in `directory`.

    Raises:
        FileNotFoundError: The checkpoint has no tokenizer.
    """
    directory = Path(directory)
    if has_llama_tokenizer(directory):
        from transformers import LlamaTokenizer

        return LlamaTokenizer.from_pretrained(directory)
    if all((directory / name).is_file() for name in BPE_FILES):
        from transformers import Qwen2TokenizerFast

        return Qwen2TokenizerFast.from_pretrained(directory, **_QUIET)
    if (directory / "tokenizer.json").is_file():
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(directory, **_QUIET)
    if (directory / "tokenizer.model").is_file():
        from inference.internvl2.tokenization_internlm2 import InternLM2Tokenizer

        return InternLM2Tokenizer.from_pretrained(directory)
    needed = f"{', '.join(TOKENIZER_FILES)}, or {' with '.join(BPE_FILES)}"
    raise FileNotFoundError(f"{directory} has no tokenizer: {needed} is needed")


def token_id(tokenizer: Any, token: str) -> int:
    """Return the ID of a special token.

    Raises:
        ValueError: The tokenizer has no such token.
    """
    known = tokenizer.get_added_vocab().get(token)
    if known is None:
        raise ValueError(f"the tokenizer has no token {token}: it is not the tokenizer of an InternVL model")
    return int(known)


def text_decoder(tokenizer: Any) -> Callable[[list[int]], str]:
    """Return a function that decodes token IDs to text without special tokens.

    The function returns the same text as the official code but is faster than transformers' Python
    tokenizers, which look up all the special tokens for every ID and thus take 0.1 ms per token.
    """
    processor = getattr(tokenizer, "sp_model", None)
    if processor is None:
        # Clean-up would change spaces that have already been streamed; the official code does not clean up either.
        return lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
    special = frozenset(tokenizer.all_special_ids)
    size = processor.get_piece_size()
    return lambda ids: str(processor.decode([index for index in ids if index not in special and index < size]))
