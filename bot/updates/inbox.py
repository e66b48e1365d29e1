"""Updates: stored, then handled in order, each until its effects have happened.

Telegram is told that we have an update only after the ledger has it. Updates of one lane are handled one after the
other, lanes side by side: what somebody says in a chat keeps its order, while button taps and admin commands do not
wait behind a long answer. What a crash interrupts is handled again at the next start; what fails every time is set
aside. While the disk is full nothing is handled: what could not be stored is not acknowledged, so Telegram sends it
again, and what was stored waits for room. How updates come in is `intake`'s; what they ask for is the handlers'.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, repeat
from typing import Any, Final

import structlog
from aiogram import Bot, Dispatcher
from aiogram.types import Message, Update
from aiogram.types.update import UpdateTypeLookupError
from cachetools import LRUCache
from pydantic import ValidationError

from bot.i18n import later
from bot.redaction import account, trace
from bot.settings import BotSettings
from bot.telegram.client import DeliveryError, Undelivered, Unreachable
from bot.updates.addressing import is_ours
from bot.updates.media_groups import Waiting, members, seconds_missing
from bot.updates.ordering import is_update, lane_of
from storage.errors import IllegalTransition, NotSaved, StorageError, UnknownRecord
from storage.ledger import Ledger
from storage.records import StoredUpdate

FAILURES: Final = 3
"""A handler may fail so often at one update in one process; then the update is set aside."""

ATTEMPTS: Final = 20
"""So many attempts, crashes included: an update that keeps killing the process is set aside at the next start."""

ENDED_EACH_TIME: Final = later("The process crashed on every attempt.")
SETTLED: Final = 4096
PAUSES: Final = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)

UNREADABLE: Final = (ValidationError, OverflowError, UnicodeError, RecursionError)
"""What an update's own values raise: wrong types, more than 64 bits, half a surrogate pair. No attempt can succeed."""

log = structlog.get_logger()

SetAside = Callable[[int, str], Awaitable[None]]
"""Told of an update that was given up: its id and why."""

NotStored = Callable[[dict[str, Any]], Awaitable[bool]]
"""Told of an update as Telegram sent it that the disk has no room for, each time that it is met; whether it is settled
by that and needs no handling any more."""

