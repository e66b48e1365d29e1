"""Measure how long the members of a group wait under Telegram's limit of twenty messages a minute.

    python -m benchmarks.group_chat [--out FILE]

Two waits are measured: until an answer arrives and until a vote is shown. The bot has its default
limits, the emulator's flood control is on, and the engine is a script that answers after 0.1 s. There
are three loads, each on a new bot: a picture and eight follow-ups, one second apart, with votes; twelve
questions a minute for five minutes; one question a second for one minute. The benchmark takes about
eleven minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import structlog
from pydantic import SecretStr

from bot.config import Settings
from bot.settings import TelegramSettings
from inference.messages import Prompt
from telegram_emulator import Emulator
from telegram_emulator.person_actions import Attachment
from tests.support.chatting import Notebook, RunningBot, Script, ScriptedEngine, png
from tests.support.person import DOWN, UP, button

ENGINE_SECONDS: Final = 0.1
PEOPLE: Final = {1001: "Ada", 1002: "Bob", 1003: "Cyd"}
EVE: Final = 1009
"""A person in a private chat, whose waits must not grow."""

TIMEOUT: Final = 400.0  # seconds
POLL_SECONDS: Final = 0.01


def _answer(prompt: Prompt, number: int) -> Script:
    return [ENGINE_SECONDS, f"Answer {number}"]


class Group:
    """A group chat with the bot, and the times at which questions, answers and votes appeared in it."""

    def __init__(self, emulator: Emulator) -> None:
        self.emulator = emulator
        for person, name in PEOPLE.items():
            emulator.add_person(person, name)
        emulator.add_person(EVE, "Eve").started = True
        self.chat = emulator.add_group("Friends", list(PEOPLE))
        self.asked: dict[int, float] = {}  # question → when
        self.waits: dict[int, float] = {}  # question → seconds until its answer
        self.answers: dict[int, int] = {}  # question → message of its answer
        self.votes: dict[tuple[int, str], int] = {}  # message and thumb → how many
        self.shown: dict[tuple[int, str], float] = {}  # message and thumb → when all of them were shown
        self.notices: Counter[int] = Counter()
        self.elsewhere: list[float] = []

    async def asks(self, number: int) -> None:
        """Send question `number` to the group; the members take turns asking."""
        person = list(PEOPLE)[number % len(PEOPLE)]
        if not self.asked:
            sent = [Attachment(png(320, 240, "teal", "JPEG"))]
            (message,) = await self.emulator.people.sends(person, sent, "@thumbtune_bot What?", chat=self.chat.id)
        else:
            first = self.answers[min(self.answers)]
            message = self.emulator.people.writes(person, f"q{number}", chat=self.chat.id, reply_to=first)
        self.asked[message["message_id"]] = time.monotonic()

    async def eve_asks(self) -> None:
        """Ask a question in Eve's private chat with the bot and record the wait for the answer."""
        began = time.monotonic()
        after = max(self.emulator.world.chats[EVE].messages, default=0)
        if after:
            self.emulator.people.writes(EVE, "And?")
        else:
            await self.emulator.people.sends(EVE, [Attachment(png(320, 240, "navy", "JPEG"))])
        async with asyncio.timeout(TIMEOUT):
            messages = self.emulator.world.chats[EVE].messages
            while not any(button(each, UP) for number, each in list(messages.items()) if number > after):  # noqa: ASYNC110
                await asyncio.sleep(POLL_SECONDS)
        self.elsewhere.append(time.monotonic() - began)

    def vote(self, message: int, person: int, thumb: str) -> None:
        """Press the `thumb` button under the answer `message` as the user `person`."""
        data = button(self.chat.messages[message], thumb)
        assert data is not None
        self.emulator.people.presses(person, message, data, chat=self.chat.id)
        self.votes[message, thumb] = self.votes.get((message, thumb), 0) + 1
        self.shown.pop((message, thumb), None)

    async def watch(self) -> None:
        """Record when answers and votes appear in the group, until cancelled."""
        seen: set[int] = set()
        while True:
            now = time.monotonic()
            for number, message in list(self.chat.messages.items()):
                question = message.get("reply_to_message", {}).get("message_id")
                if question in self.asked and question not in self.waits and button(message, UP):
                    self.waits[question] = now - self.asked[question]
                    self.answers[question] = number
                if number not in seen:
                    seen.add(number)
                    self.notices.update(
                        each["user"]["id"] for each in message.get("entities", ()) if each["type"] == "text_mention"
                    )
            for (rated, thumb), count in self.votes.items():
                if (rated, thumb) not in self.shown and button(self.chat.messages[rated], f"{thumb} {count}"):
                    self.shown[rated, thumb] = now
            await asyncio.sleep(POLL_SECONDS)

    async def settled(self) -> None:
        """Wait until every question is answered and every vote is shown."""
        async with asyncio.timeout(TIMEOUT):
            while len(self.waits) < len(self.asked) or len(self.shown) < len(self.votes):  # noqa: ASYNC110
                await asyncio.sleep(POLL_SECONDS)

    def figures(self, load: str) -> dict[str, Any]:
        """Return the measurements of the load named `load`."""
        waits = list(self.waits.values())
        counts = self.emulator.counts(self.chat.id)
        found = {
            "load": load,
            "questions": len(self.asked),
            "answered": len(waits),
            "median_seconds": round(statistics.median(waits), 2),
            "worst_seconds": round(max(waits), 2),
            "all_answered_after": round(
                max(self.asked[each] + self.waits[each] for each in self.asked) - min(self.asked.values()), 1
            ),
            "sends": counts.sends,
            "edits": counts.edits,
            "refused_by_telegram": self.emulator.flood.refusals,
            "notices_by_person": {PEOPLE[each]: number for each, number in sorted(self.notices.items())},
        }
        if self.votes:
            found["votes"] = sum(self.votes.values())
            found["votes_shown_after_burst"] = round(max(self.shown.values()) - max(self.asked.values()), 1)
        if self.elsewhere:
            found["private_chat_worst_seconds"] = round(max(self.elsewhere), 2)
        return found


