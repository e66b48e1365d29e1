"""Notices to group members whose answers are delayed by Telegram's rate limit.

Telegram allows about 20 messages per minute in a group, notices included. Therefore, one notice names
everyone who is waiting, and nobody is named again for several minutes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import structlog
from aiogram.types import User
from aiogram.utils.formatting import TextMention, as_line
from cachetools import TTLCache

from bot.i18n import Say
from bot.telegram.errors import CALL_ERRORS
from bot.telegram.formatting import Page
from bot.telegram.rate_limit import ChatLimiter, RateLimiter
from bot.telegram.reply import Reply
from bot.telegram.sliding_window import Priority
from storage.ledger import Ledger

DELAY_SECONDS: Final = 3.0
POLL_SECONDS: Final = 0.5
REPEAT_SECONDS: Final = 300.0
REMEMBERED: Final = 4096

log = structlog.get_logger()


class WaitNotices:
    """A sender of wait notices, which tracks who is waiting and who has been notified in each group."""

    def __init__(self, limiter: RateLimiter, ledger: Ledger) -> None:
        self._limiter = limiter
        self._ledger = ledger
        self._waiting: dict[tuple[int, int | None], dict[int, int]] = {}  # chat and topic → user → update
        self._notified: TTLCache[tuple[int, int], None] = TTLCache(
            REMEMBERED, REPEAT_SECONDS, lambda: asyncio.get_running_loop().time()
        )

    @asynccontextmanager
    async def during(self, reply: Reply, person: int, update: int, say: Say) -> AsyncIterator[None]:
        """Notify the user if the `with` block takes more than a few seconds to send `reply` to a group."""
        place = reply.place
        limiter = self._limiter.chat(place.chat)
        if not limiter.group or (place.chat, person) in self._notified:
            yield
            return
        here = self._waiting.setdefault((place.chat, place.topic), {})
        here[person] = update
        notice = asyncio.create_task(self._notify(reply, limiter, person, here, say))
        try:
            yield
        finally:
            notice.cancel()
            await asyncio.gather(notice, return_exceptions=True)
            if here.get(person) == update:
                del here[person]
            if not here:
                self._waiting.pop((place.chat, place.topic), None)

    async def _notify(self, reply: Reply, limiter: ChatLimiter, person: int, here: dict[int, int], say: Say) -> None:
        await asyncio.sleep(DELAY_SECONDS)
        while person in here and not limiter.has_capacity(Priority.NOTICE):  # noqa: ASYNC110 - no event to wait for
            await asyncio.sleep(POLL_SECONDS)
        people = [each for each in here if (reply.place.chat, each) not in self._notified]
        if person not in people:
            return
        here.clear()
        self._notified.update(dict.fromkeys((reply.place.chat, each) for each in people))
        try:
            await reply.notice(await self._page(people, say))
        except CALL_ERRORS as error:
            log.warning("wait notice not sent", chat=reply.place.chat, error=str(error))

    async def _page(self, people: list[int], say: Say) -> Page:
        """Return a notice that mentions each of `people` by name."""
        mentions = []
        for each in people:
            known = await self._ledger.people.get(each)
            name = known.name if known and known.name else str(each)
            mentions.append(TextMention(name, user=User(id=each, is_bot=False, first_name=name)))
        words = say(
            "There are many questions here, and Telegram limits how much I can post in a group. I'll answer them "
            "one by one."
        )
        text, entities = as_line(*mentions, end=f": {words}", sep=", ").render()
        return Page(text, tuple(entities))
