"""`thumbtune compare`: show several models' answers to the operator's own questions about pictures.

The answers are shown side by side on an HTML page. A child process (`training.gate.side_by_side`)
produces them, and `training.gate.sheet` creates the page. The bot need not be running.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.markup import escape

from bot.chat.question import SUFFIXES
from bot.cli.terminal import notes, run_worker
from bot.config import Settings
from inference.images.decoder import PictureDecoder
from inference.images.decoder_protocol import DecodeError, Refusal
from inference.internvl2.checkpoint_check import problems
from inference.internvl2.tiny import CHECKPOINT
from inference.settings import TINY
from storage.learning_records import BASE
from storage.ledger import FILE_NAME, Ledger
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


async def compare(settings: Settings, models: Sequence[str], images: Path, out: Path, console: Console) -> None:
    """Have `models` answer questions about the pictures in `images`, and write the page to `out`.

    Raises TrainingError or StorageError, with a message that says what to do.
    """
    if not out.absolute().parent.is_dir():
        raise TrainingError(f"{out.absolute().parent} is not a folder: create it, or name another file with --out")
    chosen = [(model, str(await directory_of(settings, model))) for model in models]
    work = Path(tempfile.mkdtemp(prefix="thumbtune-compare-"))
    kept = False
    try:
        asked = _prepared(images, work, settings)
        job = CompareJob(
            models=chosen,
            asked=asked,
            images=str(work),
            work=str(work),
            out=str(out.absolute()),
            system=settings.persona,
            device=settings.training.device,
            threads=settings.training.threads,
            tiles=settings.inference.tiles or 0,
            max_new_tokens=settings.chat.max_new_tokens,
        )
        outcome = await run_worker(settings.training, job, "loading")
        if not outcome.ok:
            kept = bool(outcome.log)
            raise TrainingError(outcome.reason)
    finally:
        if not kept:
            shutil.rmtree(work)
    pictures = len({picture for picture, *_ in asked})
    console.print(f"{out}: {len(asked)} questions about {pictures} pictures, answered by {len(chosen)} models.")


async def directory_of(settings: Settings, model: str) -> Path:
    """Return the directory of `model`, given as the ID of a kept model or the path of any checkpoint.

    Raises:
        TrainingError: `model` is neither a kept model nor a directory, or its checkpoint is incomplete.
    """
    known = {BASE: settings.inference.checkpoint(), TINY: CHECKPOINT}
    if (settings.storage.dir / FILE_NAME).is_file():
        async with Ledger.open(settings.storage.dir) as ledger:
            models = await ledger.models.all()
        known |= {each.id: Path(each.directory) for each in models if each.directory}
        if any(each.id == model and each.pruned for each in models):
            raise TrainingError(
                f"{model} is kept as its adapter only: `thumbtune promote {model}` merges it again; compare it then"
            )
    directory = known.get(model, Path(model)).absolute()
    if model not in known and not directory.is_dir():
        raise TrainingError(
            f"{model} is neither a kept model ({', '.join(known)}) nor a folder: "
            "`thumbtune models` lists those that are kept"
        )
    if wrong := problems(directory):
        raise TrainingError(f"{model}: {directory} is not a complete checkpoint: {'; '.join(wrong)}")
    return directory


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
        raise TrainingError(f"{images} is not a folder: name one with pictures by --images")
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
