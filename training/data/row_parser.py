"""Read rows of LLaVA JSON (`training.data.llava`) written by this package or by other programs.

Every row is validated before training, because XTuner replaces a broken sample with a random one, moves
and truncates picture tokens with no more than a warning, and accepts only one picture per row (xtuner
0.2.0, dataset/internvl_dataset.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Final

from inference.chat_format.template import PLACE, special_literal
from inference.images.opening import open_picture
from inference.messages import Picture, PictureError, Role, Turn
from training.data.llava import Lesson, Rejected, image_files
from training.job import TrainingError

_TAG: Final = re.compile(rf"(?:Image-\d+: ?)?{re.escape(PLACE)}")


class RowError(TrainingError):
    """A row is invalid; the error message names the file and the row."""


def parse_row(row: Any, *, where: str, system: str) -> Lesson:
    """Parse a row that was written by this package or by another program.

    Pictures are moved to the front of the turn that has their tag, as in the data that InternVL2 was trained
    on. Special tokens in a text are an error: `row` breaks them up in this package's rows, and rows from
    other programs must not be changed.

    Args:
        row: The row, or the error that `read_rows` yielded instead of a row.
        where: The name of the row in error messages.
        system: The system prompt for a row without one.

    Raises:
        RowError: The row is invalid.
    """
    if isinstance(row, RowError):
        raise RowError(f"{where}: {row}")
    if not isinstance(row, dict):
        raise RowError(f"{where}: a row must be a JSON object")
    files = image_files(row)
    if not isinstance(files, list) or not all(isinstance(each, str) and each for each in files):
        raise RowError(f"{where}: image must be a file name or a list of file names")
    conversation = row.get("conversations")
    if not isinstance(conversation, list) or not conversation:
        raise RowError(f"{where}: conversations is missing or empty")
    turns, learned = _parse_turns(conversation, files, where)
    if turns[-1].role is not Role.ASSISTANT:
        raise RowError(f"{where}: the conversation must end with an answer")
    if not any(learned):
        raise RowError(f"{where}: there is no answer to train on (every loss is false)")
    system = row.get("system", system)
    if not isinstance(system, str):
        raise RowError(f"{where}: system must be a string")
    if "system" in row:
        system = _plain(system, f"{where}: system")
    if not isinstance(liked := row.get("liked", True), bool):
        raise RowError(f"{where}: liked must be true or false, not {liked!r}")
    return Lesson(
        str(row.get("id", where)),
        system,
        tuple(turns),
        tuple(learned),
        liked=liked,
        rejected=_parse_rejected(row["rejected"], f"{where}: rejected") if "rejected" in row else None,
    )


def _parse_rejected(value: Any, where: str) -> Rejected:
    if not isinstance(value, dict) or not isinstance(text := value.get("value"), str) or not text.strip():
        raise RowError(f"{where} must have an answer as its value")
    return Rejected(str(value.get("id", "")), _plain(text, where))


def _parse_turns(conversation: list[Any], files: list[str], where: str) -> tuple[list[Turn], list[bool]]:
    """Return the turns with their pictures and, for each turn, whether it contributes to the loss."""
    left = iter(files)
    turns: list[Turn] = []
    learned: list[bool] = []
    for number, each in enumerate(conversation, 1):
        speaker, value = (each.get("from"), each.get("value")) if isinstance(each, dict) else (None, None)
        wanted = "human" if len(turns) % 2 == 0 else "gpt"
        if speaker != wanted or not isinstance(value, str):
            raise RowError(f"{where}: turn {number} must be from {wanted!r} and have a string as its value")
        turn = f"{where}: turn {number}"
        if speaker == "gpt":
            if not value.strip():
                raise RowError(f"{turn}: the answer is empty, so there is nothing to learn")
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
    return turns, learned


def _plain(text: str, where: str) -> str:
    """Strip leading and trailing white space from a text.

    Raises:
        RowError: The text contains a special token or is not valid Unicode.
    """
    if literal := special_literal(text):
        raise RowError(f"{where}: {literal!r} would be read as a special token: rewrite it or leave it out")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RowError(f"{where}: a lone surrogate (half a character) at {error.start}: correct the text") from error
    return text.strip()


def _without_tags(value: str) -> str:
    """Remove the picture tags from a question, because a prompt has all tags at the start of each turn.

    A line that has only tags is removed. If a line refers to one of several pictures ("Is <image> above
    <image>?"), each tag in it is replaced with the name of the picture in the prompt, such as "Image-1".
    """
    several, number = value.count(PLACE) > 1, 0
    lines = []
    for line in value.split("\n"):
        pieces = _TAG.split(line)
        if len(pieces) > 1 and not "".join(pieces).strip():
            number += len(pieces) - 1
            continue
        text = pieces[0]
        for index, piece in enumerate(pieces[1:], 1):
            number += 1
            inside = "".join(pieces[:index]).strip() and "".join(pieces[index:]).strip()
            text += f"Image-{number}{piece}" if several and inside else piece
        lines.append(text)
    return "\n".join(lines)


def open_question(picture: str, question: str, system: str, images: Path) -> Lesson:
    """Return a question about a picture file as a conversation with an empty answer.

    Raises:
        RowError: The picture is missing or broken.
    """
    turns = (Turn(Role.USER, question, (Picture(b"", picture),)), Turn(Role.ASSISTANT, ""))
    return check_pictures(
        Lesson(picture, system, turns, (False, False)), images, where=f"{images}: the question {question!r}"
    )


def _size_of(picture: Path) -> tuple[int, int]:
    return open_picture(picture.read_bytes()).size


def check_pictures(
    lesson: Lesson, images: Path, *, where: str, size_of: Callable[[Path], tuple[int, int]] = _size_of
) -> Lesson:
    """Decode every picture of the lesson with `size_of`, and return the lesson with `sizes` set.

    Raises:
        RowError: A picture is missing or broken.
    """
    sizes = []
    for file in lesson.pictures:
        path = images / file
        try:
            sizes.append(size_of(path))
        except FileNotFoundError as error:
            raise RowError(f"{where}: the picture {path} is missing: restore it from a backup") from error
        except (OSError, PictureError) as error:
            raise RowError(f"{where}: the picture {path}: {error}") from error
    return replace(lesson, sizes=tuple(sizes))


def read_lessons(file: Path, images: Path, *, system: str) -> Iterator[Lesson]:
    """Yield the lessons of a LLaVA file after checking their pictures, each of which is decoded once.

    Raises:
        RowError: A row is invalid; reading stops at the first invalid row.
    """
    size_of = cache(_size_of)
    for number, each in read_rows(file):
        where = f"{file} row {number}"
        yield check_pictures(parse_row(each, where=where, system=system), images, where=where, size_of=size_of)


def read_rows(file: Path) -> Iterator[tuple[int, Any]]:
    """Yield the rows of a LLaVA file with their numbers, counted from 1.

    The file is a JSON list or, with the suffix .jsonl, has one JSON object per line. A .jsonl file is read
    line by line, and its row numbers are line numbers. A line that is not JSON is yielded as a `RowError`,
    since valid lines may follow.

    Raises:
        RowError: The file cannot be read.
    """
    try:
        # Some editors write a byte order mark (U+FEFF).
        with file.open(encoding="utf-8-sig") as lines:
            if file.suffix == ".jsonl":
                for number, line in enumerate(lines, 1):
                    if line.strip():
                        yield number, _parse_json(line)
                return
            rows = _parse_json(lines.read())
    except (OSError, UnicodeDecodeError) as error:
        raise RowError(f"{file}: cannot be read: {error}") from error
    if isinstance(rows, RowError):
        raise RowError(f"{file}: {rows}; the name of a file with one object per line must end in .jsonl")
    if not isinstance(rows, list):
        raise RowError(f"{file}: must be a list of rows")
    yield from enumerate(rows, 1)


def _parse_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        return RowError(f"is not JSON: {error}")
