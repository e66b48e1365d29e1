"""Our messages that answer one update: sent once, then edited, whatever crashes in between.

A reply is noted in the ledger before it is sent and again with its message id, so the handling of a replayed update
edits what is there. Between Telegram's acceptance and the second note lies the one window in which a crash leaves a
message we do not know of; such replies are counted by the ledger as doubtful. Knows nothing about what is said.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Self

import structlog
from aiogram import Bot
from aiogram.exceptions import TelegramAPIError, TelegramBadRequest, TelegramNotFound
from aiogram.methods import TelegramMethod
from aiogram.types import ForceReply, InlineKeyboardMarkup, LinkPreviewOptions, Message, ReplyParameters

from bot.pages import Page, plain_pages
from bot.telegram import Doubtful, Draft, Glimpse, Typing, Undelivered
from storage.errors import NotSaved
from storage.ledger import Ledger

_NO_PREVIEW: Final = LinkPreviewOptions(is_disabled=True)
_DOUBT_PAUSES: Final = (0.5, 1.0, 2.0, 4.0, 8.0)

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a reply goes: the chat, its forum topic if any, the message it answers (0: none), and whether it quotes it.

    In groups it does, so that everybody sees who was answered.
    """

    chat: int
    topic: int | None = None
    question: int = 0
    quotes: bool = False

    @classmethod
    def of(cls, message: Message) -> Place:
        """Where an answer to `message` belongs."""
        return cls(
            chat=message.chat.id,
            topic=message.message_thread_id if message.is_topic_message else None,
            question=message.message_id,
            quotes=message.chat.type != "private",
        )


