"""`thumbtune compare`: show several models' answers to the operator's own questions about pictures.

The answers are shown side by side on an HTML page. A child process (`training.gate.side_by_side`)
produces them, and `training.gate.comparison_sheet` creates the page. The bot need not be running.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich.markup import escape

from bot.chat.question import SUFFIXES
from bot.cli.ask_models import ask, directories_of
from bot.cli.terminal import notes, results
from bot.config import Settings
from inference.images.decoder import PictureDecoder
from inference.images.decoder_protocol import DecodeError, Refusal
from training.command_jobs import CompareJob
from training.job import TrainingError

QUESTIONS: Final = "questions.txt"
_REFUSALS: Final = {
    Refusal.NOT_A_PICTURE: "is not a picture that can be read",
    Refusal.BROKEN: "is damaged or truncated",
    Refusal.TOO_MANY_PIXELS: "has more pixels than chat.max_picture_megapixels allows",
    Refusal.TOO_COSTLY: "takes too much time or memory to open",
}
_ENDINGS: Final = {"image/jpeg": ".jpg", "image/png": ".png"}


async def compare(settings: Settings, models: Sequence[str], images: Path, out: Path) -> None:
    """Have `models` answer questions about the pictures in `images`, and write the page to `out`.

    Raises TrainingError or StorageError, with a message that says what to do.
    """
    job = await ask(
        settings,
        CompareJob,
        await directories_of(settings, models),
        out,
        lambda work: {"asked": _prepared(images, work, settings), "images": str(work)},
    )
    pictures = len({picture for picture, *_ in job.asked})
    results.print(f"{out}: {len(job.asked)} questions about {pictures} pictures, answered by {len(models)} models.")


def questions_of(picture: Path, default: str) -> list[str]:
    """Return the questions about a picture, one per line of the text files beside it.

    For `NAME.jpg`, the files are `questions.txt` and `NAME.txt`. If they contain no questions, `default` is
    the only question.

    Raises:
        TrainingError: A file cannot be read.
    """
    asked = []
    for file in (picture.with_name(QUESTIONS), picture.with_suffix(".txt")):
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines() if file.is_file() else []
        except (OSError, UnicodeDecodeError) as error:
            raise TrainingError(f"{file} cannot be read ({error}): save it as plain text in UTF-8") from error
        asked += [line.strip() for line in lines if line.strip()]
    return asked or [default]


def _prepared(images: Path, work: Path, settings: Settings) -> list[tuple[str, str, str]]:
    """Return a tuple (file under `work`, original name, question) for every question about the pictures.

    The pictures in `images` are re-encoded into `work` as in a chat, so that they are upright and in a
    format that engines can read. A file that cannot be used is reported and left out.

    Raises:
        TrainingError: There are no usable pictures, or a file with questions cannot be read.
    """
    if not images.is_dir():
        raise TrainingError(f"{images} is not a folder: pass a folder of pictures with --images")
    found = sorted(each for each in images.iterdir() if each.suffix.lower() in SUFFIXES and each.is_file())
    asked: list[tuple[str, str, str]] = []
    with PictureDecoder() as decoder:
        for number, each in enumerate(found):
            try:
                cleaned = decoder.clean(each.read_bytes(), settings.chat.max_picture_megapixels)
            except DecodeError as refusal:
                notes.print(f"[yellow]left out:[/] {escape(each.name)} {_REFUSALS[refusal.reason]}")
                continue
            file = f"{number}{_ENDINGS[cleaned.media_type]}"
            (work / file).write_bytes(cleaned.data)
            asked += [(file, each.name, question) for question in questions_of(each, settings.chat.default_question)]
    if not asked:
        raise TrainingError(f"{images} has no usable pictures: put some there ({' '.join(SUFFIXES)})")
    return asked
