"""Conversations as rows of LLaVA JSON, and back: the one format that the trainer, the evaluation and export share.

A row::

    {"id": "exchange-12", "system": "…", "image": ["ab/ab12….jpg"], "image_wh": [[640, 480]],
     "conversations": [{"from": "human", "value": "<image>\\nWhat is this?"},
                       {"from": "gpt", "value": "A cup.", "loss": false},
                       {"from": "human", "value": "Which colour?"},
                       {"from": "gpt", "value": "Red!", "loss": true}]}

`conversations` and `image` are LLaVA's own; `system`, `image_wh` (width, height) and `loss` are additions that other
readers skip. Only turns with `loss` are learned (absent counts as true): an answer that nobody liked stands in the
history of a liked one without being taught. Every row is checked before anything is trained, because XTuner puts a
random other sample in place of a broken one, moves and cuts picture tokens with a warning at most, and accepts one
picture a row (xtuner 0.2.0, dataset/internvl_dataset.py).

Knows no tokens (`encoding` counts those) and no torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from inference.chat_format.template import PLACE, harmless, special_literal, system_text, user_text
from inference.images.opening import open_picture
from inference.messages import Picture, PictureError, Prompt, Role, Turn
from storage.records import RatedExchange
from training.data.seen_prompt import as_seen
from training.job import TrainingError
from training.whole import write_whole

_TAG: Final = re.compile(rf"(?:Image-\d+: ?)?{re.escape(PLACE)}")


class RowError(TrainingError):
    """A row would not teach what it says. The text names the file and the row."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """A conversation that ends with an answer, as training and evaluation read it.

    Its pictures have no bytes, only a name in place of their digest: the sha256 of a stored picture, or in a file's
    row the file relative to the pictures' folder. `learned` tells for each turn whether its text is to be learned;
    `sizes` are (width, height) in pixels, once they are known.
    """

    name: str
    system: str
    turns: tuple[Turn, ...]
    learned: tuple[bool, ...]
    sizes: tuple[tuple[int, int], ...] = ()

    @property
    def pictures(self) -> tuple[str, ...]:
        """The names of all pictures in the order in which the model reads them."""
        return tuple(picture.sha256 for turn in self.turns for picture in turn.pictures)

    @property
    def subject(self) -> tuple[str, ...]:
        """The names of the newest turn's pictures that has any: what the answer is about."""
        return next((tuple(each.sha256 for each in turn.pictures) for turn in self.turns[::-1] if turn.pictures), ())

    def about_subject(self) -> Lesson:
        """The conversation from the turn that brought its subject, without what was said before."""
        start = max((place for place, turn in enumerate(self.turns) if turn.pictures), default=0)
        known = self.sizes[len(self.sizes) - len(self.subject) :]
        return replace(self, turns=self.turns[start:], learned=self.learned[start:], sizes=known)

    def prompt_of(self, index: int) -> Prompt:
        """Return the prompt of the answer in turn `index`."""
        return Prompt(self.system, self.turns[:index], chat=self.name)

    @property
    def prompt(self) -> Prompt:
        """The prompt of the last answer."""
        return self.prompt_of(len(self.turns) - 1)


def lesson(rated: RatedExchange) -> Lesson:
    """The lesson of a liked exchange: its history as the model saw it, and its answer as the one thing to learn."""
    exchange = rated.exchange
    prompt = as_seen(rated)
    return Lesson(
        row_name(exchange.id),
        exchange.system,
        (*prompt.turns, Turn(Role.ASSISTANT, exchange.answer)),
        (*(False for _ in prompt.turns), True),
    )


