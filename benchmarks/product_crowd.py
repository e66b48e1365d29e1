"""Simulated users for benchmarks/product.py who send photos, ask follow-ups and vote; their waits are recorded."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.photos import SIZES, photo
from bot.telegram.callback_data import Overrule
from telegram_emulator import Emulator
from telegram_emulator.person_actions import Attachment
from tests.support.chatting import until
from tests.support.person import button

ADMIN = 7
FOLLOW_UPS = ("What else?", "And the colours?", "Tell me a joke about it.")
PLACEHOLDERS = ("Looking at your picture…", "Thinking…")
ANSWER_SECONDS = 180.0
OVERRULE = f"{Overrule.__prefix__}:"

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Wait:
    """The wait for one answer.

    Attributes:
        state: The state of the run when the question was asked.
        follow_up: Whether the question was a follow-up.
        first: The seconds to the first word.
        whole: The seconds to the whole answer.
    """

    state: str
    follow_up: bool
    first: float
    whole: float


class ProductCrowd:
    """The simulated users of one emulator."""

    def __init__(self, emulator: Emulator, people: int) -> None:
        self._emulator = emulator
        self._rng = random.Random(1)
        self._photos = itertools.cycle([photo(size, self._rng) for size in SIZES])
        self.ids = [ADMIN, *(1000 + number for number in range(1, people))]
        for each in self.ids:
            emulator.add_person(each, f"P{each}", admin=True)
        self.state = "before"
        self.waits: list[Wait] = []
        self.corrected = 0

    async def chat(self, person: int, corrections: int = 0) -> None:
        """Send photos as the user `person` and ask about them, until cancelled.

        Answers to follow-ups are corrected until all users together have corrected `corrections`.
        """
        people = self._emulator.people
        while True:
            await people.sends(person, [Attachment(next(self._photos))], "What is funny here?")
            await self._answered(person, follow_up=False)
            for question in self._rng.sample(FOLLOW_UPS, 2):
                people.writes(person, question)
                answer = await self._answered(person, follow_up=True)
                if self.corrected < corrections:
                    await self._correct(person, answer)
                elif self._rng.random() < 0.6:
                    self._press(person, answer, "👍")

    def last(self, person: int) -> int:
        """Return the ID of the newest message in the user's chat, or 0 if there is none."""
        return max(self._emulator.world.chats[person].messages, default=0)

    def latest(self, person: int, after: int = 0) -> list[str]:
        """Return the texts of the bot's last three messages without buttons to the user, after message `after`."""
        return [each["text"] for each in self._messages(person, after) if "reply_markup" not in each][-3:]

    async def _answered(self, person: int, *, follow_up: bool) -> Message:
        """Wait for the answer to the user's newest message, record the wait, and return the answer."""
        after, state, began, first = self.last(person), self.state, time.monotonic(), 0.0
        while True:
            for each in self._messages(person, after):
                now = time.monotonic() - began
                if each["text"] not in PLACEHOLDERS:
                    first = first or now
                if "👍" in str(each.get("reply_markup")):
                    self.waits.append(Wait(state, follow_up, first, now))
                    return each
            if time.monotonic() - began > ANSWER_SECONDS:
                raise RuntimeError(
                    f"no answer to P{person}: {[each['text'] for each in self._messages(person, after)]}"
                )
            await asyncio.sleep(0.002)

    async def _correct(self, person: int, answer: Message) -> None:
        """Dislike an answer, reply with a better one, and confirm the correction."""
        self.corrected += 1
        self._press(person, answer, "👎")
        number = answer["message_id"]
        shown = self._emulator.world.chats[person].messages
        await until(lambda: "✍" in str(shown[number]), ANSWER_SECONDS)
        after = self.last(person)
        better = f"A very funny picture, number {self.corrected}, with a cat that laughs at the moon."
        self._emulator.people.writes(person, better, reply_to=number)
        await until(lambda: "👍" in str(self._messages(person, after)), ANSWER_SECONDS)
        self._press(person, self._messages(person, after)[-1], "👍")

    def overrule(self, after: int) -> bool:
        """Press the admin's button that promotes a model against its verdict, and return whether there was one.

        Only messages after message `after` are considered.
        """
        for each in self._messages(ADMIN, after):
            for key in itertools.chain.from_iterable(each.get("reply_markup", {}).get("inline_keyboard", [])):
                if key.get("callback_data", "").startswith(OVERRULE):
                    self._emulator.people.presses(ADMIN, each["message_id"], key["callback_data"])
                    return True
        return False

    def _press(self, person: int, message: Message, label: str) -> None:
        data = button(message, label)
        assert data is not None
        self._emulator.people.presses(person, message["message_id"], data)

    def _messages(self, person: int, after: int) -> list[Message]:
        messages = self._emulator.world.chats[person].messages
        return [
            each for number, each in messages.items() if number > after and each["from"]["is_bot"] and "text" in each
        ]


def table(waits: Sequence[Wait]) -> dict[str, Any]:
    """Return the median, 95th percentile and maximum of the waits in seconds, by state and kind of question."""
    found: dict[str, Any] = {}
    for state in dict.fromkeys(each.state for each in waits):
        for follow_up in (False, True):
            some = [each for each in waits if each.state == state and each.follow_up is follow_up]
            if some:
                name = "follow-ups" if follow_up else "new photos"
                found.setdefault(state, {})[name] = {
                    "number": len(some),
                    "first word": spread([each.first for each in some]),
                    "whole": spread([each.whole for each in some]),
                }
    return found


def spread(values: Sequence[float]) -> list[float]:
    """Return the median, 95th percentile and maximum of `values`."""
    return [float(each) for each in np.percentile(values, [50, 95, 100]).round(3)]
