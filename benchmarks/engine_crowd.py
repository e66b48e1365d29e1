"""Simulated users who chat with an engine or a deployment about pictures, and their waiting times."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from random import Random
from typing import Any, Final

import numpy as np

from benchmarks.peers.load import picture
from inference.engines.http_client import HttpEngine
from inference.internvl2.families import INTERNVL2
from inference.messages import Answer, Delta, Engine, InferenceError, Picture, Prompt, Role, Sampling, Turn

QUESTIONS: Final = 5
"""The number of questions about one picture."""


@dataclass(frozen=True, slots=True)
class SeenAnswer:
    """An answer as a simulated user saw it.

    Attributes:
        asked: When the question was asked, by the monotonic clock.
        wait: The seconds to the first word.
        ended: When the answer was complete, by the monotonic clock.
        follow_up: Whether the question was a follow-up.
        restarted: Whether the answer was started again.
        model: The ID of the model that answered.
        mixed: Whether the parts of the answer came from different models.
        tokens: The number of tokens in the answer.
        tiles: The number of tiles that the engine encoded for the question, 0 if it had the picture cached.
    """

    asked: float
    wait: float
    ended: float
    follow_up: bool
    restarted: bool
    model: str
    mixed: bool
    tokens: int
    tiles: int


class EngineCrowd:
    """Simulated users who chat until `stop` is called.

    Args:
        engine: The engine or deployment that answers.
        people: The users' numbers, which determine their chats and pictures.
        tokens: The maximum length of an answer.
        pause: The shortest and the longest time between an answer and the next question, in seconds.
    """

    def __init__(
        self, engine: Engine, people: Sequence[int], tokens: int, pause: tuple[float, float] = (0.5, 2.5)
    ) -> None:
        self.seen: list[SeenAnswer] = []
        self.errors: list[str] = []
        self._engine = engine
        self._sampling = Sampling(max_new_tokens=tokens)
        self._pause = pause
        self._going = True
        self._people = [asyncio.create_task(self._person(number)) for number in people]

    async def stop(self) -> None:
        """End the chats once the users' current questions have been answered."""
        self._going = False
        await asyncio.gather(*self._people)

    def cancel(self) -> None:
        """End the chats at once."""
        for person in self._people:
            person.cancel()

    async def _person(self, number: int) -> None:
        dice = Random(number)
        chat = f"person-{number}"
        turns: tuple[Turn, ...] = ()
        # The first chats end at different times, so that the users do not all send new pictures together.
        left = dice.randint(1, QUESTIONS)
        await asyncio.sleep(dice.uniform(0, 4))
        while self._going:
            fresh = not turns or not left
            if fresh:
                left = left or QUESTIONS
                drawn = await asyncio.to_thread(picture, dice.randrange(10**6))
                data = base64.b64decode(drawn.partition(",")[2])
                turns, asked = (), Turn(Role.USER, "What can you see here?", (Picture.of(data),))
            else:
                asked = Turn(Role.USER, "And what else is there?")
            prompt = Prompt(INTERNVL2.system, (*turns, asked), chat=chat, sampling=self._sampling)
            try:
                answer = await self._ask(prompt, follow_up=not fresh)
            except InferenceError as error:
                self.errors.append(str(error))
                await asyncio.sleep(1)
            else:
                left -= 1
                turns = (*turns, asked, Turn(Role.ASSISTANT, answer.text or "…"))
            await asyncio.sleep(dice.uniform(*self._pause))

    async def _ask(self, prompt: Prompt, *, follow_up: bool) -> Answer:
        asked, first, restarted = time.monotonic(), 0.0, False
        models: set[str] = set()
        async for delta in self._engine.answer(prompt):
            if delta.restarted:
                restarted, models = True, set()
            if delta.text:
                first = first or time.monotonic()
                models.add(delta.model)
            if (answer := delta.answer) is not None:
                ended = time.monotonic()
                self.seen.append(
                    SeenAnswer(
                        asked=asked,
                        wait=(first or ended) - asked,
                        ended=ended,
                        follow_up=follow_up,
                        restarted=restarted,
                        model=answer.model,
                        mixed=not models <= {answer.model},
                        tokens=answer.usage.completion_tokens,
                        tiles=answer.usage.encoded_tiles,
                    )
                )
                return answer
        raise AssertionError("a stream without an answer")


class QueuedEngine:
    """An engine that answers at most `slots` questions at a time, as a deployment has it do."""

    def __init__(self, engine: HttpEngine, slots: int) -> None:
        self._engine = engine
        self._slots = asyncio.Semaphore(slots)

    async def answer(self, prompt: Prompt) -> AsyncGenerator[Delta, None]:
        """Wait for a free slot and stream the answer."""
        last: Delta | None = None
        async with self._slots, aclosing(self._engine.answer(prompt)) as deltas:
            async for delta in deltas:
                if delta.answer is None:
                    yield delta
                else:
                    last = delta
        if last is not None:  # the slot is free again, even if the reader stops here
            yield last


@dataclass(frozen=True, slots=True)
class CrowdJob:
    """Users who ask an engine without pauses, in a process of their own.

    Attributes:
        url: The engine's address.
        model: The ID of its model.
        key: The bearer token that it demands.
        people: The users' numbers.
        slots: How many questions are asked at a time.
        tokens: The maximum length of an answer.
        seconds: How long the users keep asking.
    """

    url: str
    model: str
    key: str
    people: Sequence[int]
    slots: int
    tokens: int
    seconds: float

    def run(self) -> tuple[list[SeenAnswer], list[str]]:
        """Return the answers and the errors. On Linux, processes share the monotonic clock."""
        return asyncio.run(self._chat())

    async def _chat(self) -> tuple[list[SeenAnswer], list[str]]:
        engine = HttpEngine(self.url, self.model, api_key=self.key)
        crowd = EngineCrowd(QueuedEngine(engine, self.slots), self.people, self.tokens, pause=(0, 0))
        await asyncio.sleep(self.seconds)
        await crowd.stop()
        await engine.aclose()
        return crowd.seen, crowd.errors


def waits(seen: Sequence[SeenAnswer], span: tuple[float, float], *, follow_up: bool, late: int = 95) -> dict[str, Any]:
    """Return the number of the waits, and their median and percentile `late` in seconds.

    Only the waits for answers to questions asked within `span`, and of one kind, are counted.
    """
    values = [each.wait for each in seen if span[0] <= each.asked < span[1] and each.follow_up is follow_up]
    if not values:
        return {"number": 0}
    median, slow = np.percentile(values, [50, late]).round(4).tolist()
    return {"number": len(values), "median": median, f"p{late}": slow}