Arrived = Callable[[dict[str, Any]], None]
"""Told of an update as Telegram sent it when it takes its place in its lane, before anything behind it is handled."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """What handlers get to know of the update they handle: `attempt` counts from 1, `received` is UTC seconds.

    `album` holds the messages of a whole album, the handled one first; it is empty for everything else.
    """

    update: int
    attempt: int
    received: float
    album: tuple[Message, ...] = ()


@dataclass(slots=True)
class _Lane:
    waiting: deque[Waiting] = field(default_factory=deque)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    worker: asyncio.Task[None] | None = None


class Inbox:
    """The way in for every update: `replay` once, then `store` or `accept`, then `stop`."""

    def __init__(
        self,
        bot: Bot,
        dispatcher: Dispatcher,
        ledger: Ledger,
        settings: BotSettings,
        *,
        on_arrival: Arrived | None = None,
        on_set_aside: SetAside | None = None,
        on_disk_full: NotStored | None = None,
    ) -> None:
        self._bot = bot
        self._dispatcher = dispatcher
        self._ledger = ledger
        self._settings = settings
        self._on_arrival = on_arrival
        self._on_set_aside = on_set_aside
        self._on_disk_full = on_disk_full
        self._settled: LRUCache[int, None] = LRUCache(SETTLED)
        self._lanes: dict[str, _Lane] = {}
        self._known: set[int] = set()
        self._replayed = asyncio.Event()
        self._stopping = False

    @property
    def pending(self) -> int:
        """How many updates are waiting or being handled in this process."""
        return len(self._known)

    async def accept(self, raw: Any) -> None:
        """Take in the JSON of one webhook call; when this returns it is safe to answer 200.

        It waits for `replay`, so that it does not overtake what its chat said before. Raises ValueError for what is
        not an update, `StorageError` when it could not be stored.
        """
        if not is_update(raw):
            raise ValueError("an update is an object with an update_id")
        await self._replayed.wait()
        await self.store([raw])

    async def store(self, updates: Iterable[dict[str, Any]]) -> None:
        """Store what is new in one commit and hand it to its lanes; when this returns it may be acknowledged.

        Raises `StorageError` when it could not be stored, and then it may not. Where that is for a full disk, the
        senders have heard so.
        """
        raws, rows = [], []
        for raw in updates:
            if not is_update(raw):
                log.error("dropped what is no update")
            elif raw["update_id"] not in self._settled and await self._is_ours(raw):
                raws.append(raw)
                rows.append((raw["update_id"], lane_of(raw), json.dumps(raw)))
        if not rows:
            return
        try:
            fresh = await self._ledger.inbox.store(rows)
        except NotSaved:
            for raw in raws:
                if int(raw["update_id"]) not in self._known:
                    await self._say_full(raw)
            raise
        for (number, lane, payload), new in zip(rows, fresh, strict=True):
            if new and number not in self._known:
                self._enqueue(StoredUpdate(number, lane, payload, 0, time.time()))

    async def _is_ours(self, raw: dict[str, Any]) -> bool:
        """Whether an update may have an effect. One that may change what is being handled does."""
        try:
            steers = "edited_message" in raw and lane_of(raw) in self._lanes
            return steers or await is_ours(raw, self._bot, self._ledger)
        except DeliveryError:  # Telegram does not tell our name now: the handlers look once more
            return True

    async def replay(self) -> int:
        """Handle again what an earlier process has stored and not finished; how many updates that are."""
        left = await self._ledger.inbox.pending()
        fresh = [each for each in left if each.id not in self._known]
        for each in fresh:
            self._enqueue(each)
        if fresh:
            log.info("replaying updates", count=len(fresh))
        self._replayed.set()
        return len(fresh)

    async def stop(self, grace: float = 10.0) -> None:
        """Begin nothing more, give what is being handled `grace` seconds, then break off; the rest is replayed."""
        self._stopping = True
        for lane in self._lanes.values():
            lane.arrived.set()
        workers = [lane.worker for lane in self._lanes.values() if lane.worker]
        if workers:
            _, late = await asyncio.wait(workers, timeout=grace)
            while late:  # a library that swallows a cancellation must not keep the process alive
                for worker in late:
                    worker.cancel()
                _, late = await asyncio.wait(late, timeout=1.0)

    def _enqueue(self, update: StoredUpdate) -> None:
        self._known.add(update.id)
        lane = self._lanes.setdefault(update.lane, _Lane())
        waiting = Waiting(update, json.loads(update.payload))
        lane.waiting.append(waiting)
        if self._on_arrival:
            self._on_arrival(waiting.raw)
        lane.arrived.set()
        if lane.worker is None and not self._stopping:
            lane.worker = asyncio.create_task(self._work(update.lane, lane))

    async def _work(self, name: str, lane: _Lane) -> None:
        """Handle a lane's updates one after the other until it is empty."""
        while lane.waiting and not self._stopping:
            turn = await self._next(lane)
            if turn is None:
                return
            await self._handle(turn)
            for each in turn:
                lane.waiting.remove(each)
                self._known.discard(each.update.id)
        if not lane.waiting:
            del self._lanes[name]

    async def _next(self, lane: _Lane) -> list[Waiting] | None:
        """The lane's first update, or its whole album as soon as that is complete. None when we are stopped."""
        while not self._stopping:
            turn = members(lane.waiting[0], lane.waiting)
            missing = seconds_missing(turn, self._settings.chat.album_seconds)
            if not missing:
                return turn
            lane.arrived.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(missing):
                    await lane.arrived.wait()
        return None

    async def _handle(self, turn: list[Waiting]) -> None:
        """Handle a turn until it has happened or is given up. Only cancelling breaks it off."""
        failures = 0
        tries = 0
        attempt = 0
        error: Exception | None = None
        while True:
            try:
                if isinstance(error, NotSaved):  # no answer is computed for a disk that cannot keep it
                    await self._ledger.inbox.check_disk(turn[0].update.id)
                attempt = attempt + 1 if attempt else await self._begin(turn)
                error = None
                if attempt:
                    await self._attempt(turn, attempt)
                return
            except Undelivered as undelivered:
                error = undelivered  # Telegram is away; that is no fault of the update
            except NotSaved as full:
                error = full
                await self._say_full(turn[0].raw)
            except Exception as failed:  # noqa: BLE001 - whatever a handler raises must not end the lane
                error = failed
                failures += 1
                log.error("update failed", update=turn[0].update.id, failures=failures, trace=trace(failed))
            if (failures >= FAILURES or isinstance(error, (_Hopeless, *UNREADABLE))) and await self._set_aside(
                turn, error
            ):
                return
            pause = PAUSES[min(tries, len(PAUSES) - 1)]
            tries += 1
            log.warning("update is tried again", update=turn[0].update.id, error=account(error), pause=pause)
            await asyncio.sleep(pause)

    async def _begin(self, turn: list[Waiting]) -> int:
        """Count an attempt in the ledger, one for each process that comes this far; its number, 0 if all is done.

        The lead is begun last and finished last: where it was begun, so were all the others of its turn, and while
        others are left over from an interrupted end, so is it (see `albums.members`).
        """
        try:
            for each in turn[1:]:
                await self._ledger.inbox.begin(each.update.id)
            attempt = await self._ledger.inbox.begin(turn[0].update.id)
        except (IllegalTransition, UnknownRecord):  # done, or deleted with all that its sender had
            return 0
        if attempt > ATTEMPTS:
            raise _Hopeless(ENDED_EACH_TIME)
        return attempt

    async def _say_full(self, raw: dict[str, Any]) -> None:
        """Have the sender of an update hear that the disk is full."""
        if self._on_disk_full and await self._on_disk_full(raw):
            self._settled[int(raw["update_id"])] = None

    async def _finish(self, update: int, unreachable: str) -> None:
        """Note that all has happened. On a full disk this waits for room: handled again it would happen twice."""
        for pause in chain(PAUSES, repeat(PAUSES[-1])):
            try:
                await self._ledger.inbox.finish(update, unreachable)
            except UnknownRecord:  # deleted with all that its sender had: there is nothing to note
                break
            except NotSaved as error:
                log.warning("the end of an update waits for room", update=update, error=str(error))
                await asyncio.sleep(pause)
            else:
                break

    async def _attempt(self, turn: list[Waiting], attempt: int) -> None:
        lead = turn[0]
        updates = [Update.model_validate(each.raw, context={"bot": self._bot}) for each in turn]
        if not _has_a_kind(updates[0]):
            log.warning("update of an unknown kind", update=lead.update.id)
            await self._finish(lead.update.id, "")
            return
        album = tuple(each.message for each in updates if each.message) if lead.group else ()
        delivery = Delivery(lead.update.id, attempt, lead.update.received, album)
        unreachable = ""
        try:
            await self._dispatcher.feed_update(self._bot, updates[0], delivery=delivery)
        except Unreachable as error:
            unreachable = str(error)
            log.info("nobody to answer", update=lead.update.id, error=unreachable)
        for each in reversed(turn):
            await self._finish(each.update.id, unreachable)

    async def _set_aside(self, turn: list[Waiting], error: Exception) -> bool:
        """Give up on a turn and say so. False if not even that could be stored."""
        reason = str(error) if isinstance(error, _Hopeless) else f"{type(error).__name__}: {account(error)}"
        try:
            given_up = [await self._ledger.inbox.set_aside(each.update.id, reason) for each in turn]
        except UnknownRecord:
            log.info("an update was deleted while it was handled", update=turn[0].update.id)
            return True
        except StorageError as trouble:
            log.error("an update could not be set aside", update=turn[0].update.id, error=str(trouble))
            return False
        if not any(given_up):
            log.info("an update was closed while it was handled", update=turn[0].update.id)
            return True
        log.error("update set aside", update=turn[0].update.id, error=reason)
        if self._on_set_aside:
            try:
                await self._on_set_aside(turn[0].update.id, reason)
            except Exception as failed:  # noqa: BLE001 - the notice is a courtesy; the lane goes on
                log.error("update set aside, and nobody told", update=turn[0].update.id, trace=trace(failed))
        return True


def _has_a_kind(update: Update) -> bool:
    try:
        return bool(update.event_type)
    except UpdateTypeLookupError:
        return False


class _Hopeless(Exception):
    """The update is not to be tried again."""
