"""An answer while it grows: a placeholder, then edits as fast as Telegram allows.

The first words are shown as soon as they exist, later ones at intervals that widen while Telegram drops edits, in this
chat or over all, and narrow again slowly. In groups nothing is shown for the first second, so that an answer which is
there by then takes a single call of the group's small allowance. What is shown here may be skipped; the final text is
shown by `Reply.finish`, which never skips. Nothing here is in flight any more when the screen closes.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

from aiogram.types import InlineKeyboardMarkup

from bot.i18n import Say
from bot.telegram.client import Unreachable
from bot.telegram.formatting import Page, markdown_pages, plain_pages
from bot.telegram.outbox import Reply
from inference.messages import Delta

WIDEST_SECONDS: Final = 10.0
NARROWED: Final = 0.75
"""After an edit that was taken the interval shrinks by this factor; it doubles after one that was not."""

TYPING_SECONDS: Final = 4.5
"""Apps show for five seconds that somebody types (https://core.telegram.org/bots/api#sendchataction)."""


class Screen:
    """Shows the deltas it is given: `async with Screen(…) as screen: screen.show(delta)`.

    Entering begins to send `placeholder`, after `hold` seconds; leaving waits until the last edit under way has
    arrived. `markup` hangs under what is unfinished. An error of the painting (`DeliveryError`) comes out of the next
    `show`, or of leaving.
    """

    def __init__(
        self,
        reply: Reply,
        say: Say,
        placeholder: str,
        seconds: float,
        markup: InlineKeyboardMarkup | None = None,
        hold: float = 0.0,
    ) -> None:
        self._reply = reply
        self._say = say
        self._placeholder = placeholder
        self._seconds = seconds
        self._markup = markup
        self._hold = hold
        self._text = ""
        self._notice = ""
        self._changed = asyncio.Event()
        self._closing = asyncio.Event()
        self._painter: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._painter = asyncio.create_task(self._paint())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._painter is not None
        self._closing.set()
        self._changed.set()
        if error is not None and not isinstance(error, Exception):
            self._painter.cancel()  # the process is stopping: what is under way is replayed at the next start
            with suppress(asyncio.CancelledError, Exception):
                await self._painter
            return
        await self._painter

    def show(self, delta: Delta) -> None:
        """Take in one step of the answer; it is painted soon. Raises what stopped the painting."""
        assert self._painter is not None
        if self._painter.done():
            self._painter.result()
        if delta.restarted:
            self._text = ""
            self._notice = self._say("One moment, I have to start over…")
        elif delta.waiting is not None:
            self._notice = self._queued(delta.waiting, delta.paused)
        elif delta.text:
            self._text += delta.text
        else:
            return
        self._changed.set()

    def _queued(self, before: int, paused: bool) -> str:
        if paused:
            return self._say("I'm busy learning from your votes. I'll answer as soon as I'm done…")
        if before == 0:
            return ""
        return self._say.count("{number} question ahead of yours…", "{number} questions ahead of yours…", before)

    def _pages(self) -> tuple[Page, ...]:
        return markdown_pages(self._text) or plain_pages(self._notice) or plain_pages(self._placeholder)

    async def _paint(self) -> None:
        if not self._hold:
            await self._reply.begin(self._placeholder, self._markup)
        typing = asyncio.create_task(self._type())
        try:
            if self._hold:
                await self._pause(self._hold)
                if typing.done():
                    typing.result()
                if self._closing.is_set():
                    return
                await self._reply.begin(self._placeholder, self._markup)
            await self._keep_painting(typing)
        finally:
            typing.cancel()
            await asyncio.gather(typing, return_exceptions=True)

    async def _keep_painting(self, typing: asyncio.Task[None]) -> None:
        pause = self._seconds
        while True:
            await self._changed.wait()
            if self._closing.is_set():
                return
            if typing.done():
                typing.result()
            self._changed.clear()
            if await self._reply.glimpse(self._pages(), self._markup):
                pause = max(NARROWED * pause, self._seconds)
            else:
                pause = min(max(2 * pause, 0.1), max(WIDEST_SECONDS, self._seconds))
                self._changed.set()
            await self._pause(pause)

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closing.wait()

    async def _type(self) -> None:
        """Show that we are at it, until cancelled. Raises `Unreachable`."""
        while True:
            try:
                await self._reply.typing()
            except Unreachable:
                self._changed.set()  # whoever left while they waited is not to cost another call
                raise
            await asyncio.sleep(TYPING_SECONDS)
