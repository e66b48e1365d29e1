r"""Conversations as rows of LLaVA JSON: the format that the trainer, the evaluation and the export share.

A row::

    {"id": "exchange-12", "system": "…", "image": ["ab/ab12….jpg"], "image_wh": [[640, 480]],
     "conversations": [{"from": "human", "value": "<image>\nWhat is this?"},
                       {"from": "gpt", "value": "A cup.", "loss": false},
                       {"from": "human", "value": "Which colour?"},
                       {"from": "gpt", "value": "Red!", "loss": true}]}

`conversations` and `image` are LLaVA's fields; `system`, `image_wh` (width, height) and `loss` are
additions that other readers ignore. Only answers whose `loss` is true (the default) contribute to the
loss, so a liked answer's history may contain answers without a like. A row with `"liked": false` ends
with a disliked answer, and `"rejected": {"id": "exchange-7", "value": "…"}` is a worse answer to the
same prompt; the setting `training.objective` determines whether these two fields are used.

`training.data.row_parser` reads rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from inference.chat_format.template import harmless, system_text, user_text
from inference.messages import Prompt, Role, Turn
from storage.atomic_files import write_text
from storage.learning_records import RatedExchange
from training.data.seen_prompt import seen_prompt


@dataclass(frozen=True, slots=True)
class Rejected:
    """A worse answer to a lesson's prompt, and the name that a row with the worse answer would have."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Lesson:
    """An example for training or evaluation: a conversation that ends with an answer.

    The pictures have no bytes, and their `sha256` holds a name: the digest of a stored picture, or the file
    that a row names, relative to the picture folder.

    Attributes:
        name: The ID of the row.
        system: The system prompt.
        turns: The turns of the conversation, including the last answer.
        learned: For each turn, whether its text contributes to the loss.
        sizes: The width and height of each picture in pixels; empty until the sizes are known.
        liked: Whether training makes the last answer more likely; with KTO, disliked answers become less
            likely.
        rejected: A worse alternative to the last answer, for DPO.
    """

    name: str
    system: str
    turns: tuple[Turn, ...]
    learned: tuple[bool, ...]
    sizes: tuple[tuple[int, int], ...] = ()
    liked: bool = True
    rejected: Rejected | None = None

    @property
    def pictures(self) -> tuple[str, ...]:
        """The names of all pictures, in the order in which the model reads them."""
        return tuple(picture.sha256 for turn in self.turns for picture in turn.pictures)

    @property
    def subject(self) -> tuple[str, ...]:
        """The names of the pictures that the answer is about: those of the newest turn with pictures."""
        return next((tuple(each.sha256 for each in turn.pictures) for turn in self.turns[::-1] if turn.pictures), ())

    def answered(self, text: str) -> Lesson:
        """Return the conversation with `text` as its last answer, the only text that contributes to the loss."""
        turns = (*self.turns[:-1], replace(self.turns[-1], text=text))
        return replace(self, turns=turns, learned=(*(False for _ in turns[1:]), True))

    def prompt_of(self, index: int) -> Prompt:
        """Return the prompt to which the turn at `index` is the answer."""
        return Prompt(self.system, self.turns[:index], chat=self.name)

    @property
    def prompt(self) -> Prompt:
        """The prompt of the last answer."""
        return self.prompt_of(len(self.turns) - 1)


def lesson(rated: RatedExchange) -> Lesson:
    """Return an exchange as a lesson: its history as the model saw it, and its answer.

    Only the answer contributes to the loss.
    """
    exchange = rated.exchange
    prompt = seen_prompt(rated)
    return Lesson(
        row_name(exchange.id),
        exchange.system,
        (*prompt.turns, Turn(Role.ASSISTANT, exchange.answer)),
        (*(False for _ in prompt.turns), True),
    )


def row(lesson: Lesson, file_of: Callable[[str], str] = str) -> dict[str, Any]:
    """Return the lesson as a LLaVA row; `file_of` maps a picture's name to its file.

    Special tokens in texts are broken up so that a typed `<image>` stays text.
    """
    written: dict[str, Any] = {"id": lesson.name, "system": system_text(lesson.system)}
    if lesson.pictures:
        written["image"] = image_entry([file_of(name) for name in lesson.pictures])
    if lesson.sizes:
        written["image_wh"] = [list(size) for size in lesson.sizes]
    if not lesson.liked:
        written["liked"] = False
    if lesson.rejected is not None:
        written["rejected"] = {"id": lesson.rejected.name, "value": harmless(lesson.rejected.text).strip()}
    written["conversations"] = [
        {"from": "human", "value": user_text(turn)}
        if turn.role is Role.USER
        else {"from": "gpt", "value": harmless(turn.text).strip(), "loss": learned}
        for turn, learned in zip(lesson.turns, lesson.learned, strict=True)
    ]
    return written


def image_entry(files: Sequence[str]) -> str | Sequence[str]:
    """Return the value of a row's `image` field: the file name itself if there is only one, otherwise `files`."""
    return files[0] if len(files) == 1 else files


def image_files(row: dict[str, Any]) -> list[str]:
    """Return the files named in a row's `image` field, which may be absent, a single name or a list of names."""
    files: str | list[str] = row.get("image") or []
    return [files] if isinstance(files, str) else files


def row_name(exchange: int) -> str:
    """Return the ID of the row that holds an exchange's answer."""
    return f"exchange-{exchange}"


def write_rows(lessons: Iterable[Lesson], file: Path, file_of: Callable[[str], str] = str) -> None:
    """Write a LLaVA file (.json) atomically.

    `file_of` takes the name of a picture and returns the path of its file, relative to the picture folder.
    """
    rows = [row(each, file_of) for each in lessons]
    write_text(file, json.dumps(rows, ensure_ascii=False, indent=1) + "\n")
