"""Who is being answered at this moment, so that an answer can be stopped or its question changed while it is written.

Kept in memory only: what was under way when the process ended is handled again by the next one, the wish to stop it
too. A wish that comes before its answer is under way, as after a crash, takes effect when that begins. Knows nothing
of how questions are answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

from aiogram.types import Message
from cachetools import LRUCache

REMEMBERED: Final = 4096


class Brake:
    """Breaks off what runs under it: `async with brake: …` ends early and without an error once it is pulled.

    `keep` tells whether what came until then is wanted.
    """

    def __init__(self) -> None:
        self.pulled = False
        self.keep = False
        self._scope: asyncio.Timeout | None = None

    def pull(self, *, keep: bool) -> None:
        """Break off, now or as soon as something runs under the brake."""
        self.pulled, self.keep = True, keep
        if self._scope is not None:
            self._scope.reschedule(asyncio.get_running_loop().time())

    async def __aenter__(self) -> Self:
        # A timeout is the one way to cancel a task's inside that leaves the task's own cancellation alone.
        self._scope = asyncio.timeout(0 if self.pulled else None)
        await self._scope.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        assert self._scope is not None
        scope, self._scope = self._scope, None
        try:
            await scope.__aexit__(kind, error, trace)
        except TimeoutError:
            return True
        return False


@dataclass(frozen=True, slots=True)
class Asked:
    """A question: the update that asks for its answer, where, by whom, in which message, and since when.

    `received` is UTC seconds, as in `bot.updates.inbox.Delivery`.
    """

    update: int
    chat: int
    topic: int
    asker: int
    message: int
    received: float

    @property
    def when(self) -> tuple[float, int]:
        """What orders questions and wishes to stop them."""
        return self.received, self.update


@dataclass(slots=True)
class Underway:
    """A question that is being answered. `edited` is set as soon as its message has been changed."""

    asked: Asked
    brake: Brake = field(default_factory=Brake)
    edited: bool = False
    over: asyncio.Event = field(default_factory=asyncio.Event)

    def stop(self) -> None:
        """Break the answer off and keep what came."""
        self.edited = False
        self.brake.pull(keep=True)

    def change(self) -> None:
        """Break the answer off; the question is put anew."""
        if not (self.brake.pulled and self.brake.keep):
            self.edited = True
            self.brake.pull(keep=False)

    def begin_anew(self) -> None:
        """The changed question is being put."""
        self.edited = False
        self.brake = Brake()


class Steering:
    """Every question under way, and the wishes about those that are not yet."""

    def __init__(self) -> None:
        self._under_way: dict[int, Underway] = {}
        self._stopped: LRUCache[int, int | None] = LRUCache(REMEMBERED)
        self._stops: LRUCache[tuple[int, int, int], tuple[float, int]] = LRUCache(REMEMBERED)
        self._edits: LRUCache[tuple[int, int], dict[str, Any]] = LRUCache(REMEMBERED)

    @contextmanager
    def answering(self, asked: Asked) -> Iterator[Underway]:
        """The question is being answered inside. Who wants it stopped waits for `over`, which is set at the end."""
        underway = self._under_way[asked.update] = Underway(asked)
        stopper = self._stopped.pop(asked.update, 0)
        stopped_at = self._stops.get((asked.chat, asked.topic, asked.asker))
        if stopper in (None, asked.asker) or (stopped_at is not None and asked.when < stopped_at):
            underway.stop()
        try:
            yield underway
        finally:
            del self._under_way[asked.update]
            underway.over.set()

    def find(self, update: int) -> Underway | None:
        """The question of that update, if it is being answered."""
        return self._under_way.get(update)

    def stop_all(self, asked: Asked) -> list[Underway]:
        """Stop whatever the asker of `asked`, a wish to stop, has asked there before it; what is under way of it."""
        self._stops[asked.chat, asked.topic, asked.asker] = asked.when
        found = [
            each
            for each in self._under_way.values()
            if (each.asked.chat, each.asked.topic, each.asked.asker) == (asked.chat, asked.topic, asked.asker)
            and each.asked.when < asked.when
        ]
        for each in found:
            each.stop()
        return found

    def stop_later(self, update: int, by: int | None) -> None:
        """Stop an answer as soon as it is under way. `by` must be its asker; None may stop anybody's."""
        self._stopped[update] = by

    def arrived(self, raw: dict[str, Any]) -> None:
        """Look at an update that has just come in: a changed question must not be answered as it was."""
        message = raw.get("edited_message")
        if not isinstance(message, dict) or not isinstance(message.get("chat"), dict):
            return
        chat, number = message["chat"].get("id"), message.get("message_id")
        if not (isinstance(chat, int) and isinstance(number, int)):
            return
        key = (chat, number)
        self._edits[key] = message
        for each in self._under_way.values():
            if (each.asked.chat, each.asked.message) == key:
                each.change()

    def newest(self, message: Message) -> Message:
        """The message as it was edited meanwhile, if it was."""
        raw = self._edits.get((message.chat.id, message.message_id))
        return message if raw is None else Message.model_validate(raw)
