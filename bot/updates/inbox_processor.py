"""The inbox processor, which stores every update before handling it and retries until the update is done.

An update is acknowledged to Telegram only after it is in the ledger. If a crash interrupts the handling
of an update, the update is handled again at the next start; one that fails every time becomes a dead
letter. While the disk is full, nothing is handled: an update that cannot be stored is not acknowledged,
so Telegram sends it again, and stored updates wait for space.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any, Final

import structlog
from aiogram import Bot, Dispatcher
from aiogram.types import Message, Update
from aiogram.types.update import UpdateTypeLookupError
from cachetools import LRUCache
from pydantic import ValidationError

from bot.config import Settings
from bot.i18n import later
from bot.redaction import error_text, error_trace
from bot.telegram.errors import DeliveryError, Undelivered, Unreachable
from bot.updates.addressing import is_ours
from bot.updates.lanes import Lanes, QueuedUpdate
from bot.updates.ordering import is_update, lane_of
from storage.chat_records import StoredUpdate
from storage.errors import IllegalTransition, NotSaved, StorageError, UnknownRecord
from storage.ledger import Ledger

FAILURES: Final = 3
"""After this many failed attempts in one process an update becomes a dead letter."""

ATTEMPTS: Final = 20
"""After this many attempts, crashes included, an update becomes a dead letter at the next start."""

CRASHED: Final = later("The process crashed on every attempt.")
SETTLED: Final = 4096
PAUSES: Final = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)

UNREADABLE: Final = (ValidationError, OverflowError, UnicodeError, RecursionError)
"""Errors caused by the update's own values, such as wrong types, numbers that are too large, or half a surrogate pair.
They are never retried."""

log = structlog.get_logger()

OnDeadLetter = Callable[[int, str], Awaitable[None]]
"""Called with the ID of an update that became a dead letter, and with the reason."""

OnDiskFull = Callable[[dict[str, Any]], Awaitable[bool]]
"""Called with an update that could not be stored or is waiting for space. Returns whether it is finished."""

OnArrival = Callable[[dict[str, Any]], None]
"""Called with an update when it enters its lane, before it or any update behind it is handled."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """Information about an update that is not part of its content.

    Attributes:
        update: The update's ID.
        attempt: The number of the current attempt, counted from 1.
        received: When the update was stored, as a Unix timestamp in seconds.
        album: All messages of the update's media group, starting with the update's own; empty if there is no
            group.
    """

    update: int
    attempt: int
    received: float
    album: tuple[Message, ...] = ()


@dataclass(eq=False)
class InboxProcessor:
    """The entry point for all updates.

    Call `replay` once, then `store` or `accept` for new updates, and finally `stop`.
    """

    bot: Bot
    dispatcher: Dispatcher
    ledger: Ledger
    settings: Settings
    on_arrival: OnArrival
    on_dead_letter: OnDeadLetter
    on_disk_full: OnDiskFull

    def __post_init__(self) -> None:
        self._settled: LRUCache[int, None] = LRUCache(SETTLED)
        self._lanes = Lanes(self._handle, self.settings.chat.album_seconds)
        self._replayed = asyncio.Event()

    @property
    def pending(self) -> int:
        """The number of updates that are waiting or being handled in this process."""
        return self._lanes.pending

    async def accept(self, raw: Any) -> None:
        """Store the update from a webhook call; the call may then be answered with status 200.

        The method waits for `replay`, so that the update does not overtake earlier messages in its chat.

        Raises:
            ValueError: `raw` is not an update.
            StorageError: The update could not be stored.
        """
        if not is_update(raw):
            raise ValueError("an update is an object with an update_id")
        await self._replayed.wait()
        await self.store([raw])

    async def store(self, updates: Iterable[dict[str, Any]]) -> None:
        """Store new updates in one commit and queue them; they may then be acknowledged.

        Raises:
            StorageError: The updates could not be stored and must not be acknowledged.
        """
        raws = []
        for raw in updates:
            if not is_update(raw):
                log.error("not an update, dropped")
            elif raw["update_id"] not in self._settled and await self._is_ours(raw):
                raws.append(raw)
        if not raws:
            return
        rows = [(int(raw["update_id"]), lane_of(raw), json.dumps(raw)) for raw in raws]
        try:
            fresh = await self.ledger.inbox.store(rows)
        except NotSaved:
            for raw in raws:
                if not self._lanes.has(int(raw["update_id"])):
                    await self._report_full(raw)
            raise
        for raw, (number, lane, payload), new in zip(raws, rows, fresh, strict=True):
            if new and not self._lanes.has(number):
                self._enqueue(QueuedUpdate(StoredUpdate(number, lane, payload, 0, time.time()), raw))

    async def replay(self) -> int:
        """Queue the updates that an earlier process stored but did not finish, and return their number."""
        left = [each for each in await self.ledger.inbox.pending() if not self._lanes.has(each.id)]
        for each in left:
            self._enqueue(QueuedUpdate(each, json.loads(each.payload)))
        if left:
            log.info("replaying updates", count=len(left))
        self._replayed.set()
        return len(left)

    async def stop(self, grace: float = 10.0) -> None:
        """Stop handling new updates, give those in progress `grace` seconds to finish, and then cancel the rest.

        Cancelled updates are replayed later.
        """
        await self._lanes.stop(grace)

    async def _is_ours(self, raw: dict[str, Any]) -> bool:
        """Return whether the bot may have to act on an update.

        While other updates in its lane are unfinished, the result is always True for an edited message.
        """
        try:
            edits = "edited_message" in raw and lane_of(raw) in self._lanes
            return edits or await is_ours(raw, self.bot, self.ledger)
        except DeliveryError:  # the bot's name is unknown for now; the handlers check again
            return True

    def _enqueue(self, update: QueuedUpdate) -> None:
        self.on_arrival(update.raw)
        self._lanes.add(update)

    async def _handle(self, turn: list[QueuedUpdate]) -> None:
        """Handle an update or a media group, retrying until it is done or has become a dead letter."""
        update = turn[0].stored.id
        failures = tries = attempt = 0
        error: Exception | None = None
        while True:
            try:
                if isinstance(error, NotSaved):  # do not compute an answer that cannot be saved
                    await self.ledger.inbox.check_disk(update)
                attempt = attempt + 1 if attempt else await self._begin(turn)
                error = None
                if attempt:
                    await self._attempt(turn, attempt)
                return
            except Undelivered as undelivered:  # Telegram is out of reach, which is not the update's fault
                error = undelivered
            except NotSaved as full:
                error = full
                await self._report_full(turn[0].raw)
            except Exception as failed:  # noqa: BLE001 - no exception of a handler may end the lane
                error = failed
                failures += 1
                log.error("update failed", update=update, failures=failures, trace=error_trace(failed))
            hopeless = failures >= FAILURES or isinstance(error, (_CrashedEachTime, *UNREADABLE))
            if hopeless and await self._bury(turn, error):
                return
            pause = PAUSES[min(tries, len(PAUSES) - 1)]
            tries += 1
            log.warning("update will be retried", update=update, error=error_text(error), pause=pause)
            await asyncio.sleep(pause)

    async def _begin(self, turn: list[QueuedUpdate]) -> int:
        """Record this process's first attempt at `turn` in the ledger, and return the attempt's number.

        Return 0 if nothing is left to do. The first update of a media group is begun last and finished last.
        Hence, once the first update has been begun, so have all the others, and as long as any of the others is
        unfinished, so is the first (see `lanes.members`).
        """
        try:
            for each in turn[1:]:
                await self.ledger.inbox.begin(each.stored.id)
            attempt = await self.ledger.inbox.begin(turn[0].stored.id)
        except (IllegalTransition, UnknownRecord):  # done, or deleted with its sender's data
            return 0
        if attempt > ATTEMPTS:
            raise _CrashedEachTime(CRASHED)
        return attempt

    async def _attempt(self, turn: list[QueuedUpdate], attempt: int) -> None:
        first = turn[0].stored
        updates = [Update.model_validate(each.raw, context={"bot": self.bot}) for each in turn]
        if not _has_known_type(updates[0]):
            log.warning("update of an unknown type", update=first.id)
            await self._finish(first.id, "")
            return
        album = tuple(each.message for each in updates if each.message) if turn[0].group else ()
        unreachable = ""
        try:
            delivery = Delivery(first.id, attempt, first.received, album)
            await self.dispatcher.feed_update(self.bot, updates[0], delivery=delivery)
        except Unreachable as error:
            unreachable = str(error)
            log.info("chat unreachable", update=first.id, error=unreachable)
        for each in reversed(turn):
            await self._finish(each.stored.id, unreachable)

    async def _finish(self, update: int, unreachable: str) -> None:
        """Record that an update is done.

        If the disk is full, wait for space, because another attempt at the update would repeat its effects.
        """
        for pause in chain(PAUSES, repeat(PAUSES[-1])):
            try:
                await self.ledger.inbox.finish(update, unreachable)
            except UnknownRecord:  # deleted with its sender's data
                return
            except NotSaved as error:
                log.warning("finished update is waiting for disk space", update=update, error=str(error))
                await asyncio.sleep(pause)
            else:
                return

    async def _report_full(self, raw: dict[str, Any]) -> None:
        if await self.on_disk_full(raw):
            self._settled[int(raw["update_id"])] = None

    async def _bury(self, turn: list[QueuedUpdate], error: Exception) -> bool:
        """Turn an update or media group into a dead letter and report it.

        Returns:
            False if the dead letter could not be recorded, otherwise True.
        """
        update = turn[0].stored.id
        reason = str(error) if isinstance(error, _CrashedEachTime) else f"{type(error).__name__}: {error_text(error)}"
        try:
            given_up = [await self.ledger.inbox.set_aside(each.stored.id, reason) for each in turn]
        except UnknownRecord:
            log.info("update deleted while it was being handled", update=update)
            return True
        except StorageError as failure:
            log.error("dead letter not recorded", update=update, error=str(failure))
            return False
        if not any(given_up):
            log.info("update already finished", update=update)
            return True
        log.error("dead letter", update=update, error=reason)
        try:
            await self.on_dead_letter(update, reason)
        except Exception as failed:  # noqa: BLE001 - the lane continues without the report
            log.error("dead letter not reported", update=update, trace=error_trace(failed))
        return True


def _has_known_type(update: Update) -> bool:
    try:
        return bool(update.event_type)
    except UpdateTypeLookupError:
        return False


class _CrashedEachTime(Exception):
    """The process crashed on every attempt to handle an update."""
