"""An emulator, the bot as a child process, and users who chat and vote, for tests of the complete learning loop.

The bot is real: `thumbtune run` with a settings file, engines and training. This module asks questions
and counts the outcomes; the assertions are in the tests.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from inference.internvl2.tiny.answer_checks import correct, manner
from inference.internvl2.tiny.drawing import draw
from inference.internvl2.tiny.held_out_questions import held_out
from inference.internvl2.tiny.shapes import Scene, random_scene
from inference.internvl2.tiny.words import Kind, Language
from inference.serving.engine_launch import free_port
from storage.learning_records import Run
from storage.ledger import Ledger
from storage.state_machines import RunState
from telegram_emulator.emulator import Emulator
from tests.support.bot_process import BotProcess, write_config
from tests.support.person import DOWN, UP, Message, Person

ADMIN = 1
PACE = {"edit_seconds": 0.1, "calls_per_second": 10_000}
TRAINING = {
    "recipe": "tiny",
    "threads": 1,
    "min_rated": 8,
    "min_raters": 1,
    "rater_age": 0,
    "min_free_gigabytes": 0.1,
    "canary": 0,
    "max_loss_points": 5,
}
ENDED = (RunState.DONE, RunState.FAILED, RunState.CANCELLED)
RUN_SECONDS = 480.0

Taste = Callable[[str], bool]


def playful(answer: str) -> bool:
    """Return whether an answer is written in the playful manner."""
    return manner(answer) == "playful"


@dataclass(frozen=True, slots=True)
class Question:
    """A question about an encoded picture of a scene, with its kind and language."""

    scene: Scene
    picture: bytes
    kind: Kind
    language: Language
    text: str


@dataclass(frozen=True, slots=True)
class Examined:
    """Answers to many unseen questions, and the shares (0 to 1) of playful answers and correct answers.

    `facts` is the share of correct answers; the questions are about colours and shapes.
    """

    playful: float
    facts: float
    answers: tuple[str, ...]


def questions(
    seed: str, number: int, kinds: Sequence[Kind] = ("colour", "shape", "number", "describe")
) -> list[Question]:
    """Return questions for a seed; neither their picture renderer nor their wordings are used in training."""
    rng = random.Random(seed)
    found = []
    for index in range(number):
        scene, kind, picture = random_scene(rng), kinds[index % len(kinds)], BytesIO()
        language: Language = "zh" if index % 4 == 3 else "en"
        draw(scene, rng).save(picture, "JPEG", quality=90)
        found.append(Question(scene, picture.getvalue(), kind, language, held_out(language, kind, rng)))
    return found


class Community:
    """An emulator, a bot process and users; use as an async context manager.

    The test starts the bot with `bot.start()`. `python` is the interpreter for the engine and for training;
    by default, it is the one that runs the tests.
    """

    def __init__(
        self, folder: Path, *, emulator: Emulator | None = None, python: str = "", **sections: dict[str, Any]
    ) -> None:
        self.folder = folder
        self._python = python
        self.emulator = emulator or Emulator()
        self.data = folder / "data"
        self._sections = sections
        self._stack = AsyncExitStack()
        self._next_person = 100

    async def __aenter__(self) -> Self:
        url = await self.emulator.start()
        self._stack.push_async_callback(self.emulator.stop)
        port = free_port()
        self.web = f"http://127.0.0.1:{port}"
        self.config = self.folder / "config.toml"
        sections: dict[str, dict[str, Any]] = {
            "telegram": {"token": self.emulator.token, "api_base": url, "admins": [ADMIN], **PACE},
            "storage": {"dir": str(self.data)},
            "inference": {"python": self._python, "threads": 1, "concurrency": 8},
            "training": {**TRAINING, "python": self._python},
            "web": {"port": port},
        }
        for name, values in self._sections.items():
            sections[name] = {**sections.get(name, {}), **values}
        write_config(self.config, sections)
        self.bot = BotProcess(self.config, self.web)
        self._stack.push_async_callback(self._stop_bot)
        self.url = url
        self.admin = await self._stack.enter_async_context(Person(url, ADMIN, "Mia"))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def _stop_bot(self) -> None:
        if self.bot.started:
            await self.bot.stop()

    async def person(self, language: str = "en") -> Person:
        """Register a new user with the emulator and return the user."""
        self._next_person += 1
        newcomer = Person(self.url, self._next_person, f"Person {self._next_person}", language)
        return await self._stack.enter_async_context(newcomer)

    def ledger(self) -> Ledger:
        """Open the bot's ledger while the bot is running, as the command line does, and return it."""
        return Ledger.open(self.data)

    async def vote(self, seed: str, taste: Taste, pictures: int = 30, people: int = 3) -> int:
        """Ask a question and a follow-up about each picture, vote on every answer, and return the number of likes."""
        first = questions(f"{seed}-first", pictures)
        second = questions(f"{seed}-second", pictures, kinds=("number", "colour", "describe", "shape"))
        waiting = list(zip(first, second, strict=True))
        liked = 0

        async def chat(person: Person) -> None:
            nonlocal liked
            while waiting:
                opening, follow_up = waiting.pop()
                for what in ({"photo": opening.picture, "caption": opening.text}, {"text": follow_up.text}):
                    answer = await person.asks(**what)
                    up = taste(answer["text"])
                    liked += up
                    await person.toast(await person.taps(UP if up else DOWN, answer))

        await asyncio.gather(*[chat(await self.person()) for _ in range(people)])
        return liked

    async def examine(self, seed: str, number: int = 100, people: int = 4) -> Examined:
        """Ask about `number` unseen pictures and return the answers with statistics on them."""
        waiting = questions(seed, number, kinds=("colour", "shape"))
        answers: list[tuple[Question, str]] = []

        async def ask(person: Person) -> None:
            while waiting:
                question = waiting.pop()
                answer = await person.asks(photo=question.picture, caption=question.text)
                answers.append((question, answer["text"]))

        await asyncio.gather(*[ask(await self.person()) for _ in range(people)])
        right = [correct(question.kind, question.scene, text) for question, text in answers]
        return Examined(
            playful=sum(playful(text) for _, text in answers) / len(answers),
            facts=sum(right) / len(right),
            answers=tuple(text for _, text in answers),
        )

    async def retrain(self) -> Run:
        """Send /retrain as the admin and return the finished run.

        If the run's model was accepted, that model is already answering.
        """
        async with self.ledger() as ledger:
            runs = len(await ledger.runs.latest(1000))
            await self.admin.sends("/retrain")
            async with self.admin.time_limit(60, "the run to begin"):
                while len(await ledger.runs.latest(1000)) == runs:
                    await asyncio.sleep(0.05)
        run = await self.ended_run()
        await self.settled(run)
        return run

    async def ended_run(self, number: int | None = None) -> Run:
        """Wait until run `number`, by default the newest, has ended, and return the run."""
        async with asyncio.timeout(RUN_SECONDS), self.ledger() as ledger:
            while True:
                run = await ledger.runs.get(number) if number else next(iter(await ledger.runs.latest(1)), None)
                if run and run.state in ENDED:
                    return run
                await asyncio.sleep(0.2)

    async def settled(self, run: Run) -> None:
        """Wait until the admin has been notified of how the run ended, which happens after the model swap."""
        async with asyncio.timeout(60):
            while not any(f"Run {run.id}" in _words(m) and _is_outcome(m) for m in await self.admin.bot_messages()):
                await asyncio.sleep(0.1)

    async def live_model(self) -> str:
        """Return the ID of the live model according to the ledger, or an empty string if there is none."""
        async with self.ledger() as ledger:
            model = await ledger.models.live()
            return model.id if model else ""


def _words(message: Message) -> str:
    return str(message.get("text") or message.get("caption") or "")


def _is_outcome(message: Message) -> bool:
    return any(words in _words(message) for words in ("is done. Model", "failed; nothing", "was cancelled. Nothing"))
