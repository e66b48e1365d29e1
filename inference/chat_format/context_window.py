"""How many tokens a prompt has for one model, and what of a conversation fits the engine's window.

Knows a checkpoint by its configuration and tokenizer files alone: no weights, no code of the checkpoint, neither torch
nor transformers, so that the bot's process can count. What is cut is prompt.py's to say.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property, lru_cache, partial
from pathlib import Path
from threading import Lock
from typing import Any, Final

from cachetools import LRUCache

from inference.chat_format.template import (
    IM_END,
    IM_START,
    IMG_CONTEXT,
    IMG_END,
    IMG_START,
    fit,
    pictures,
    render,
    upper_bound,
)
from inference.images.opening import picture_size
from inference.internvl2.grids import count_tiles
from inference.messages import Picture, Prompt, PromptTooLong, Role
from inference.settings import TINY, InferenceSettings

_SPECIAL: Final = re.compile("|".join(map(re.escape, (IM_START, IM_END, IMG_START, IMG_END, IMG_CONTEXT))))

_STEP: Final = 4
"""A long history is cut by so many questions at a time, so that the prompt's beginning, and with it the engine's
cache, stays the same for the next questions."""

_TOKENIZERS: Final = ("tokenizer.json", "tokenizer.model")
"""The first one that is there counts, as in internvl2/tokenizer.py."""

_TEXTS: Final = 4096
_PICTURES: Final = 4096


class Window:
    """The window of an engine with the model in `directory`, in tokens: the model's, or `longest` where that is less.

    `tiles` are the most tiles of a picture, None as the checkpoint says. May be used from several threads. Raises
    OSError, ValueError, KeyError or TypeError where the directory holds no configuration of an InternVL2.
    """

    def __init__(self, directory: Path, *, tiles: int | None = None, longest: int | None = None) -> None:
        config = json.loads((directory / "config.json").read_bytes())
        vision = config["vision_config"]
        side = config.get("force_image_size") or vision["image_size"]
        most = tiles or (config["max_dynamic_patch"] if config["dynamic_image_size"] else 1)
        self.tokens: int = min(config["llm_config"]["max_position_embeddings"], longest or sys.maxsize)
        self._files = [path for name in _TOKENIZERS if (path := directory / name).is_file()]
        if not self._files:
            raise FileNotFoundError(f"{directory} holds none of {', '.join(_TOKENIZERS)}")
        self._tile_tokens = int((side // vision["patch_size"]) ** 2 * config["downsample_ratio"] ** 2)
        self._most_tokens = (most + 1) * self._tile_tokens
        self._tiles = partial(
            count_tiles,
            image_size=side,
            min_num=min(config["min_dynamic_patch"], most),
            max_num=most,
            use_thumbnail=config["use_thumbnail"],
        )
        self._lock = Lock()
        self._text_tokens = lru_cache(_TEXTS)(lambda text: self._tokenise(text))
        self._picture_tokens: LRUCache[str, int] = LRUCache(_PICTURES)

    def surely_holds(self, prompt: Prompt) -> bool:
        """Whether the prompt fits however its text is tokenised and its pictures are shaped. Quick; opens no file."""
        return upper_bound(prompt, self._most_tokens) <= self._room(prompt)

    def fit(self, prompt: Prompt) -> Prompt:
        """The prompt, its oldest questions left out where it must be, with room for the answer; see `prompt.fit`.

        The newest question is left room for a shorter answer rather than refused. Raises PromptTooLong when there is
        none at all, and PictureError. Loads the tokenizer the first time.
        """
        if self.surely_holds(prompt):
            return prompt
        for room, step in ((self._room(prompt), _STEP), (self._room(prompt), 1)):
            with suppress(PromptTooLong):
                return fit(prompt, room, partial(self._count_of_step, prompt, step))
        return fit(prompt, self.tokens - 1, self.count)

    def count(self, prompt: Prompt) -> int:
        """The length of `token_ids.token_ids`. Raises PictureError for a picture whose header cannot be read."""
        shown = pictures(prompt)
        rendered = render(prompt, [1] * len(shown))
        texts = [text for text in _SPECIAL.split(rendered) if text]
        with self._lock:
            special = 1 + len(_SPECIAL.findall(rendered)) - len(shown)
            return special + sum(map(self._text_tokens, texts)) + sum(map(self._tokens_of, shown))

    def _room(self, prompt: Prompt) -> int:
        """What the prompt may take: at least half of the window, however long the answer may be."""
        return self.tokens - min(prompt.sampling.max_new_tokens, self.tokens // 2)

    def _count_of_step(self, whole: Prompt, step: int, shorter: Prompt) -> int:
        """`count` where a multiple of `step` questions is left out, else more than any window."""
        return sys.maxsize if (_questions(whole) - _questions(shorter)) % step else self.count(shorter)

    def _tokens_of(self, picture: Picture) -> int:
        tokens = self._picture_tokens.get(picture.sha256)
        if tokens is None:
            tokens = self._tiles(*picture_size(picture.data)) * self._tile_tokens
            self._picture_tokens[picture.sha256] = tokens
        return tokens

    @cached_property
    def _tokenise(self) -> Callable[[str], int]:
        """Counts the tokens of a text that follows a special token and holds none."""
        file = self._files[0]
        if file.suffix == ".json":
            from tokenizers import Tokenizer  # type: ignore[import-untyped]

            tokenizer = Tokenizer.from_file(str(file))
            tokenizer.no_truncation()
            tokenizer.no_padding()
            return lambda text: len(tokenizer.encode(IM_END + text, add_special_tokens=False)) - 1
        from sentencepiece import SentencePieceProcessor

        processor: Any = SentencePieceProcessor(model_file=str(file))
        return lambda text: len(processor.encode(text))


def window_of(directory: Path, settings: InferenceSettings, *, ours: bool, longest: int | None = None) -> Window | None:
    """The window of an engine started with these settings (`ours`), or of an external one that serves the directory.

    `longest` is what the engine says that it holds. None where nothing can be counted: the directory holds no
    checkpoint, or the external server's model is not named in `inference.model`.
    """
    if not ours and settings.model == TINY:
        return None
    with suppress(OSError, ValueError, KeyError, TypeError):
        return Window(directory, tiles=settings.tiles, longest=longest)
    return None


def _questions(prompt: Prompt) -> int:
    return sum(turn.role is Role.USER for turn in prompt.turns)
