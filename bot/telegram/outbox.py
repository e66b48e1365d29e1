"""The outbox of replies: messages that answer one update, sent once and then edited, whatever crashes in between.

A reply is noted in the ledger before it is sent and again with its message id, so the handling of a replayed update
edits what is there. Between Telegram's acceptance and the second note lies the one window in which a crash, or a broken
connection, leaves a message we do not know of; such replies are counted by the ledger as doubtful. In private chats
that message is a placeholder, since the final text is always an edit; in groups, whose allowance is small, it may be
the final text. docs/promises.md states what follows for each kind of message.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Self

import structlog
from aiogram import Bot
from aiogram.exceptions import TelegramAPIError, TelegramBadRequest
from aiogram.methods import SendMessage, TelegramMethod
from aiogram.types import (
    ForceReply,
    InlineKeyboardMarkup,
    InputFile,
    InputMediaPhoto,
    LinkPreviewOptions,
    Message,
    ReplyParameters,
)

from bot.telegram.client import Doubtful, Glimpse, Notice, Placeholder, Typing, Undelivered
from bot.telegram.formatting import Page, plain_pages
from storage.errors import NotSaved
from storage.ledger import Ledger

_NO_PREVIEW: Final = LinkPreviewOptions(is_disabled=True)
PENDING: Final = Page("…")
"""What a message shows in a private chat before its first content."""

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
        self._unsent: set[int] = set()  # slots that are announced and were certainly not sent

    @classmethod
    async def open(cls, bot: Bot, ledger: Ledger, update: int, place: Place) -> Self:
        """The reply to `update` as an earlier attempt has left it."""
        reply = cls(bot, ledger, update, place)
        known = await ledger.replies.for_update(update)
        reply._messages = {each.slot: each.message for each in known if each.message is not None}
        reply.finished = bool(known) and all(each.final for each in known)
        return reply

    async def adopt(self, messages: Sequence[int]) -> None:
        """Go on with messages that answer the same question already: they will show this reply."""
        for slot, message in enumerate(messages):
            if slot not in self._messages:
                await self._announced(slot)
                await self._ledger.replies.sent(self._update, slot, message)
                self._messages[slot] = message

    async def ask(self, text: str) -> None:
        """Ask for an answer by a reply to this message, once."""
        if 0 not in self._messages:
            await self._send(0, Page(text), ForceReply(force_reply=True, selective=True))
        await self._note_final(0)
        self.finished = True

    async def begin(self, text: str, markup: InlineKeyboardMarkup | None = None) -> None:
        """Show the placeholder that will become the answer, on a new message unless there is one already.

        In groups only if there is room for it.
        """
        await self.glimpse([Page(text)], markup)

    async def glimpse(self, pages: Sequence[Page], markup: InlineKeyboardMarkup | None = None) -> bool:
        """Show an unfinished answer, the buttons under its last message, if Telegram takes it at once.

        False if some of it was not shown.
        """
        shown = True
        for slot, page in enumerate(pages):
            buttons = markup if slot == len(pages) - 1 else None
            if slot not in self._messages:
                # What is sent may arrive twice: in a private chat that is never the words of an answer.
                content = PENDING if slot and not self._in_group else page
                if not await self._send(slot, content, buttons, spare=self._in_group):
                    return False
            if self._shown.get(slot) == (page, buttons):
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

    async def notice(self, page: Page) -> None:
        """Tell people of the group that they have to wait: at most once, and noted nowhere."""
        await self._bot(
            Notice(**self._content(page), message_thread_id=self.place.topic, reply_parameters=self._quoted())
        )

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

    async def finish(self, pages: Sequence[Page] | str, markup: InlineKeyboardMarkup | None = None) -> None:
        """Show the final answer, the buttons under its last message, and take away what is left over.

        `pages` is not empty. Returns when Telegram has taken all of it. Raises `DeliveryError`.
        """
        if isinstance(pages, str):
            pages = plain_pages(pages)
        last = len(pages) - 1
        for slot, page in enumerate(pages):
            await self._settle(slot, page, markup if slot == last else None)
        await self._finished(last)

    async def finish_with_picture(self, picture: InputFile, caption: str) -> None:
        """Show a picture as the answer. Raises `DeliveryError`."""
        media = InputMediaPhoto(media=picture, caption=caption)
        if 0 not in self._messages:
            await self._send(0, PENDING, None)
        for last in (False, True):
            try:
                await self._bot.edit_message_media(media, chat_id=self.place.chat, message_id=self._messages[0])
                break
            except TelegramBadRequest as error:
                if last:
                    raise
                log.info("picture sent anew", update=self._update, error=error.message)
                await self._send(0, PENDING, None, anew=True)
        await self._finished(0)

    @property
    def _in_group(self) -> bool:
        return self.place.chat < 0  # a private chat's id is its person's

    async def _finished(self, last: int) -> None:
        """Take away the messages after slot `last`, and note that the others show what they shall."""
        for slot in [slot for slot in self._messages if slot > last]:
            await self._take_away(slot)
        for slot in sorted(self._messages):
            await self._note_final(slot)
        self.finished = True

    async def _settle(self, slot: int, page: Page, markup: InlineKeyboardMarkup | None, *, anew: bool = False) -> None:
        """Show the final content of a slot: in private chats by an edit, which can be repeated without harm."""
        if anew or slot not in self._messages:
            content = (page, markup) if self._in_group else (PENDING, None)
            await self._send(slot, *content, anew=anew)
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
            if anew:
                raise
            # The person deleted it, or it is too old to be edited: say it anew.
            log.info("answer sent anew", update=self._update, error=error.message)
            await self._settle(slot, page, markup, anew=True)

    async def _send(
        self,
        slot: int,
        page: Page,
        markup: InlineKeyboardMarkup | ForceReply | None,
        *,
        anew: bool = False,
        spare: bool = False,
    ) -> bool:
        """Send the message of a slot. One that may have arrived is sent again: better twice than never.

        `anew` replaces a message that is gone. False where a `spare` one was not sent, because its chat has no room.
        """
        for pause in _DOUBT_PAUSES:
            if slot not in self._unsent:
                known = await self._announced(slot)
                if known is not None and not anew:
                    self._messages[slot] = known
                    return True
            try:
                message = await self._sent(slot, page, markup, spare=spare)
            except Doubtful as error:
                log.warning("sending again what may have arrived", update=self._update, slot=slot, error=str(error))
                self._unsent.discard(slot)
                await asyncio.sleep(pause)
                continue
            if not isinstance(message, Message):
                self._unsent.add(slot)
                return False
            self._unsent.discard(slot)
            self._messages[slot] = message.message_id
            try:
                await self._ledger.replies.sent(self._update, slot, message.message_id)
            except NotSaved:
                await self._take_away(slot)  # the next attempt would not know of it
                raise
            self._shown[slot] = page, None if isinstance(markup, ForceReply) else markup
            return True
        raise Undelivered(f"sendMessage broke off {len(_DOUBT_PAUSES)} times")

    async def _sent(
        self, slot: int, page: Page, markup: InlineKeyboardMarkup | ForceReply | None, *, spare: bool
    ) -> Message | bool:
        send: TelegramMethod[Any] = (Placeholder if spare else SendMessage)(
            **self._content(page),
            reply_markup=markup,
            message_thread_id=self.place.topic,
            reply_parameters=self._quoted() if slot == 0 else None,
        )
        try:
            sent: Message | bool = await self._bot(send)
            return sent
        except TelegramBadRequest as error:
            if not _is_about_markup(error, page):
                raise
            return await self._sent(slot, Page(page.text), markup, spare=spare)

    async def _announced(self, slot: int) -> int | None:
        """Note that a message is about to be sent; the one that was sent for this slot before, if any."""
        return (await self._ledger.replies.begin(self._update, slot, self.place.chat, self.place.question)).message

    async def _note_final(self, slot: int) -> None:
        """Note that a message shows its final text. Where the disk is full, a replay edits it to the same text."""
        with suppress(NotSaved):
            await self._ledger.replies.finish(self._update, slot)

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

    def _quoted(self) -> ReplyParameters | None:
        if not self.place.quotes:
            return None
        return ReplyParameters(message_id=self.place.question, allow_sending_without_reply=True)


def _is_about_markup(error: TelegramBadRequest, page: Page) -> bool:
    """Whether Telegram would take the page without its markup, which is worth less than the answer."""
    if not page.entities or "entit" not in error.message.lower():
        return False
    log.warning("markup is refused", error=error.message)
    return True
