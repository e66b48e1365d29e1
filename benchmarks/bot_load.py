"""Measure how many updates per second the bot handles, how long each takes, and how its memory grows.

    python -m benchmarks.bot_load --people 1000 --updates 10000 [--memory 100000]

1,000 simulated users chat through the emulator. Each sends a picture with a caption, asks three
questions about it, and starts over with another picture; each writes the next message as soon as the
answer to the last one has its thumb buttons. The users write first to a bare aiogram bot and then to
thumbtune (`benchmarks.bots`). The two bots make the same calls for each update; the calls are counted
and must be equal in number. Then the users write to thumbtune at half the rate it reached before, which
shows how long an update takes without queueing. With `--memory`, they send that many more updates at
full speed, and the bot process's memory is printed at intervals. The emulator and the users run in the
benchmark's process; the CPU time that each process spends per update shows which one is the
bottleneck.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import psutil

from telegram_emulator import Emulator
from telegram_emulator.person_actions import Attachment
from tests.support.chatting import png
from tests.support.person import UP, button

QUESTIONS_PER_PICTURE: Final = 4
"""The number of questions about each picture: its caption and three texts."""

WARM_UP: Final = 500
PICTURES: Final = 200
TIMEOUT: Final = 120.0  # seconds
MEMORY_STEP: Final = 10_000


@dataclass(slots=True)
class Measured:
    """Measurements taken under one load.

    Attributes:
        waits: The seconds from each message to its final answer.
    """

    began: float = field(default_factory=time.perf_counter)
    ended: float = 0.0
    waits: list[float] = field(default_factory=list)
    bot_seconds: float = 0.0
    emulator_seconds: float = 0.0
    calls: dict[str, int] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Updates per second."""
        return len(self.waits) / (self.ended - self.began)

    def row(self, name: str) -> str:
        """Return the measurements as a line of the printed table."""
        number = len(self.waits)
        median, late = np.percentile(self.waits, [50, 99])
        return (
            f"{name:30} {self.rate:7.1f} updates/s   {sum(self.calls.values()) / number:.2f} calls per update   "
            f"median {median:6.3f} s, p99 {late:6.3f} s   processor: bot {1000 * self.bot_seconds / number:.2f} ms, "
            f"emulator and people {1000 * self.emulator_seconds / number:.2f} ms per update"
        )


class Crowd:
    """Simulated users who chat through an emulator in this process."""

    def __init__(self, emulator: Emulator, people: int) -> None:
        self._emulator = emulator
        rng = random.Random(1)
        colours = ["#" + "".join(rng.choices("0123456789abcdef", k=6)) for _ in range(PICTURES)]
        self._pictures = [png(320, 240, colour, "JPEG") for colour in colours]
        self.turns = {
            emulator.add_person(1000 + number, f"P{number}").id: QUESTIONS_PER_PICTURE * number
            for number in range(people)
        }
        self._asked: dict[int, float] = {}

    async def asks(self, person: int) -> None:
        """Send the next message as the user `person`."""
        turn = self.turns[person]
        self.turns[person] = turn + 1
        people, chat = self._emulator.people, self._emulator.world.chats[person]
        chat.messages.clear()  # the emulator's memory is not measured
        self._asked[person] = time.perf_counter()
        if turn % QUESTIONS_PER_PICTURE == 0:
            await people.sends(person, [Attachment(self._pictures[turn % PICTURES])], f"question {turn}?")
        else:
            people.writes(person, f"question {turn}?")

    def waiting(self, person: int) -> bool:
        """Return whether the last message of the user `person` is still unanswered."""
        return person in self._asked

    async def answers(self) -> AsyncIterator[tuple[int, float]]:
        """Yield, for each final answer, the user who asked and the seconds the answer took."""
        async for event in self._emulator.world.events.follow(0, _is_final):
            if event["kind"] == "reset":
                raise RuntimeError("the simulated users cannot keep up with the emulator's events")
            if (asked := self._asked.pop(event["chat"], None)) is not None:
                yield event["chat"], time.perf_counter() - asked


def _is_final(event: dict[str, Any]) -> bool:
    return event["kind"] == "reset" or (
        event["kind"] in ("message", "edited") and button(event["message"], UP) is not None
    )


