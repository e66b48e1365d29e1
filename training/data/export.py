"""Export users' votes, corrections and preferences as a folder for other trainers.

    llava.json   the liked answers selected for training (LLaVA; pictures relative to the folder)
    kto.jsonl    every finished liked or disliked answer: `prompt`, `completion`, `label`
    dpo.jsonl    a preferred and a rejected answer to a prompt: `prompt`, `chosen`, `rejected`
    pictures/    the pictures of all rows
    README.md    a dataset card, with which `datasets.load_dataset(OUT, "kto")` and `"dpo"` open the folder

`kto.jsonl` is in TRL's unpaired preference format and `dpo.jsonl` in its paired one, both conversational
and with images (https://huggingface.co/docs/trl/dataset_formats): messages have typed parts, and
`images_file_names` lists the pictures in the order of their placeholders. The datasets library recognizes
a list of picture files by that field's name, and loads it as the column `images`
(https://huggingface.co/docs/datasets/image_dataset). The export does not name any users.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from inference.chat_format.template import harmless, system_text
from inference.messages import Role, Turn
from storage.atomic_files import PRIVATE
from storage.learning_records import Preference, RatedExchange
from training.data.llava import Lesson, lesson, write_rows
from training.data.rated_lessons import Pair
from training.data.selection import finished, liked_exchanges
from training.job import TrainingError

LLAVA: Final = "llava.json"
KTO: Final = "kto.jsonl"
DPO: Final = "dpo.jsonl"
PICTURES: Final = "pictures"
CARD: Final = "README.md"

_CONFIG: Final = """\
- config_name: {name}
  default: {default}
  data_files: [{file}, {pictures}/*, {pictures}/*]
  metadata_filenames: [{file}]
"""
"""A template for one dataset in the dataset card. The datasets library derives the kind of data from the most frequent
type of file, so the pictures are listed twice to outnumber the one file of rows."""


@dataclass(frozen=True, slots=True)
class Exported:
    """Counts of the LLaVA rows, liked and disliked KTO rows, DPO rows and picture files in an export."""

    liked: int
    ups: int
    downs: int
    pairs: int
    pictures: int


def export(
    out: Path,
    chosen: Sequence[Pair],
    rated: Sequence[RatedExchange],
    preferences: Sequence[Preference],
    *,
    threshold: int,
    stored: Callable[[str], Path],
    types: Mapping[str, str],
) -> Exported:
    """Write the export into the folder `out`, either completely or not at all.

    Args:
        out: A folder that is empty or does not exist.
        chosen: The pairs for the LLaVA file.
        rated: The answers for the KTO file. An answer is disliked if its thumbs down exceed its thumbs up
            by more than `threshold`.
        preferences: The pairs of answers for the DPO file.
        threshold: The setting `training.threshold`.
        stored: A function that returns the file of the picture with a given sha256.
        types: The media type of each picture, by sha256.

    Raises:
        TrainingError: The folder is not empty or cannot be written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise TrainingError(f"{out} is not empty: choose a folder that does not exist yet")
    labelled = label_answers(rated, threshold)
    pairs = [(lesson(each.chosen), each.rejected) for each in preferences]
    lessons = (*(pair.lesson for pair in chosen), *(each for each, _ in labelled), *(each for each, _ in pairs))
    names = {name for each in lessons for name in each.pictures}

    def file_of(name: str) -> str:
        return f"{PICTURES}/{name}.{types.get(name, 'image/jpeg').rpartition('/')[2]}"

    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(mode=PRIVATE, parents=True)
        (part / PICTURES).mkdir()
        for name in sorted(names):
            shutil.copyfile(stored(name), part / file_of(name))
        write_rows((pair.lesson for pair in chosen), part / LLAVA, file_of)
        _write(part / KTO, [kto_row(each, liked, file_of) for each, liked in labelled])
        _write(part / DPO, [dpo_row(each, rejected, file_of) for each, rejected in pairs])
        (part / CARD).write_text(_card({KTO: bool(labelled), DPO: bool(pairs)}), encoding="utf-8")
        if out.exists():
            out.rmdir()
        part.rename(out)
    except OSError as error:
        raise TrainingError(f"{out} cannot be written: {error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    ups = sum(liked for _, liked in labelled)
    return Exported(len(chosen), ups, len(labelled) - ups, len(pairs), len(names))


def label_answers(rated: Sequence[RatedExchange], threshold: int) -> list[tuple[Lesson, bool]]:
    """Return each finished answer that is liked (True) or disliked (False), as a training example.

    Corrections count as liked.
    """
    good = {each.exchange.id for each in liked_exchanges(rated, threshold)}
    return [
        (lesson(each), each.exchange.id in good)
        for each in finished(rated)
        if each.exchange.id in good or each.downs - each.ups > threshold
    ]


def kto_row(lesson: Lesson, liked: bool, file_of: Callable[[str], str]) -> dict[str, Any]:
    """Return the lesson as a row in TRL's unpaired preference format.

    Special tokens in texts are broken up, as in all training data.
    """
    return _row(lesson, file_of, completion=[_message("assistant", lesson.turns[-1])], label=liked)


def dpo_row(lesson: Lesson, rejected: str, file_of: Callable[[str], str]) -> dict[str, Any]:
    """Return a row in TRL's paired preference format, with the lesson's answer as the preferred one."""
    other = _message("assistant", Turn(Role.ASSISTANT, rejected))
    return _row(lesson, file_of, chosen=[_message("assistant", lesson.turns[-1])], rejected=[other])


def _row(lesson: Lesson, file_of: Callable[[str], str], **answers: Any) -> dict[str, Any]:
    """Return an export row: the messages before the answer (system message first), `answers` and the pictures."""
    prompt = [_message("system", Turn(Role.USER, system_text(lesson.system)))]
    prompt += [_message(turn.role.value, turn) for turn in lesson.turns[:-1]]
    return {"prompt": prompt, **answers, "images_file_names": [file_of(name) for name in lesson.pictures]}


def _card(filled: Mapping[str, bool]) -> str:
    """Return a dataset card for the row files that are not empty; the first of these is the default."""
    files = [file for file, rows in filled.items() if rows]
    configs = [
        _CONFIG.format(name=Path(file).stem, default=str(file == files[0]).lower(), file=file, pictures=PICTURES)
        for file in files
    ]
    listed = f"---\nconfigs:\n{''.join(configs)}---\n\n" if configs else ""
    return f"{listed}Votes on answers, from `thumbtune export`. The pictures were sent by users: keep them private.\n"


def _write(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _message(role: str, turn: Turn) -> dict[str, Any]:
    images: list[dict[str, str]] = [{"type": "image"} for _ in turn.pictures]
    text = harmless(turn.text).strip()
    # Always a list, because the datasets library needs one type per field.
    return {"role": role, "content": [*images, {"type": "text", "text": text}]}
