"""The models under evaluation, and a cache of their answers, so that no model answers the same question twice."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter

from storage.atomic_files import write_text
from storage.model_manifest import content_hash
from training.evaluation_jobs import JudgingJob
from training.gate.answer_backend import AnswerBackend, greedy
from training.gate.factual_set import FactualQuestion, QuestionSet
from training.gate.remote_model import ModelQuestion
from training.worker import StageProgress

CACHED_MODELS: Final = 12
"""The number of models whose answers are kept: those that were used most recently."""

_PORTION: Final = 50
"""The number of answers after which they are saved, so that a crash loses at most this many."""


@dataclass(frozen=True, slots=True)
class AnsweredQuestions:
    """Questions with a model's answers, and whether each answer is right."""

    questions: tuple[FactualQuestion, ...]
    answers: tuple[str, ...]

    def __add__(self, other: AnsweredQuestions) -> AnsweredQuestions:
        return AnsweredQuestions(self.questions + other.questions, self.answers + other.answers)

    @property
    def right(self) -> list[bool]:
        """Whether the answer to each question is right."""
        return [each.right(answer) for each, answer in zip(self.questions, self.answers, strict=True)]


class AnswerCache:
    """The answers of one model, kept in the data folder.

    The questions are the built-in ones, about pictures that the program draws, or the operator's own, so the
    answers contain no user data.

    Attributes:
        answers: The answers, by the `identity` of the question.
    """

    def __init__(self, folder: Path | None, *circumstances: object) -> None:
        """Read the stored answers; a missing, damaged or malformed file counts as empty.

        Without a `folder`, answers are kept in memory. `circumstances` are all the values that an answer depends
        on; the file is named after a hash of them.
        """
        name = sha256(json.dumps([str(each) for each in circumstances]).encode()).hexdigest()[:32]
        self._file = folder / f"{name}.json" if folder else None
        self._unsaved = 0
        self.answers = _read(self._file) if self._file else {}

    def add(self, identity: str, answer: str) -> None:
        """Add an answer; `save` is called after every `_PORTION` of them."""
        self.answers[identity] = answer
        self._unsaved += 1
        if self._unsaved >= _PORTION:
            self.save()

    def save(self) -> None:
        """Write the added answers to the file atomically.

        If the file cannot be written, for example because the disk is full, the answers are kept in memory.
        """
        if self._unsaved and self._file:
            self._unsaved = 0
            with suppress(OSError):
                self._file.parent.mkdir(parents=True, exist_ok=True)
                write_text(self._file, json.dumps(self.answers, ensure_ascii=False, indent=0))

    def close(self) -> None:
        """Mark the file as used, and delete the least recently used files if there are more than `CACHED_MODELS`."""
        if not self._file:
            return
        with suppress(OSError):
            os.utime(self._file)
            files = sorted(self._file.parent.glob("*.json"), key=lambda each: each.stat().st_mtime, reverse=True)
            for each in files[CACHED_MODELS:]:
                each.unlink()


def _read(file: Path) -> dict[str, str]:
    try:
        return TypeAdapter(dict[str, str]).validate_json(file.read_bytes())
    except (OSError, ValueError):
        return {}


class EvaluatedModel:
    """A model under evaluation, which answers each question only once."""

    def __init__(self, directory: Path, cache: AnswerCache) -> None:
        """Prepare the model in `directory` for an evaluation; `cache` has the answers that it has given before."""
        self.directory = directory
        self.cache = cache

    def missing(self, questions: QuestionSet, number: int) -> list[FactualQuestion]:
        """Return those of the first `number` questions that the model has not answered."""
        asked = {each.identity: each for each in questions.first(number)}
        return [each for identity, each in asked.items() if identity not in self.cache.answers]

    def answered(self, questions: QuestionSet, number: int) -> AnsweredQuestions:
        """Return the first `number` questions with the model's answers."""
        asked = questions.first(number)
        return AnsweredQuestions(tuple(asked), tuple(self.cache.answers[each.identity] for each in asked))


Wanted = tuple[EvaluatedModel, QuestionSet, int]
"""A model, a set of questions, and the number of its first questions that the model is to answer."""


class EvaluatedModels:
    """The models of an evaluation.

    Directories with the same files count as one model, which answers each question once.
    """

    def __init__(self, job: JudgingJob, backend: AnswerBackend, steps: StageProgress) -> None:
        self._job = job
        self._backend = backend
        self._steps = steps
        self._known: dict[str, EvaluatedModel] = {}

    def of(self, directory: Path) -> EvaluatedModel:
        """Return the model in `directory`.

        Raises:
            StorageError: The directory is empty or unreadable.
        """
        job = self._job
        folder = Path(job.answers) if job.answers else None
        content = content_hash(directory, folder)
        if content not in self._known:
            cache = AnswerCache(folder, content, job.system, job.tiles, job.max_new_tokens, self._backend.kind)
            self._known[content] = EvaluatedModel(directory, cache)
        return self._known[content]

    def expect(self, wanted: Iterable[Wanted]) -> None:
        """Count the wanted questions, except those answered before, as steps of the evaluation."""
        self._steps.more(sum(len(model.missing(questions, number)) for model, questions, number in wanted))

    def answer(self, wanted: Iterable[Wanted], further: Sequence[ModelQuestion] = ()) -> list[str]:
        """Have models answer the wanted questions that they have not answered yet, all at the same time.

        Returns:
            The answers to `further` questions, which are not kept.
        """
        job, asked = self._job, list(further)
        caches: list[tuple[AnswerCache, str]] = []
        for model, questions, number in wanted:
            for each in model.missing(questions, number):
                lesson = questions.lesson(each, job.system)
                asked.append(ModelQuestion(model.directory, lesson, questions.folder, greedy(job.max_new_tokens)))
                caches.append((model.cache, each.identity))

        def keep(number: int, text: str) -> None:
            if number >= len(further):
                cache, identity = caches[number - len(further)]
                cache.add(identity, text)
            self._steps.add(1)

        try:
            return self._backend.answers(asked, keep)[: len(further)]
        finally:
            for model in self._known.values():
                model.cache.save()

    def close(self) -> None:
        """Mark the cache files as used, and delete the least recently used ones if there are too many."""
        for each in self._known.values():
            each.cache.close()