@asynccontextmanager
async def group() -> AsyncIterator[Group]:
    """Start a new bot and yield a group chat in which it has answered a question about a picture."""
    emulator = Emulator()
    emulator.flood.on = True
    url = await emulator.start()
    settings = Settings(telegram=TelegramSettings(token=SecretStr(emulator.token), api_base=url))
    with tempfile.TemporaryDirectory() as folder:
        running = RunningBot(settings, Path(folder), ScriptedEngine(otherwise=_answer), Notebook())
        running.start()
        found = Group(emulator)
        watching = asyncio.create_task(found.watch())
        try:
            await found.asks(0)
            await found.settled()
            yield found
        finally:
            watching.cancel()
            await running.stop()
            await emulator.stop()


async def burst() -> dict[str, Any]:
    """Have three users send a picture and eight follow-ups, one second apart, and vote on every answer."""
    async with group() as friends:
        for number in range(1, 9):
            await friends.asks(number)
            await asyncio.sleep(1)
        await friends.settled()
        for message in friends.answers.values():
            for person, thumb in zip(PEOPLE, (UP, UP, DOWN), strict=True):
                friends.vote(message, person, thumb)
        await friends.settled()
        return friends.figures("a picture and 8 follow-ups a second apart, 27 votes")


async def steady() -> dict[str, Any]:
    """Ask twelve questions a minute for five minutes."""
    async with group() as friends:
        for number in range(1, 60):
            await asyncio.sleep(5)
            await friends.asks(number)
        await friends.settled()
        return friends.figures("12 questions a minute for 5 minutes")


async def flood() -> dict[str, Any]:
    """Ask one question per second for one minute while another user asks in a private chat."""
    async with group() as friends:
        beside = []
        for number in range(1, 61):
            await asyncio.sleep(1)
            await friends.asks(number)
            if number % 20 == 0:
                beside.append(asyncio.create_task(friends.eve_asks()))
        await friends.settled()
        await asyncio.gather(*beside)
        return friends.figures("a question a second for 1 minute")


async def measure(out: Path | None) -> None:
    """Run the three loads, and write a JSON line for each to standard output and, if given, to the file `out`."""
    lines = []
    for load in (burst, steady, flood):
        lines.append(json.dumps(await load(), ensure_ascii=False))
        print(lines[-1], flush=True)
    if out:
        out.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Parse the command line and run the benchmark."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, help="a file for the figures, besides standard output")
    given = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    asyncio.run(measure(given.out))


if __name__ == "__main__":
    main()