class Reply:
    """The answer to one update, on one message or several (slots 0, 1, …)."""

    def __init__(self, bot: Bot, ledger: Ledger, update: int, place: Place) -> None:
        """A reply of which nothing was sent yet; `open` finds out whether that is so."""
        self.place = place
        self.finished = False
        self._bot = bot
        self._ledger = ledger
        self._update = update
        self._messages: dict[int, int] = {}
        self._shown: dict[int, tuple[Page, InlineKeyboardMarkup | None]] = {}

    @classmethod
    async def open(cls, bot: Bot, ledger: Ledger, update: int, place: Place) -> Self:
        """The reply to `update` as an earlier attempt has left it."""
        reply = cls(bot, ledger, update, place)
        known = await ledger.replies(update)
        reply._messages = {each.slot: each.message for each in known if each.message is not None}
        reply.finished = bool(known) and all(each.final for each in known)
        return reply

    async def adopt(self, messages: Sequence[int]) -> None:
        """Go on with messages that answer the same question already: they will show this reply."""
        for slot, message in enumerate(messages):
            if slot not in self._messages:
                await self._announced(slot)
                await self._ledger.sent_reply(self._update, slot, message)
                self._messages[slot] = message

    async def ask(self, text: str) -> None:
        """Ask for an answer by a reply to this message, once."""
        if 0 not in self._messages:
            await self._send(0, Page(text), ForceReply(force_reply=True, selective=True))
        await self._note_final(0)
        self.finished = True

    async def begin(self, text: str, markup: InlineKeyboardMarkup | None = None) -> None:
        """Show the placeholder that will become the answer, on a new message unless there is one already."""
        if 0 in self._messages:
            await self.glimpse([Page(text)], markup)
        else:
            await self._send(0, Page(text), markup)

    async def glimpse(self, pages: Sequence[Page], markup: InlineKeyboardMarkup | None = None) -> bool:
        """Show an unfinished answer, the buttons under its last message, if Telegram takes it at once.

        False if some of it was not shown.
        """
        shown = True
        for slot, page in enumerate(pages):
            buttons = markup if slot == len(pages) - 1 else None
            if self._shown.get(slot) == (page, buttons):
                continue
            if slot not in self._messages:
                await self._send(slot, page, buttons)
                continue
            edit: TelegramMethod[Message | bool] = Glimpse(
                **self._content(page), message_id=self._messages[slot], reply_markup=buttons
            )
            try:
                taken: Message | bool = await self._bot(edit)
            except TelegramBadRequest as error:
                log.info("glimpse refused", error=error.message)
                taken = False
            if taken:
                self._shown[slot] = page, buttons
            shown = shown and bool(taken)
        return shown

    async def typing(self) -> None:
        """Show for some seconds that we are at it, if Telegram takes that at once. Raises `Unreachable`."""
        with suppress(TelegramAPIError):
            await self._bot(Typing(chat_id=self.place.chat, action="typing", message_thread_id=self.place.topic))

    @property
    def begun(self) -> bool:
        """Whether there is a message already."""
        return bool(self._messages)

    @property
    def messages(self) -> tuple[int, ...]:
        """The messages that there are, in their order."""
        return tuple(self._messages[slot] for slot in sorted(self._messages))

    async def draft(self, number: int, page: Page) -> bool | None:
        """Show an unfinished answer as a draft, if Telegram takes it at once. None where it takes no drafts."""
        call: TelegramMethod[bool] = Draft(
            chat_id=self.place.chat,
            draft_id=number,
            message_thread_id=self.place.topic,
            text=page.text,
            entities=list(page.entities),
            can_stop=True,
            keep_on_stop=True,
        )
        try:
            shown: bool = await self._bot(call)
            return shown
        except (TelegramBadRequest, TelegramNotFound) as error:
            log.warning("drafts are refused", chat=self.place.chat, error=error.message)
            return None

    async def finish(self, pages: Sequence[Page] | str, markup: InlineKeyboardMarkup | None = None) -> None:
        """Show the final answer, the buttons under its last message, and take away what is left over.

        `pages` is not empty. Returns when Telegram has taken all of it. Raises `DeliveryError`.
        """
        if isinstance(pages, str):
            pages = plain_pages(pages)
        last = len(pages) - 1
        for slot, page in enumerate(pages):
            await self._settle(slot, page, markup if slot == last else None)
        for slot in [slot for slot in self._messages if slot > last]:
            await self._take_away(slot)
        for slot in sorted(self._messages):
            await self._note_final(slot)
        self.finished = True

    async def _settle(self, slot: int, page: Page, markup: InlineKeyboardMarkup | None) -> None:
        if slot not in self._messages:
            await self._send(slot, page, markup)
            return
        if self._shown.get(slot) == (page, markup):
            return
        try:
            await self._bot.edit_message_text(
                **self._content(page), message_id=self._messages[slot], reply_markup=markup
            )
        except TelegramBadRequest as error:
            if _is_about_markup(error, page):
                await self._settle(slot, Page(page.text), markup)
                return
            # The person deleted it, or it is too old to be edited: say it anew.
            log.info("answer sent anew", update=self._update, error=error.message)
            await self._send(slot, page, markup)

    async def _send(self, slot: int, page: Page, markup: InlineKeyboardMarkup | ForceReply | None) -> None:
        """Send a message for `slot`. One that may have arrived is sent again: better a placeholder twice than none."""
        for pause in _DOUBT_PAUSES:
            known = await self._announced(slot)
            if known is not None and slot not in self._messages:
                self._messages[slot] = known
                if not isinstance(markup, ForceReply):
                    await self._settle(slot, page, markup)
                return
            try:
                message = await self._sent(slot, page, markup)
            except Doubtful as error:
                log.warning("sending again what may have arrived", update=self._update, slot=slot, error=str(error))
                await asyncio.sleep(pause)
                continue
            self._messages[slot] = message.message_id
            try:
                await self._ledger.sent_reply(self._update, slot, message.message_id)
            except NotSaved:
                await self._take_away(slot)  # the next attempt would not know of it
                raise
            self._shown[slot] = page, None if isinstance(markup, ForceReply) else markup
            return
        raise Undelivered(f"sendMessage broke off {len(_DOUBT_PAUSES)} times")

    async def _sent(self, slot: int, page: Page, markup: InlineKeyboardMarkup | ForceReply | None) -> Message:
        try:
            return await self._bot.send_message(
                **self._content(page),
                reply_markup=markup,
                message_thread_id=self.place.topic,
                reply_parameters=self._answers() if slot == 0 else None,
            )
        except TelegramBadRequest as error:
            if not _is_about_markup(error, page):
                raise
            return await self._sent(slot, Page(page.text), markup)

    async def _announced(self, slot: int) -> int | None:
        """Note that a message is about to be sent; the one that was sent for this slot before, if any."""
        return (await self._ledger.begin_reply(self._update, slot, self.place.chat, self.place.question)).message

    async def _note_final(self, slot: int) -> None:
        """Note that a message shows its final text. Where the disk is full, a replay edits it to the same text."""
        with suppress(NotSaved):
            await self._ledger.finish_reply(self._update, slot)

    async def _take_away(self, slot: int) -> None:
        try:
            await self._bot.delete_message(chat_id=self.place.chat, message_id=self._messages[slot])
        except TelegramBadRequest as error:
            log.info("left-over message not deleted", update=self._update, error=error.message)

    def _content(self, page: Page) -> dict[str, Any]:
        """What sending and editing have in common."""
        return {
            "chat_id": self.place.chat,
            "text": page.text,
            "entities": list(page.entities),
            "link_preview_options": _NO_PREVIEW,
        }

    def _answers(self) -> ReplyParameters | None:
        if not self.place.quotes:
            return None
        return ReplyParameters(message_id=self.place.question, allow_sending_without_reply=True)


def _is_about_markup(error: TelegramBadRequest, page: Page) -> bool:
    """Whether Telegram would take the page without its markup, which is worth less than the answer."""
    if not page.entities or "entit" not in error.message.lower():
        return False
    log.warning("markup is refused", error=error.message)
    return True
