"""Registry of the questions in flight, so that an answer can be stopped or its question edited.

Everything is kept in memory. If the process ends while a question is in flight, the bot handles the
question again the next time it starts, along with any update that stops or edits it. A stop or an edit
may therefore arrive before its question is in flight again; it then takes effect as soon as the question
is registered.
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


class QuestionInFlight:
    """A question in flight.

    Attributes:
        stopped: Whether the answer was stopped. The part already written is kept.
        edited: Whether the question was edited, in which case the answer starts over.
        over: An event that is set when the question is no longer in flight.
    """

    def __init__(self, question: Question) -> None:
        self.question = question
        self.stopped = False
        self.edited = False
        self.over = asyncio.Event()
        self._scope: asyncio.Timeout | None = None

    @property
    def interrupted(self) -> bool:
        """Whether the answer was stopped or its question edited, so that `interruptible` blocks end at once."""
        return self.stopped or self.edited

    @asynccontextmanager
    async def interruptible(self) -> AsyncIterator[None]:
        """Run the block, but end it early, without an error, if the answer is stopped or its question edited."""
        # asyncio.timeout can cancel a part of a task without interfering with a cancellation of the task itself.
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
        """Stop the answer, and keep the part already written."""
        self.stopped, self.edited = True, False
        self._interrupt()

    def edit(self) -> None:
        """Interrupt the answer because its question was edited."""
        if not self.stopped:
            self.edited = True
            self._interrupt()

    def restart(self) -> None:
        """Reset the state after an edit, so that the edited question can be answered."""
        self.edited = False

    def _interrupt(self) -> None:
        if self._scope is not None:
            self._scope.reschedule(asyncio.get_running_loop().time())


class InFlight:
    """All questions in flight, and the stops and edits of questions that are not in flight yet."""

    def __init__(self) -> None:
        self._questions: dict[int, QuestionInFlight] = {}  # by update
        self._stopped_by: LRUCache[int, int | None] = LRUCache(REMEMBERED)  # by update
        self._stops: LRUCache[tuple[int, int, int], tuple[float, int]] = LRUCache(REMEMBERED)
        self._edits: LRUCache[tuple[int, int], dict[str, Any]] = LRUCache(REMEMBERED)

    @contextmanager
    def register(self, question: Question) -> Iterator[QuestionInFlight]:
        """Register a question as in flight while the block runs."""
        entry = self._questions[question.update] = QuestionInFlight(question)
        stopped_by = self._stopped_by.pop(question.update, 0)
        last_stop = self._stops.get(_asker(question))
        if stopped_by in (None, question.asker) or (last_stop is not None and question.order < last_stop):
            entry.stop()
        try:
            yield entry
        finally:
            del self._questions[question.update]
            entry.over.set()

    def find(self, update: int) -> QuestionInFlight | None:
        """Return the question in flight that belongs to an update, or None if there is none."""
        return self._questions.get(update)

    def stop_before(self, stop: Question) -> list[QuestionInFlight]:
        """Stop answering the questions that the user asked in the same chat before `stop`.

        Returns:
            The stopped questions that were in flight.
        """
        self._stops[_asker(stop)] = stop.order
        found = [
            each
            for each in self._questions.values()
            if _asker(each.question) == _asker(stop) and each.question.order < stop.order
        ]
        for each in found:
            each.stop()
        return found

    def stop_later(self, update: int, by: int | None) -> None:
        """Record that the question in an update must be stopped as soon as the question is registered.

        If `by` is not None, the question is stopped only if this user asked it.
        """
        self._stopped_by[update] = by

    def arrived(self, raw: dict[str, Any]) -> None:
        """If a new update edits a message, record the edit and interrupt any answer to that message.

        Args:
            raw: The update as Telegram sent it, before any other part of the bot has processed it.
        """
        message = raw.get("edited_message")
        if not isinstance(message, dict) or not isinstance(message.get("chat"), dict):
            return
        chat, number = message["chat"].get("id"), message.get("message_id")
        if not (isinstance(chat, int) and isinstance(number, int)):
            return
        self._edits[chat, number] = message
        for each in self._questions.values():
            if (each.question.chat, each.question.message) == (chat, number):
                each.edit()

    def newest(self, message: Message) -> Message:
        """Return the latest version of a message, including any later edit."""
        raw = self._edits.get((message.chat.id, message.message_id))
        return message if raw is None else Message.model_validate(raw)


def _asker(question: Question) -> tuple[int, int, int]:
    return question.chat, question.topic, question.asker
