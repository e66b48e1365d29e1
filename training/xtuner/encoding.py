"""Training examples as token IDs, labels and tiles, exactly as the engines compute them for the same conversation.

The text comes from `inference.chat_format.template` and is tokenized as in an engine: first the whole
prompt, then the answer. The trainer's dataset, the validation of rows and the evaluation use this
module. It requires transformers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inference.chat_format.template import pictures, render, render_answer
from inference.chat_format.token_ids import token_ids
from inference.images.opening import open_picture
from inference.internvl2.configuration_internvl2 import InternVLChatConfig
from inference.internvl2.families import family_of
from inference.internvl2.tile_grid import Tiling
from inference.internvl2.tiles import pixel_values, tiles
from inference.internvl2.tokenizer import load_tokenizer
from inference.messages import Role
from training.data.llava import Lesson
from training.data.row_parser import RowError

if TYPE_CHECKING:
    import torch

IGNORE_INDEX = -100
"""The label of a token that does not contribute to the loss: the default `ignore_index` of PyTorch's cross entropy."""


class TooLong(RowError):
    """An otherwise valid row has more tokens than training accepts."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """The token IDs of a whole conversation, and its labels.

    `labels[i]` is either `input_ids[i]` or `IGNORE_INDEX`; the loss function shifts the labels by one.
    """

    input_ids: list[int]
    labels: list[int]


def load_tiles(path: Path, tiling: Tiling) -> torch.Tensor:
    """Return the tiles of a picture file, [T, 3, side, side] float32.

    Raises:
        PictureError: The picture cannot be decoded.
        OSError: The file cannot be read.
    """
    return pixel_values(tiles(open_picture(path.read_bytes()), tiling))


class Encoder:
    """An encoder of lessons, with the tokenizer and the tiling of a checkpoint directory.

    `feature_width` is the width of a picture feature before the projector.
    """

    def __init__(self, directory: Path, *, tiles: int = 0) -> None:
        self.tokenizer: Any = load_tokenizer(directory)
        self._picture_token = self.tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        self.family = family_of(config)
        self.tiling = Tiling.from_config(config, tiles)
        self._short_length = InternVLChatConfig.from_dict(config).short_length
        self.feature_width = int(config["vision_config"]["hidden_size"] / config["downsample_ratio"] ** 2)

    def prompt_ids(self, lesson: Lesson, until: int | None = None) -> list[int]:
        """Return the token IDs of an engine's prompt for the answer in turn `until` (by default, the last)."""
        prompt = lesson.prompt_of(len(lesson.turns) - 1 if until is None else until)
        sizes = lesson.sizes[: len(pictures(prompt))]
        return token_ids(prompt, [self.tiling.count_tokens(*size) for size in sizes], self.tokenizer, self.family)[0]

    def encode(self, lesson: Lesson) -> Encoded:
        """Encode the whole conversation.

        The labels cover the answers marked in `learned`, including their end tokens. Up to the last answer,
        the token IDs are those of `prompt_ids`, so that the model is trained on the answer after the same
        token IDs that an engine will give it.
        """
        last = len(lesson.turns) - 1
        input_ids = self.prompt_ids(lesson)
        labels = [IGNORE_INDEX] * len(input_ids)
        for index, (turn, learned) in enumerate(zip(lesson.turns, lesson.learned, strict=True)):
            if turn.role is Role.USER or not (learned or index == last):
                continue
            answer = self._answer_ids(lesson, index)
            if index == last:
                input_ids += answer
                labels += answer if learned else [IGNORE_INDEX] * len(answer)
                continue
            start = self.prompt_ids(lesson, index)
            if input_ids[: len(start) + len(answer)] != start + answer:
                raise RowError(
                    f"{lesson.name}: the answer in turn {index + 1} is tokenized differently when later turns follow"
                )
            labels[len(start) : len(start) + len(answer)] = answer
        return Encoded(input_ids, labels)

    def check(self, lesson: Lesson, max_length: int, *, where: str) -> Encoded:
        """Encode a lesson, and reject anything that XTuner would silently train on incorrectly.

        Args:
            lesson: The lesson, with the sizes of its pictures.
            max_length: The maximum number of tokens.
            where: The name of the row in error messages.

        Raises:
            TooLong: The lesson has more than `max_length` tokens.
            RowError: The lesson cannot be trained on.
        """
        encoded = self.encode(lesson)
        if len(encoded.input_ids) > max_length:
            raise TooLong(
                f"{where}: {len(encoded.input_ids)} tokens including its pictures, more than max_length {max_length}: "
                "raise it, or leave the row out"
            )
        if all(label == IGNORE_INDEX for label in encoded.labels):
            raise RowError(f"{where}: there is no token to train on")
        placeholders = encoded.input_ids.count(self._picture_token)
        features = sum(self.tiling.count_tokens(*size) for size in lesson.sizes)
        if placeholders != features:
            raise RowError(f"{where}: {placeholders} picture tokens in the text for {features} picture features")
        return encoded

    def is_long(self, encoded: Encoded) -> bool:
        """Return whether the model computes the conversation with the rotary factors for long ones (Phi-3)."""
        return self._short_length is not None and len(encoded.input_ids) > self._short_length

    def pictures_end(self, encoded: Encoded) -> int:
        """Return the number of tokens up to the end of the last picture, or 0 if there are no pictures."""
        ids = encoded.input_ids
        return len(ids) - ids[::-1].index(self._picture_token) if self._picture_token in ids else 0

    def pixel_values(self, pictures: Sequence[str], images: Path) -> torch.Tensor | None:
        """Return the tiles of pictures in the folder `images` in order, [T, 3, side, side] float32.

        If there are no pictures, return None.
        """
        import torch

        loaded = [load_tiles(images / file, self.tiling) for file in pictures]
        return torch.cat(loaded) if loaded else None

    def _answer_ids(self, lesson: Lesson, index: int) -> list[int]:
        """Return the token IDs of the answer in turn `index` and its end token, tokenized as in an engine."""
        prompt = lesson.prompt_of(index)
        text = render(prompt, [1] * len(pictures(prompt)), self.family)
        answer = render_answer(lesson.turns[index].text, self.family)
        before, whole = self.tokenizer(text).input_ids, self.tokenizer(text + answer).input_ids
        if whole[: len(before)] == before:
            return list(whole[len(before) :])
        return list(self.tokenizer(answer, add_special_tokens=False).input_ids)
