"""Token counts of prompts for one model, and truncation of the history to the engine's context window.

This module reads only a checkpoint's configuration and tokenizer files, without importing torch or
transformers, so that the bot's own process can count tokens.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property, lru_cache, partial
from itertools import pairwise
from operator import attrgetter
from pathlib import Path
from threading import Lock
from typing import Any, Final

from cachetools import LRUCache, cachedmethod

from inference.chat_format.template import (
    IMG_CONTEXT,
    IMG_END,
    IMG_START,
    fit,
    pictures,
    question_count,
    render,
    upper_bound,
)
from inference.images.opening import picture_size
from inference.internvl2.checkpoint_check import BPE_FILES, has_llama_tokenizer, has_tokenizer
from inference.internvl2.families import family_of
from inference.internvl2.tile_grid import Tiling
from inference.messages import Picture, Prompt, PromptTooLong
from inference.settings import TINY, InferenceSettings

_SPECIAL: Final = re.compile(
    rf"<\|(?:im_start|im_end|system|user|assistant|end)\|>|{IMG_START}|{IMG_END}|{IMG_CONTEXT}"
)
"""A pattern for the special tokens in a rendered prompt. The texts between them contain none."""

_STEP: Final = 4
"""The number of questions cut from a long history at a time. Cutting several keeps the start of the prompt the same for
the next questions, which can then reuse the engine's prefix cache."""

_WORDS: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The pattern by which Qwen's tokenizers split a text (transformers, convert_slow_tokenizer.Qwen2Converter)."""

_TEXTS: Final = 4096
_PICTURES: Final = 4096


class Window:
    """The context window of an engine, in tokens. Instances are thread-safe.

    Args:
        directory: The model's checkpoint.
        tiles: The maximum number of tiles per picture, or None for the checkpoint's own limit.
        longest: The engine's own limit in tokens, which applies if it is lower than the model's.

    Raises:
        OSError, ValueError, KeyError, TypeError: The directory has no InternVL2 configuration or no tokenizer.
    """

    def __init__(self, directory: Path, *, tiles: int | None = None, longest: int | None = None) -> None:
        config = json.loads((directory / "config.json").read_bytes())
        self._family = family_of(config)
        self._tiling = Tiling.from_config(config, tiles)
        self.tokens: int = min(config["llm_config"]["max_position_embeddings"], longest or sys.maxsize)
        if not has_tokenizer(directory):
            raise FileNotFoundError(f"{directory} has no tokenizer")
        self._directory = directory
        self._lock = Lock()
        self._text_tokens = lru_cache(_TEXTS)(lambda text: self._tokenizer[0](text))
        self._picture_tokens: LRUCache[str, int] = LRUCache(_PICTURES)

    def surely_holds(self, prompt: Prompt) -> bool:
        """Return whether `prompt` is certain to fit, regardless of its tokenization and the sizes of its pictures.

        The check is fast and reads no files.
        """
        return upper_bound(prompt, (self._tiling.max_tiles + 1) * self._tiling.tokens) <= self._prompt_limit(prompt)

    def fit(self, prompt: Prompt) -> Prompt:
        """Return the prompt, with its history truncated by `template.fit` if the prompt is too long.

        The tokenizer is loaded on first use. If the newest question alone leaves too little room for a full
        answer, the answer is limited to the remaining room.

        Raises:
            PromptTooLong: There is no room for an answer at all.
            PictureError: The header of a picture cannot be read.
        """
        if self.surely_holds(prompt):
            return prompt
        limit = self._prompt_limit(prompt)
        for step in (_STEP, 1):
            with suppress(PromptTooLong):
                return fit(prompt, limit, partial(self._count_of_step, prompt, step))
        return fit(prompt, self.tokens - 1, self.count)

    def count(self, prompt: Prompt) -> int:
        """Return the number of tokens in the prompt, which equals the number of IDs from `token_ids.token_ids`.

        Raises:
            PictureError: The header of a picture cannot be read.
        """
        given = pictures(prompt)
        rendered = render(prompt, [1] * len(given), self._family)
        starts = [found.start() for found in _SPECIAL.finditer(rendered)]
        texts = [rendered[start:end] for start, end in pairwise((*starts, len(rendered)))]
        with self._lock:
            begin = self._tokenizer[1] - len(given)
            return begin + sum(map(self._text_tokens, texts)) + sum(map(self._count_picture, given))

    def _prompt_limit(self, prompt: Prompt) -> int:
        """Return the prompt's token limit: the window minus the longest answer, but at least half the window."""
        return self.tokens - min(prompt.sampling.max_new_tokens, self.tokens // 2)

    def _count_of_step(self, whole: Prompt, step: int, shorter: Prompt) -> int:
        """Return the token count of `shorter`, a version of `whole` that may lack the oldest turns.

        If the number of questions removed is not a multiple of `step`, return `sys.maxsize` instead.
        """
        return sys.maxsize if (question_count(whole) - question_count(shorter)) % step else self.count(shorter)

    @cachedmethod(attrgetter("_picture_tokens"), key=lambda _, picture: picture.sha256)
    def _count_picture(self, picture: Picture) -> int:
        return self._tiling.count_tokens(*picture_size(picture.data))

    @cached_property
    def _tokenizer(self) -> tuple[Callable[[str], int], int]:
        """A function that counts the tokens in a text, and the number of tokens in front of every prompt (`<s>`).

        Each text starts with a special token and contains no others. The tokenizer's files are looked up in the
        same order as in `internvl2.tokenizer`.
        """
        from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers  # type: ignore[import-untyped]

        whole, pieces = self._directory / "tokenizer.json", self._directory / "tokenizer.model"
        if has_llama_tokenizer(self._directory):
            return _llama_counter(self._directory)
        if whole.is_file():
            tokenizer = Tokenizer.from_file(str(whole))
            tokenizer.no_truncation()
            tokenizer.no_padding()
            begin = len(tokenizer.encode("").ids)
            return lambda text: len(tokenizer.encode(text, add_special_tokens=False)), begin
        if pieces.is_file():
            from sentencepiece import SentencePieceProcessor

            processor: Any = SentencePieceProcessor(model_file=str(pieces))
            return lambda text: 1 + len(processor.encode(_after_special(text))), 1
        bpe = Tokenizer(models.BPE.from_file(*(str(self._directory / name) for name in BPE_FILES)))
        bpe.normalizer = normalizers.NFC()
        bpe.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_WORDS), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        return lambda text: 1 + len(bpe.encode(_after_special(text))), 0


