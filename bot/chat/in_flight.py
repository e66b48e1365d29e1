"""The questions that are being answered now, so that an answer can be stopped and its question edited meanwhile.

All of it is kept in memory. A question that the end of the process interrupts is handled again at the next start, and
so is the update that stops or edits it. A stop or an edit may therefore come before its question is in flight again; it
takes effect once the question is.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

from aiogram.types import Message
from cachetools import LRUCache

from bot.chat.question import Question

REMEMBERED: Final = 4096


class Answering:
    """A question in flight.

    Attributes:
        stopped: Whether the answer was stopped. The part of it that was written counts.
        edited: Whether the question was edited, so that the answer begins again.
        over: Set when the question is no longer in flight.
    """

    def __init__(self, question: Question) -> None:
        self.question = question
        self.stopped = False
        self.edited = False
        self.over = asyncio.Event()
        self._scope: asyncio.Timeout | None = None

    @property
    def interrupted(self) -> bool:
        """Whether a block under `interruptible` ends at once."""
        return self.stopped or self.edited

    @asynccontextmanager
    async def interruptible(self) -> AsyncIterator[None]:
        """Run a block that ends early, without an error, once the answer is stopped or its question is edited."""
        # Only a timeout cancels a part of a task and leaves a cancellation of the task itself alone.
        scope = asyncio.timeout(0 if self.interrupted else None)
        try:
            async with scope:
                self._scope = scope
                yield
        except TimeoutError:
            if not scope.expired():
                raise
        finally:
            self._scope = None

    def stop(self) -> None:
        """End the answer and keep the part that was written."""
        self.stopped, self.edited = True, False
        self._interrupt()

    def edit(self) -> None:
        """Break off the answer because its question was edited."""
        if not self.stopped:
            self.edited = True
            self._interrupt()

    def restart(self) -> None:
        """Begin again with the edited question."""
        self.edited = False

    def _interrupt(self) -> None:
        if self._scope is not None:
            self._scope.reschedule(asyncio.get_running_loop().time())


class InFlight:
    """Every question in flight, and the stops and edits of questions that are not in flight yet."""

    def __init__(self) -> None:
        self._answering: dict[int, Answering] = {}  # by update
        self._stopped_by: LRUCache[int, int | None] = LRUCache(REMEMBERED)  # by update
        self._stops: LRUCache[tuple[int, int, int], tuple[float, int]] = LRUCache(REMEMBERED)
        self._edits: LRUCache[tuple[int, int], dict[str, Any]] = LRUCache(REMEMBERED)

    @contextmanager
    def answering(self, question: Question) -> Iterator[Answering]:
        """Keep a question in flight for the block."""
        entry = self._answering[question.update] = Answering(question)
        stopped_by = self._stopped_by.pop(question.update, 0)
        last_stop = self._stops.get(_asker(question))
        if stopped_by in (None, question.asker) or (last_stop is not None and question.order < last_stop):
            entry.stop()
        try:
            yield entry
        finally:
            del self._answering[question.update]
            entry.over.set()

    def find(self, update: int) -> Answering | None:
        """Return the question of an update if it is in flight."""
        return self._answering.get(update)

    def stop_before(self, stop: Question) -> list[Answering]:
        """Cancel the user's earlier questions in the chat and return those in flight."""
        self._stops[_asker(stop)] = stop.order
        found = [
            each
            for each in self._answering.values()
            if _asker(each.question) == _asker(stop) and each.question.order < stop.order
        ]
        for each in found:
            each.stop()
        return found

    def stop_later(self, update: int, by: int | None) -> None:
        """Stop an answer as soon as its question is in flight, if `by` asked that question or is None."""
        self._stopped_by[update] = by

    def arrived(self, raw: dict[str, Any]) -> None:
        """Take note of a new update. If it edits a question in flight, break off the answer to the former wording.

        Args:
            raw: The update as Telegram sent it, before any other part of the bot has looked at it.
        """
        message = raw.get("edited_message")
        if not isinstance(message, dict) or not isinstance(message.get("chat"), dict):
            return
        chat, number = message["chat"].get("id"), message.get("message_id")
        if not (isinstance(chat, int) and isinstance(number, int)):
            return
        self._edits[chat, number] = message
        for each in self._answering.values():
            if (each.question.chat, each.question.message) == (chat, number):
                each.edit()

    def newest(self, message: Message) -> Message:
        """Return the latest version of a message, which may have been edited."""
        raw = self._edits.get((message.chat.id, message.message_id))
        return message if raw is None else Message.model_validate(raw)


def _asker(question: Question) -> tuple[int, int, int]:
    return question.chat, question.topic, question.asker
