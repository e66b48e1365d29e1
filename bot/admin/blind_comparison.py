"""Blind comparisons of two models, which answer recent questions about pictures in a child process.

The worker loads the models one after the other while the engine keeps running, as `thumbtune compare`
does. It reads the pictures in place; the questions and answers are in a folder that is removed afterwards.
"""

from __future__ import annotations

import asyncio
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bot.admin.refusals import AdminRefusal
from bot.i18n import later
from bot.live_settings import LiveSettings
from storage.comparisons import Comparison, PictureQuestion
from storage.ledger import Ledger
from storage.picture_files import PictureStore
from storage.translatable_reason import Reason
from training.command_jobs import BlindJob
from training.job import Progress, Trainer, checked

QUESTIONS: Final = 12
"""The maximum number of questions that are asked at a time."""

FOLDER: Final = "comparing"

BUSY: Final = later("Run {run} is in progress and needs the memory. Try again when it has ended, or /cancel it.")
NOT_KEPT: Final = later("The files of {model} are missing; choose another model.")
NO_QUESTIONS: Final = later("There are no recent questions about a picture that these models haven't answered yet.")


@dataclass(frozen=True, slots=True)
class BlindComparison:
    """Has models answer recent questions, and stores the answers for an operator to compare."""

    ledger: Ledger
    pictures: PictureStore
    trainer: Trainer
    settings: LiveSettings

    async def ask(self, first: str, second: str, on_progress: Callable[[Progress], None]) -> int:
        """Have two models answer new questions, and return the number of questions.

        Identical answers are recorded as equally good, without asking the operator.

        Raises:
            AdminRefusal: A run is in progress, a model's files are missing, or there are no new questions.
            TrainingError: The worker fails.
            StorageError: The ledger cannot be read or written.
        """
        first, second = sorted((first, second))
        if run := await self.ledger.runs.active():
            raise AdminRefusal(Reason(BUSY, run=run.id))
        models = [(each, await self._directory(each)) for each in (first, second)]
        found = await self.ledger.comparisons.new_questions(first, second, QUESTIONS, self.settings.now.trust)
        asked = [each for each in found if self.pictures.path(each.sha256).is_file()]
        if not asked:
            raise AdminRefusal(NO_QUESTIONS)
        work = self.ledger.path.parent.absolute() / FOLDER
        try:
            answers = await self._answers(models, asked, work, on_progress)
        except BaseException:
            self.tidy()  # keeps the log, which the error message may name
            raise
        await asyncio.to_thread(shutil.rmtree, work, ignore_errors=True)
        await self.ledger.comparisons.add(
            [
                Comparison(0, each.exchange, first, second, one, two, random.random() < 0.5, 0 if one == two else None)
                for each, (one, two) in zip(asked, answers, strict=True)
            ]
        )
        return len(asked)

    def tidy(self) -> None:
        """Remove the files of an interrupted comparison, except its log, which contains no user texts."""
        for each in (self.ledger.path.parent / FOLDER).glob("*.json"):
            each.unlink(missing_ok=True)

    async def _directory(self, model: str) -> str:
        directory = (await self.ledger.models.get(model)).directory
        if not directory:
            raise AdminRefusal(Reason(NOT_KEPT, model=model))
        return directory

    async def _answers(
        self,
        models: list[tuple[str, str]],
        asked: list[PictureQuestion],
        work: Path,
        on_progress: Callable[[Progress], None],
    ) -> list[tuple[str, str]]:
        """Return the two models' answers to each question; the worker's files are in the folder `work`."""
        settings, pictures = self.settings.now, self.pictures
        job = BlindJob(
            models=models,
            images=str(pictures.directory.absolute()),
            out=str(work / "answers.json"),
            work=str(work),
            **settings.answering,
            asked=[
                (pictures.path(each.sha256).relative_to(pictures.directory).as_posix(), each.question) for each in asked
            ],
        )
        checked(await self.trainer.run(job, on_progress))
        return [(one, two) for one, two in json.loads(await asyncio.to_thread(Path(job.out).read_bytes))]
