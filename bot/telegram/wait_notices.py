"""People in a group whose answers wait for Telegram's limit are told so: once, and all who wait by one message.

The limit leaves a group some 20 messages a minute, notices included. So a notice names everybody who waits, and whoever
had one has no other for some minutes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import structlog
from aiogram.exceptions import TelegramAPIError
from aiogram.types import MessageEntity, User
from cachetools import TTLCache
from telegramify_markdown import utf16_len

from bot.i18n import Say
from bot.telegram.client import DeliveryError
from bot.telegram.formatting import Page
from bot.telegram.outbox import Reply
from bot.telegram.rate_limit import GroupPace, Pace
from bot.telegram.sliding_window import Urgency
from storage.ledger import Ledger

PATIENCE_SECONDS: Final = 3.0
LOOK_SECONDS: Final = 0.5
TOLD_SECONDS: Final = 300.0
REMEMBERED: Final = 4096

log = structlog.get_logger()


class Waiting:
    """Who waits in which group, and who has been told."""

    def __init__(self, pace: Pace, ledger: Ledger) -> None:
        self._pace = pace
        self._ledger = ledger
        self._waiting: dict[tuple[int, int | None], dict[int, int]] = {}  # chat and topic → person → update
        self._told: TTLCache[tuple[int, int], None] = TTLCache(
            REMEMBERED, TOLD_SECONDS, lambda: asyncio.get_running_loop().time()
        )

    @asynccontextmanager
    async def telling(self, reply: Reply, person: int, update: int, say: Say) -> AsyncIterator[None]:
        """An answer to this person is on its way inside; tell them if that takes long in a group."""
        place = reply.place
        pace = self._pace.chat(place.chat)
        if not isinstance(pace, GroupPace) or (place.chat, person) in self._told:
            yield
            return
        here = self._waiting.setdefault((place.chat, place.topic), {})
        here[person] = update
        notice = asyncio.create_task(self._tell(reply, pace, person, here, say))
        try:
            yield
        finally:
            notice.cancel()
            await asyncio.gather(notice, return_exceptions=True)
            if here.get(person) == update:
                del here[person]
            if not here:
                self._waiting.pop((place.chat, place.topic), None)

    async def _tell(self, reply: Reply, pace: GroupPace, person: int, here: dict[int, int], say: Say) -> None:
        await asyncio.sleep(PATIENCE_SECONDS)
        while person in here and not pace.room(Urgency.NOTICE):  # noqa: ASYNC110 - the window has no event for it
            await asyncio.sleep(LOOK_SECONDS)
        people = [each for each in here if (reply.place.chat, each) not in self._told]
        if person not in people:
            return
        here.clear()
        self._told.update(dict.fromkeys((reply.place.chat, each) for each in people))
        try:
            await reply.notice(await self._page(people, say))
        except (DeliveryError, TelegramAPIError) as error:
            log.warning("people who wait were not told", chat=reply.place.chat, error=str(error))

    async def _page(self, people: list[int], say: Say) -> Page:
        """The notice, which mentions everybody by name."""
        text, entities = "", []
        for each in people:
            known = await self._ledger.people.get(each)
            name = known.name if known and known.name else str(each)
            text += ", " if text else ""
            mentioned = User(id=each, is_bot=False, first_name=name)
            entities.append(
                MessageEntity(type="text_mention", offset=utf16_len(text), length=utf16_len(name), user=mentioned)
            )
            text += name
        words = say(
            "There are many questions here, and Telegram limits how much I can post in a group. I'll answer them "
            "one by one."
        )
        return Page(f"{text}: {words}", tuple(entities))
