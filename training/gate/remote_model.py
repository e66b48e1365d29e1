"""Models that answer questions through the engines that serve them."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from mimetypes import guess_type
from pathlib import Path
from typing import Final

from inference.engines.http_client import HttpEngine
from inference.messages import EngineCrashed, EngineUnavailable, InferenceError, Picture, Prompt, Sampling
from training.data.llava import Lesson
from training.evaluation_jobs import RunningEngine

_POLL_SECONDS: Final = 0.02
_MAX_PAUSE: Final = 1.0
"""The longest pause in seconds before a question, so that a stream of waiting users does not stop the evaluation."""

OnAnswer = Callable[[int, str], None]
"""Called with the index of a question and its answer, as soon as the answer is known."""


@dataclass(frozen=True, slots=True)
class ModelQuestion:
    """A question to a model.

    Attributes:
        directory: The model's checkpoint directory.
        lesson: A conversation, whose last question is to be answered.
        images: The folder of its pictures.
        sampling: The sampling settings.
    """

    directory: Path
    lesson: Lesson
    images: Path
    sampling: Sampling


class RemoteModels:
    """Models served by engines, which are not asked while a user waits for a first token.

    Attributes:
        directories: The models' checkpoint directories.
    """

    def __init__(self, engines: Sequence[RunningEngine]) -> None:
        self._engines = engines
        self.directories = {Path(each.directory) for each in engines}

    def answers(self, questions: Sequence[ModelQuestion], on_answer: OnAnswer) -> list[str | None]:
        """Answer the questions, those to different models at the same time.

        Returns:
            The answer to each question, or None if no engine serves the model, or if the engine refused it or failed.
        """
        return asyncio.run(self._answers(questions, on_answer))

    async def _answers(self, questions: Sequence[ModelQuestion], on_answer: OnAnswer) -> list[str | None]:
        answers: list[str | None] = [None] * len(questions)
        numbers = defaultdict[Path, list[int]](list)
        for number, each in enumerate(questions):
            numbers[each.directory].append(number)
        waiting = {directory: iter(each) for directory, each in numbers.items()}

        async def ask(client: HttpEngine, engine: RunningEngine) -> None:
            for number in waiting[Path(engine.directory)]:
                await _let_users_first(engine.first_words)
                asked = questions[number]
                prompt = replace(_with_bytes(asked.lesson.prompt, asked.images), sampling=asked.sampling)
                try:
                    answers[number] = text = (await client.whole_answer(prompt)).strip()
                except (EngineCrashed, EngineUnavailable):
                    return
                except InferenceError:
                    continue
                on_answer(number, text)

        async def ask_all(engine: RunningEngine) -> None:
            client = HttpEngine(
                engine.url, engine.name, token_timeout=engine.token_timeout, tiles=engine.tiles, api_key=engine.key
            )
            at_once = min(engine.at_once, len(numbers.get(Path(engine.directory), ())))
            try:
                await asyncio.gather(*(ask(client, engine) for _ in range(at_once)))
            finally:
                await client.aclose()

        await asyncio.gather(*(ask_all(each) for each in self._engines))
        return answers


async def _let_users_first(first_words: str) -> None:
    for _ in range(round(_MAX_PAUSE / _POLL_SECONDS) if first_words else 0):
        if Path(first_words).read_bytes() != b"\1":
            return
        await asyncio.sleep(_POLL_SECONDS)


def _with_bytes(prompt: Prompt, images: Path) -> Prompt:
    """Return a lesson's prompt with the bytes of its pictures, which are files in the folder `images`."""
    turns = [
        replace(
            turn,
            pictures=tuple(
                Picture.of((images / each.sha256).read_bytes(), guess_type(each.sha256)[0] or each.media_type)
                for each in turn.pictures
            ),
        )
        for turn in prompt.turns
    ]
    return replace(prompt, turns=tuple(turns))