def row(lesson: Lesson, file_of: Callable[[str], str] = str) -> dict[str, Any]:
    """The lesson as a LLaVA row; `file_of` gives a picture's file for its name.

    User texts are made harmless, so that a typed `<image>` stays text.
    """
    written: dict[str, Any] = {"id": lesson.name, "system": system_text(lesson.system)}
    files = [file_of(name) for name in lesson.pictures]
    if files:
        written["image"] = files[0] if len(files) == 1 else files
    if lesson.sizes:
        written["image_wh"] = [list(size) for size in lesson.sizes]
    written["conversations"] = [
        {"from": "human", "value": user_text(turn)}
        if turn.role is Role.USER
        else {"from": "gpt", "value": harmless(turn.text).strip(), "loss": learned}
        for turn, learned in zip(lesson.turns, lesson.learned, strict=True)
    ]
    return written


def parse_row(row: Any, *, where: str, system: str) -> Lesson:
    """Read a row, ours or foreign. `system` is the persona of rows that name none; `where` names it in errors.

    Pictures move to the front of the turn that has their tag, as InternVL2 was trained. Raises `RowError`, also for a
    special token in a text: in our own rows there is none, `row` breaks them; in others it is not ours to change.
    """
    if isinstance(row, RowError):
        raise RowError(f"{where}: {row}")
    if not isinstance(row, dict):
        raise RowError(f"{where}: a row must be a JSON object")
    files = row.get("image") or []
    files = [files] if isinstance(files, str) else files
    if not isinstance(files, list) or not all(isinstance(each, str) and each for each in files):
        raise RowError(f"{where}: image must be a file name or a list of them")
    left = iter(files)
    said = row.get("conversations")
    if not isinstance(said, list) or not said:
        raise RowError(f"{where}: conversations is missing or empty")
    turns: list[Turn] = []
    learned: list[bool] = []
    for number, each in enumerate(said, 1):
        speaker, value = (each.get("from"), each.get("value")) if isinstance(each, dict) else (None, None)
        wanted = "human" if len(turns) % 2 == 0 else "gpt"
        if speaker != wanted or not isinstance(value, str):
            raise RowError(f"{where}: turn {number} must be from {wanted!r} and have a text as value")
        turn = f"{where}: turn {number}"
        if speaker == "gpt":
            if not value.strip():
                raise RowError(f"{turn}: the answer is empty, there is nothing to learn")
            turns.append(Turn(Role.ASSISTANT, _plain(value, turn)))
            if not isinstance(each.get("loss", True), bool):
                raise RowError(f"{turn}: loss must be true or false, not {each['loss']!r}")
            learned.append(each.get("loss", True))
            continue
        pictures = tuple(Picture(b"", file) for _, file in zip(_TAG.findall(value), left, strict=False))
        if len(pictures) != value.count(PLACE):
            raise RowError(f"{where}: more {PLACE} tags than the {len(files)} pictures in image")
        text = _plain(_without_tags(value), turn)
        if not text and not pictures:
            raise RowError(f"{turn}: the question is empty")
        turns.append(Turn(Role.USER, text, pictures))
        learned.append(False)
    over = sum(1 for _ in left)
    if over:
        raise RowError(f"{where}: {len(files)} pictures in image, but only {len(files) - over} {PLACE} tags")
    if turns[-1].role is not Role.ASSISTANT:
        raise RowError(f"{where}: the conversation must end with an answer")
    if not any(learned):
        raise RowError(f"{where}: no answer is to be learned (every loss is false)")
    persona = row.get("system", system)
    if not isinstance(persona, str):
        raise RowError(f"{where}: system must be a text")
    if "system" in row:
        persona = _plain(persona, f"{where}: system")
    return Lesson(str(row.get("id", where)), persona, tuple(turns), tuple(learned))


def _plain(text: str, where: str) -> str:
    """The text without outer white space. Raises `RowError` for what no tokenizer reads as plain text."""
    if literal := special_literal(text):
        raise RowError(f"{where}: {literal!r} would be read as a special token: write it otherwise, or leave it out")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RowError(f"{where}: half of a character (a lone surrogate at {error.start}): mend the text") from error
    return text.strip()


