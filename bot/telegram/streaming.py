"""Streaming of an answer into a reply: a placeholder, then edits as fast as Telegram allows.

The first words are shown as soon as they arrive. The interval between later edits widens while edits are
being dropped, and slowly narrows again afterwards. In groups, nothing is shown for the first second, so
that a quick answer takes only one call to Telegram. Any of these edits may be dropped, but the final
text, shown by `Reply.finish`, never is.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Self

from aiogram.types import InlineKeyboardMarkup

from bot.i18n import Say
from bot.telegram.errors import Unreachable
from bot.telegram.formatting import markdown_pages, plain_pages
from bot.telegram.reply import Reply
from inference.messages import Delta

GROUP_EDITS: Final = 3
"""How many times slower edits are in groups (limit: 20 messages per minute) than in private chats (60)."""

GROUP_HOLD_SECONDS: Final = 1.0
"""An answer in a group that is complete within this time is sent in a single call, without a placeholder."""

MAX_INTERVAL: Final = 10.0
NARROWING: Final = 0.75
"""The factor for the interval after a successful edit. After a dropped edit the interval doubles."""

TYPING_SECONDS: Final = 4.5
"""The interval of the "typing" status, which apps show for five seconds
(https://core.telegram.org/bots/api#sendchataction)."""


@dataclass(eq=False)
class StreamedAnswer:
    """A context manager that shows an answer as it arrives.

    Use it as `async with StreamedAnswer(…) as answer: answer.show(delta)`. The placeholder is sent `hold`
    seconds after the block is entered. Leaving the block waits for the edit in flight. If showing the answer
    fails with a `DeliveryError`, the error is raised by the next call to `show` or on leaving the block.

    Args:
        reply: The reply that shows the answer.
        say: The translator into the user's language.
        placeholder: The text shown before the first words.
        seconds: The minimum interval between edits.
        markup: The buttons under the unfinished answer.
        hold: The delay in seconds before anything is shown.

    Attributes:
        first_words: When the first words of the answer were shown, in seconds since the Unix epoch; None
            before that.
    """

    reply: Reply
    say: Say
    placeholder: str
    seconds: float
    markup: InlineKeyboardMarkup
    hold: float

    first_words: float | None = field(default=None, init=False)
    _text: str = field(default="", init=False)
    _notice: str = field(default="", init=False)
    _changed: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _closing: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _task: asyncio.Task[None] | None = field(default=None, init=False)

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        assert self._task is not None
        self._closing.set()
        self._changed.set()
        if error is not None and not isinstance(error, Exception):
            self._task.cancel()  # the process is stopping; the update is replayed at the next start
            with suppress(asyncio.CancelledError, Exception):
                await self._task
            return
        await self._task

    def show(self, delta: Delta) -> None:
        """Add `delta` to the answer being shown.

        If an error has ended the edits, it is raised again here.
        """
        assert self._task is not None
        if self._task.done():
            self._task.result()
        if delta.restarted:
            self._text = ""
            self._notice = self.say("One moment, I have to start over…")
        elif delta.waiting is not None:
            self._notice = self._queue_notice(delta.waiting, delta.paused)
        elif delta.text:
            self._text += delta.text
        else:
            return
        self._changed.set()

    def _queue_notice(self, ahead: int, paused: bool) -> str:
        if paused:
            return self.say("I'm busy learning from your votes. I'll answer as soon as I'm done…")
        if ahead == 0:
            return ""
        return self.say.count("{number} question ahead of yours…", "{number} questions ahead of yours…", ahead)

    async def _run(self) -> None:
        if not self.hold:
            await self.reply.show_partial(self.placeholder, self.markup)
        typing = asyncio.create_task(self._type())
        try:
            if self.hold:
                await self._sleep(self.hold)
                if typing.done():
                    typing.result()
                if self._closing.is_set():
                    return
                await self.reply.show_partial(self.placeholder, self.markup)
            await self._edit(typing)
        finally:
            typing.cancel()
            await asyncio.gather(typing, return_exceptions=True)

    async def _edit(self, typing: asyncio.Task[None]) -> None:
        interval = self.seconds
        while True:
            await self._changed.wait()
            if self._closing.is_set():
                return
            if typing.done():
                typing.result()
            self._changed.clear()
            words = markdown_pages(self._text)
            pages = words or plain_pages(self._notice) or plain_pages(self.placeholder)
            if await self.reply.show_partial(pages, self.markup):
                if words and self.first_words is None:
                    self.first_words = time.time()
                interval = max(NARROWING * interval, self.seconds)
            else:
                interval = min(max(2 * interval, 0.1), max(MAX_INTERVAL, self.seconds))
                self._changed.set()
            await self._sleep(interval)

    async def _sleep(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closing.wait()

    async def _type(self) -> None:
        """Show the "typing" status until cancelled.

        Raises:
            Unreachable: The bot cannot write to the chat.
        """
        while True:
            try:
                await self.reply.typing()
            except Unreachable:
                self._changed.set()  # end the edits: the chat can no longer be reached
                raise
            await asyncio.sleep(TYPING_SECONDS)
