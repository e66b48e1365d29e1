"""A lesson as token ids and labels, and as tiles: exactly what the engines see for the same conversation.

The text comes from `inference.chat_format.template` alone and is tokenised as an engine does it: the prompt whole, then
the answer. Used by the trainer's dataset, the checks before training and the evaluation. Needs transformers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inference.chat_format.template import pictures, render, render_answer
from inference.chat_format.token_ids import token_ids
from inference.images.opening import open_picture
from inference.internvl2.grids import count_tiles
from inference.internvl2.tiles import pixel_values, tiles
from inference.internvl2.tokenizer import load_tokenizer
from inference.messages import Prompt, Role
from training.data.llava import Lesson, RowError

if TYPE_CHECKING:
    import torch

UNLEARNED = -100
"""The label of a token that is read and not learned (PyTorch's cross entropy ignores it)."""


class TooLong(RowError):
    """A row is whole, and has more tokens than a training takes."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of a whole conversation and, position by position, what is learned of it (`UNLEARNED` elsewhere).

    `labels[i]` is `input_ids[i]` or `UNLEARNED`; the shift by one is the loss's business.
    """

    input_ids: list[int]
    labels: list[int]


@dataclass(frozen=True, slots=True)
class Sight:
    """How a checkpoint cuts pictures into tiles; sides in pixels.

    A tile becomes `tokens` features of `width` numbers before the projector.
    """

    side: int
    tokens: int
    width: int
    least: int
    most: int
    thumbnail: bool

    @classmethod
    def of(cls, directory: Path, most: int = 0) -> Sight:
        """As the checkpoint's config.json says; `most` above 0 replaces its greatest number of tiles."""
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        side = config.get("force_image_size") or config["vision_config"]["image_size"]
        patches = side // config["vision_config"]["patch_size"]
        most = most or (config["max_dynamic_patch"] if config["dynamic_image_size"] else 1)
        return cls(
            side,
            int(patches**2 * config["downsample_ratio"] ** 2),
            int(config["vision_config"]["hidden_size"] / config["downsample_ratio"] ** 2),
            min(config["min_dynamic_patch"], most),
            most,
            config["use_thumbnail"],
        )

    def count(self, width: int, height: int) -> int:
        """Feature tokens of a picture of that size in pixels."""
        return self.tokens * count_tiles(
            width,
            height,
            image_size=self.side,
            min_num=self.least,
            max_num=self.most,
            use_thumbnail=self.thumbnail,
        )

    def look(self, path: Path) -> torch.Tensor:
        """The tiles of a picture file, [T, 3, side, side] float32. Raises `PictureError`, OSError."""
        cut = tiles(
            open_picture(path.read_bytes()),
            image_size=self.side,
            min_num=self.least,
            max_num=self.most,
            use_thumbnail=self.thumbnail,
        )
        return pixel_values(cut)


class Encoder:
    """The tokenizer and the tiling of one checkpoint directory."""

    def __init__(self, directory: Path, *, tiles: int = 0) -> None:
        self.tokenizer: Any = load_tokenizer(directory)
        self.sight = Sight.of(directory, tiles)

    def prompt_ids(self, lesson: Lesson, until: int | None = None) -> list[int]:
        """What an engine is given before answer number `until` of the turns (the last one by default)."""
        prompt = lesson.asked(len(lesson.turns) - 1 if until is None else until)
        return token_ids(prompt, [self.sight.count(*size) for size in _shown(lesson, prompt)], self.tokenizer)[0]

    def encode(self, lesson: Lesson) -> Encoded:
        """The whole conversation. Learned are the answers with `learned`, each with its end token.

        Up to the last answer the ids are `prompt_ids`, so that what is learned follows the very ids that the
        engine will have before it; an earlier learned answer lies inside them.
        """
        input_ids = self.prompt_ids(lesson)
        labels = [UNLEARNED] * len(input_ids)
        for place, (turn, learned) in enumerate(zip(lesson.turns, lesson.learned, strict=True)):
            if turn.role is Role.USER or not (learned or place == len(lesson.turns) - 1):
                continue
            answer = self._answer_ids(lesson, place)
            if place == len(lesson.turns) - 1:
                input_ids += answer
                labels += answer if learned else [UNLEARNED] * len(answer)
                continue
            start = self.prompt_ids(lesson, place)
            if input_ids[: len(start) + len(answer)] != start + answer:
                raise RowError(f"{lesson.name}: the answer in turn {place + 1} has other tokens as history")
            labels[len(start) : len(start) + len(answer)] = answer
        return Encoded(input_ids, labels)

    def check(self, lesson: Lesson, max_length: int, *, where: str) -> Encoded:
        """Encode and check all that could mistrain in silence. `where` names the row. Raises `RowError`, `TooLong`."""
        encoded = self.encode(lesson)
        if len(encoded.input_ids) > max_length:
            raise TooLong(
                f"{where}: {len(encoded.input_ids)} tokens with its pictures, more than max_length {max_length}: "
                "raise it, or leave the row out"
            )
        if all(label == UNLEARNED for label in encoded.labels):
            raise RowError(f"{where}: no token is to be learned")
        places = encoded.input_ids.count(self.tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"))
        seen = sum(self.sight.count(*size) for size in lesson.sizes)
        if places != seen:
            raise RowError(f"{where}: {places} picture tokens in the text for {seen} picture features")
        return encoded

    def pixel_values(self, lesson: Lesson, images: Path) -> torch.Tensor | None:
        """The tiles of all its pictures in order, [T, 3, side, side] float32; None without pictures."""
        import torch

        looked = [self.sight.look(images / file) for file in lesson.pictures]
        return torch.cat(looked) if looked else None

    def _answer_ids(self, lesson: Lesson, place: int) -> list[int]:
        """The ids of the answer in turn `place` and its end, split from the prompt's where an engine splits them."""
        prompt = lesson.asked(place)
        text = render(prompt, [1] * len(pictures(prompt)))
        answer = render_answer(lesson.turns[place].text)
        before, whole = self.tokenizer(text).input_ids, self.tokenizer(text + answer).input_ids
        if whole[: len(before)] == before:
            return list(whole[len(before) :])
        return list(self.tokenizer(answer, add_special_tokens=False).input_ids)


def _shown(lesson: Lesson, prompt: Prompt) -> tuple[tuple[int, int], ...]:
    """The sizes of the pictures that the prompt, a beginning of the lesson, has."""
    return lesson.sizes[: len(pictures(prompt))]