def _without_tags(value: str) -> str:
    """A question's text without its picture tags, whose places are at the front.

    A line of nothing but tags goes whole. Where several pictures are spoken of inside a line ("Is <image> above
    <image>?"), each tag becomes the name that its picture has in the prompt, "Image-1".
    """
    several, number = value.count(PLACE) > 1, 0
    lines = []
    for line in value.split("\n"):
        pieces = _TAG.split(line)
        if len(pieces) > 1 and not "".join(pieces).strip():
            number += len(pieces) - 1
            continue
        text = pieces[0]
        for place, piece in enumerate(pieces[1:], 1):
            number += 1
            inside = "".join(pieces[:place]).strip() and "".join(pieces[place:]).strip()
            text += f"Image-{number}{piece}" if several and inside else piece
        lines.append(text)
    return "\n".join(lines)


def open_question(picture: str, question: str, system: str, images: Path) -> Lesson:
    """A question about a picture file as a conversation whose answer is still open (an empty last turn).

    Raises `RowError` for a picture that is missing or broken.
    """
    asked = Turn(Role.USER, question, (Picture(b"", picture),))
    made = Lesson(picture, system, (asked, Turn(Role.ASSISTANT, "")), (False, False))
    return check_pictures(made, images, where=f"{images}: the question {question!r}")


def check_pictures(lesson: Lesson, images: Path, *, where: str) -> Lesson:
    """Decode every picture of the lesson and note its size. Raises `RowError` for one that is missing or broken."""
    sizes = []
    for file in lesson.pictures:
        path = images / file
        try:
            sizes.append(open_picture(path.read_bytes()).size)
        except FileNotFoundError as error:
            raise RowError(f"{where}: the picture {path} is missing: restore it from a backup") from error
        except (OSError, PictureError) as error:
            raise RowError(f"{where}: the picture {path}: {error}") from error
    return replace(lesson, sizes=tuple(sizes))


def read_lessons(file: Path, images: Path, *, system: str) -> Iterator[Lesson]:
    """The checked lessons of a .json or .jsonl file, pictures decoded once. Raises `RowError` at the first bad row."""
    for number, each in read_rows(file):
        where = f"{file} row {number}"
        yield check_pictures(parse_row(each, where=where, system=system), images, where=where)


def read_rows(file: Path) -> Iterator[tuple[int, Any]]:
    """Each raw row of a LLaVA file with its number from 1: a JSON list, or one JSON object a line (.jsonl).

    Of a .jsonl a row's number is its line's, and one line at a time is in memory; a line that is not JSON comes as a
    `RowError`, since good ones may follow. Raises `RowError` for a file that cannot be read.
    """
    try:
        # Some editors put a mark (U+FEFF) in front of UTF-8.
        with file.open(encoding="utf-8-sig") as lines:
            if file.suffix == ".jsonl":
                for number, line in enumerate(lines, 1):
                    if line.strip():
                        yield number, _parsed(line)
                return
            rows = _parsed(lines.read())
    except (OSError, UnicodeDecodeError) as error:
        raise RowError(f"{file}: cannot be read: {error}") from error
    if isinstance(rows, RowError):
        raise RowError(f"{file}: {rows}; a file with one object a line must be called .jsonl")
    if not isinstance(rows, list):
        raise RowError(f"{file}: must be a list of rows")
    yield from enumerate(rows, 1)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        return RowError(f"is not JSON: {error}")


def row_name(exchange: int) -> str:
    """The id of the row that teaches this exchange's answer."""
    return f"exchange-{exchange}"


def write_rows(lessons: Iterable[Lesson], file: Path, file_of: Callable[[str], str] = str) -> int:
    """Write a LLaVA file (.json or .jsonl by its name), atomically. Returns the number of rows.

    `file_of` gives a picture's file, relative to the pictures' folder, for its name.
    """
    rows = [row(each, file_of) for each in lessons]
    if file.suffix == ".jsonl":
        text = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in rows)
    else:
        text = json.dumps(rows, ensure_ascii=False, indent=1) + "\n"
    write_whole(file, text)
    return len(rows)
