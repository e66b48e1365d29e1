"""What people taught, as a folder for other trainers.

    llava.json   the liked answers, as they are selected for training (LLaVA; pictures relative to the folder)
    kto.jsonl    every rated answer with its thumb: `prompt`, `completion`, `label`, `images`
    dpo.jsonl    two answers to one prompt, the liked and the other: `prompt`, `chosen`, `rejected`, `images`
    pictures/    their pictures

`kto.jsonl` is TRL's unpaired preference format and `dpo.jsonl` its paired one, conversational, with images
(https://huggingface.co/docs/trl/dataset_formats): messages of typed parts, pictures named in `images` in the order of
their places. Knows rows and files; which answers there are is the ledger's and the selection's. Nobody is named.
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
from storage.records import Preference, RatedExchange
from training.data.llava import Lesson, lesson, write_rows
from training.data.selection import Pair, finished, liked
from training.job import TrainingError

LLAVA: Final = "llava.json"
KTO: Final = "kto.jsonl"
DPO: Final = "dpo.jsonl"
PICTURES: Final = "pictures"


@dataclass(frozen=True, slots=True)
class Exported:
    """How much an export has: LLaVA rows, thumbs up and down among the KTO rows, DPO rows, picture files."""

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
    """Make the folder `out`, whole or not at all.

    `stored` gives a picture's file for its sha256, `types` its media type. In the KTO rows an answer counts as
    disliked when its thumbs down less its thumbs up exceed `threshold`. Raises `TrainingError`.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise TrainingError(f"{out} holds something: name a folder that does not exist yet")
    judged = verdicts(rated, threshold)
    pairs = [(lesson(each.chosen), each.rejected) for each in preferences]
    said = (*(pair.lesson for pair in chosen), *(each for each, _ in judged), *(each for each, _ in pairs))
    names = {name for each in said for name in each.pictures}

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
        rows = [kto_row(said, good, file_of) for said, good in judged]
        _write(part / KTO, rows)
        _write(part / DPO, [dpo_row(good, other, file_of) for good, other in pairs])
        if out.exists():
            out.rmdir()
        part.rename(out)
    except OSError as error:
        raise TrainingError(f"{out} cannot be written: {error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    ups = sum(good for _, good in judged)
    return Exported(len(chosen), ups, len(judged) - ups, len(pairs), len(names))


def verdicts(rated: Sequence[RatedExchange], threshold: int) -> list[tuple[Lesson, bool]]:
    """Each finished answer that is clearly liked (True) or disliked (False); better answers people gave are liked."""
    good = {each.exchange.id for each in liked(rated, threshold)}
    return [
        (lesson(each), each.exchange.id in good)
        for each in finished(rated)
        if each.exchange.id in good or each.downs - each.ups > threshold
    ]


def kto_row(said: Lesson, good: bool, file_of: Callable[[str], str]) -> dict[str, Any]:
    """One row of TRL's unpaired preference format; special tokens in texts are broken, as in all training data."""
    prompt, answer = _asked(said)
    return {"prompt": prompt, "completion": [answer], "label": good, "images": _images(said, file_of)}


def dpo_row(said: Lesson, rejected: str, file_of: Callable[[str], str]) -> dict[str, Any]:
    """One row of TRL's paired preference format: the lesson's answer is the one that is liked more."""
    prompt, answer = _asked(said)
    other = _message("assistant", Turn(Role.ASSISTANT, rejected))
    return {"prompt": prompt, "chosen": [answer], "rejected": [other], "images": _images(said, file_of)}


def _asked(said: Lesson) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The messages before the answer, the system's first, and the answer."""
    *before, answer = said.turns
    prompt = [_message("system", Turn(Role.USER, system_text(said.system)))]
    return prompt + [_message(turn.role.value, turn) for turn in before], _message("assistant", answer)


def _images(said: Lesson, file_of: Callable[[str], str]) -> list[str]:
    return [file_of(name) for name in said.pictures]


def _write(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _message(role: str, turn: Turn) -> dict[str, Any]:
    places: list[dict[str, str]] = [{"type": "image"} for _ in turn.pictures]
    text = harmless(turn.text).strip()
    # Always a list, text alone too: readers of JSON lines want one type for a field.
    return {"role": role, "content": [*places, {"type": "text", "text": text}]}
