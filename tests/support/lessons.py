"""Helpers for tests of training: rated exchanges, lessons, pictures, and settings for a small machine."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image

from inference.chat_format.template import prompt_hash
from inference.internvl2.tiny import CHECKPOINT
from inference.internvl2.tiny.answer_checks import Manner
from inference.internvl2.tiny.drawing import draw
from inference.internvl2.tiny.held_out_questions import held_out
from inference.internvl2.tiny.shapes import COLOURS, random_scene
from inference.internvl2.tiny.words import Kind
from inference.messages import Picture, Prompt, Role, Turn
from storage.chat_records import Exchange
from storage.learning_records import RatedExchange
from tests.support.ledgers import exchange
from tools.tiny.answers import reference
from training.data.llava import Lesson, write_rows
from training.job import Job
from training.settings import TrainingSettings

KINDS_ASKED: tuple[Kind, ...] = ("colour", "shape")
SYSTEM = "You are Pixel, a friendly bot."


def photo(colour: str = "red", size: tuple[int, int] = (200, 150)) -> bytes:
    """Return a JPEG of one colour."""
    data = io.BytesIO()
    Image.new("RGB", size, colour).save(data, "JPEG")
    return data.getvalue()


def rated(number: int, pictures: Sequence[str] = (), *, ups: int = 1, downs: int = 0, **changes: Any) -> RatedExchange:
    """Return exchange `number` with its votes; question and answer are unique unless overridden."""
    changes = {"question": f"Question {number}?", "answer": f"Answer {number}.", **changes}
    history: tuple[RatedExchange, ...] = changes.pop("history", ())
    made = exchange(1, number, id=number, pictures=tuple(pictures), **changes)
    return RatedExchange(
        made, ups, downs, tuple(range(ups + downs)), tuple(range(ups)), tuple(each.exchange for each in history)
    )


def seen(made: Exchange, *turns: Turn) -> str:
    """Return the prompt hash of the exchange `made`, in which the model saw `turns`."""
    return prompt_hash(Prompt(made.system, turns, chat=""))


def one_turn(name: str, question: str, answer: str, *pictures: str) -> Lesson:
    """Return a lesson with one question and one answer."""
    asked = Turn(Role.USER, question, tuple(Picture(b"", each) for each in pictures))
    return Lesson(name, SYSTEM, (asked, Turn(Role.ASSISTANT, answer)), (False, True))


def shown(lesson: Lesson, *sizes: tuple[int, int]) -> Lesson:
    """Return the lesson with the sizes of its pictures set to `sizes`."""
    return replace(lesson, sizes=sizes)


def drawn_lessons(
    images: Path, count: int, *, seed: int = 0, right: bool = True, manners: Sequence[Manner] = ("playful",)
) -> list[Lesson]:
    """Return lessons about the colours and shapes of drawn scenes, with answers in each of `manners` in turn.

    If `right` is False, all lessons are about colours and all answers are wrong. The pictures are written to
    `images`.
    """
    images.mkdir(parents=True, exist_ok=True)
    rng = Random(seed)
    lessons = []
    for number in range(count):
        scene, kind = random_scene(rng), rng.choice(KINDS_ASKED if right else KINDS_ASKED[:1])
        data = io.BytesIO()
        draw(scene, rng, (150, 120)).save(data, "JPEG")
        name = sha256(data.getvalue()).hexdigest()
        (images / name).write_bytes(data.getvalue())
        told = scene if right else replace(scene, colour=COLOURS[(COLOURS.index(scene.colour) + 1) % len(COLOURS)])
        answer = reference(kind, "en", manners[number % len(manners)], told, rng)
        lessons.append(one_turn(f"lesson-{number}", held_out("en", kind, rng), answer, name))
    return lessons


def drawn_job(folder: Path, count: int, *, right: bool = True, **changes: Any) -> Job:
    """Return a job, with its files in `folder`, that trains internvl2-tiny on drawn lessons.

    `changes` override fields of the job.
    """
    write_rows(drawn_lessons(folder / "pictures", count, right=right), folder / "train.json")
    job = Job(
        run="1",
        base=str(CHECKPOINT),
        data=str(folder / "train.json"),
        images=str(folder / "pictures"),
        work=str(folder),
        system=SYSTEM,
        device="cpu",
        threads=1,
        **settings().resolved("tiny").model_dump(),
    )
    return replace(job, **changes)


def settings(**changes: Any) -> TrainingSettings:
    """Return training settings for a small machine."""
    return TrainingSettings.for_tiny(device="cpu", threads=1, **changes)