class Load:
    """A bot process under load from simulated users."""

    def __init__(self, emulator: Emulator, crowd: Crowd, bot: psutil.Process) -> None:
        self._emulator = emulator
        self._crowd = crowd
        self._bot = bot
        self._answers = crowd.answers()

    async def full(self, updates: int) -> Measured:
        """Measure `updates` answers at full speed: each user writes again as soon as an answer arrives."""
        for person in self._crowd.turns:
            if not self._crowd.waiting(person):
                await self._crowd.asks(person)
        measured = self._start()
        while len(measured.waits) < updates:
            async with asyncio.timeout(TIMEOUT):
                person, waited = await anext(self._answers)
            measured.waits.append(waited)
            await self._crowd.asks(person)
        return self._stop(measured)

    async def paced(self, updates: int, rate: float) -> Measured:
        """Measure `updates` answers at a steady `rate`, in updates per second.

        Messages come only from users who are not waiting for an answer.
        """
        await self.quiet()
        measured = self._start()

        async def ask() -> None:
            people = itertools.cycle(self._crowd.turns)
            for number in range(updates):
                await asyncio.sleep(measured.began + number / rate - time.perf_counter())
                while self._crowd.waiting(person := next(people)):  # noqa: ASYNC110 - until a person is free
                    await asyncio.sleep(0)
                await self._crowd.asks(person)

        asking = asyncio.create_task(ask())
        while len(measured.waits) < updates:
            async with asyncio.timeout(TIMEOUT):
                measured.waits.append((await anext(self._answers))[1])
        await asking
        return self._stop(measured)

    async def quiet(self) -> None:
        """Wait for all outstanding answers."""
        while any(map(self._crowd.waiting, self._crowd.turns)):
            async with asyncio.timeout(TIMEOUT):
                await anext(self._answers)

    def megabytes(self) -> float:
        """Return the resident memory of the bot process in MiB."""
        return float(self._bot.memory_info().rss / 2**20)

    def _start(self) -> Measured:
        self._emulator.calls.clear()
        return Measured(bot_seconds=-_spent(self._bot), emulator_seconds=-_spent(psutil.Process()))

    def _stop(self, measured: Measured) -> Measured:
        measured.ended = time.perf_counter()
        measured.bot_seconds += _spent(self._bot)
        measured.emulator_seconds += _spent(psutil.Process())
        measured.calls = {name: n for name, n in self._emulator.calls.items() if name != "getupdates"}
        return measured


def _spent(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


@asynccontextmanager
async def loaded(which: str, people: int) -> AsyncIterator[Load]:
    """Start an emulator, simulated users and the bot named `which`, warm them up, and yield the `Load`."""
    emulator = Emulator()
    url = await emulator.start()
    with tempfile.TemporaryDirectory() as folder:
        words = [which, "--url", url, "--token", emulator.token, "--dir", folder]
        process = await asyncio.create_subprocess_exec(sys.executable, "-m", "benchmarks.bots", *words)
        try:
            crowd = Crowd(emulator, people)
            load = Load(emulator, crowd, psutil.Process(process.pid))
            await load.full(max(WARM_UP, people))
            yield load
            await load.quiet()
        finally:
            process.send_signal(signal.SIGTERM)
            await process.wait()
            await emulator.stop()


async def measure(people: int, updates: int, memory: int) -> None:
    """Run the measurements and print the table."""
    async with loaded("echo", people) as load:
        bare = await load.full(updates)
        print(bare.row("bare aiogram, full speed"), flush=True)
    async with loaded("thumbtune", people) as load:
        ours = await load.full(updates)
        print(ours.row("thumbtune, full speed"), flush=True)
        print((await load.paced(updates // 5, ours.rate / 2)).row("thumbtune, half speed"), flush=True)
        print(f"calls of the bare bot: {bare.calls}\ncalls of thumbtune:    {ours.calls}", flush=True)
        print(f"ratio {ours.rate / bare.rate:.2f}", flush=True)
        for done in range(0, memory, MEMORY_STEP):
            print(f"memory after {done:7} more updates: {load.megabytes():6.1f} MiB", flush=True)
            await load.full(min(MEMORY_STEP, memory - done))
        if memory:
            print(f"memory after {memory:7} more updates: {load.megabytes():6.1f} MiB", flush=True)


def main() -> None:
    """Parse the command line and run the benchmark."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--people", type=int, default=1000)
    parser.add_argument("--updates", type=int, default=10_000)
    parser.add_argument(
        "--memory", type=int, default=0, help="number of further updates, during which memory is printed"
    )
    given = parser.parse_args()
    asyncio.run(measure(given.people, given.updates, given.memory))


if __name__ == "__main__":
    main()