def _after_special(text: str) -> str:
    """Return the part of `text` after the special token at its start."""
    return _SPECIAL.sub("", text, count=1)


def _llama_counter(directory: Path) -> tuple[Callable[[str], int], int]:
    """Return a token counter and the number of leading tokens for a slow LlamaTokenizer, as in `Window._tokenizer`.

    Whitespace after some special tokens (`rstrip`) is dropped. In legacy mode, which is the default,
    SentencePiece puts a space in front of any text that follows a special token (transformers 4.57.6,
    models/llama/tokenization_llama.py).
    """
    from sentencepiece import SentencePieceProcessor

    processor: Any = SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    config = json.loads((directory / "tokenizer_config.json").read_bytes())
    added = (config.get("added_tokens_decoder") or {}).values()
    stripping = tuple(token["content"] for token in added if token.get("rstrip"))
    # No piece contains a line break, so a leading line break keeps SentencePiece from adding the legacy mode's space.
    barrier = "\n" if config.get("legacy") is False else ""
    extra = len(processor.encode(barrier)) - 1

    def count(text: str) -> int:
        rest = _after_special(text)
        if text.startswith(stripping):
            rest = rest.lstrip()
        return len(processor.encode(barrier + rest)) - extra

    return count, int(config.get("add_bos_token", True))


def window_of(directory: Path, settings: InferenceSettings, *, ours: bool, longest: int | None = None) -> Window | None:
    """Return the context window of an engine, or None if the window cannot be determined.

    The window cannot be determined if `directory` contains no checkpoint, or if the engine is an external
    server whose model is not set in `inference.model`.

    Args:
        directory: The model's checkpoint.
        settings: The settings for inference.
        ours: Whether the bot starts the engine; if not, the engine is an external server.
        longest: The engine's own limit in tokens, if the engine reports one.
    """
    if not ours and settings.model == TINY:
        return None
    with suppress(OSError, ValueError, KeyError, TypeError):
        return Window(directory, tiles=settings.tiles, longest=longest)
    return None
