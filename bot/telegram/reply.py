"""Replies: the messages that answer one update, sent once and then edited, even after a crash.

In private chats, a message that may have been sent twice is only a placeholder, because the final text is
always an edit; in groups, where calls are scarce, it may be the final text. See docs/promises.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import structlog
from aiogram.exceptions import TelegramAPIError, TelegramBadRequest
from aiogram.methods import TelegramMethod
from aiogram.types import (
    EphemeralMessageParameters,
    ForceReply,
    InlineKeyboardMarkup,
    InputFile,
    InputMediaPhoto,
    Message,
)

from bot.telegram.errors import Doubtful
from bot.telegram.formatting import Page, plain_pages
from bot.telegram.methods import Notice, PartialEdit, Typing, Whisper
from bot.telegram.recorded_messages import RecordedMessages, content, refuses_entities

PENDING: Final = Page("…")
"""The content of a message in a private chat before its first edit."""

log = structlog.get_logger()


class Reply(RecordedMessages):
    """The reply to one update."""

    async def ask(self, text: str) -> None:
        """Send a message that asks the user to reply to it, unless it has already been sent."""
        if 0 not in self._messages:
            await self._send(0, Page(text), ForceReply(force_reply=True, selective=True))
        await self._record_final(0)
        self.finished = True

    async def show_partial(self, pages: Sequence[Page] | str, markup: InlineKeyboardMarkup | None = None) -> bool:
        """Show as much of an unfinished answer as the rate limit allows now; return whether all of it is shown."""
        if isinstance(pages, str):
            pages = plain_pages(pages)
        complete = True
        for slot, page in enumerate(pages):
            buttons = markup if slot == len(pages) - 1 else None
            if slot not in self._messages:
                # A new message may arrive twice. In a private chat, such a message must not contain part of an answer.
                first = PENDING if slot and not self.place.in_group else page
                if not await self._send(slot, first, buttons, optional=self.place.in_group):
                    return False
            if self._shown.get(slot) == (page, buttons):
                continue
            edit: TelegramMethod[Message | bool] = PartialEdit(**self._at(slot), **content(page), reply_markup=buttons)
            try:
                edited: Message | bool = await self._bot(edit)
            except TelegramBadRequest as error:
                log.info("partial edit refused", error=error.message)
                edited = False
            if edited:
                self._shown[slot] = page, buttons
            complete = complete and bool(edited)
        return complete

    async def notice(self, page: Page) -> None:
        """Send a notice that tells group members to wait; the notice is not recorded in the ledger."""
        where = {"message_thread_id": self.place.topic, "reply_parameters": self.place.quoted()}
        await self._bot(Notice(chat_id=self.place.chat, **content(page), **where))

    async def typing(self) -> None:
        """Show the "typing" status, unless it would have to wait for the rate limit.

        Raises:
            Unreachable: The bot cannot write to the chat.
        """
        with suppress(TelegramAPIError):
            await self._bot(Typing(chat_id=self.place.chat, action="typing", message_thread_id=self.place.topic))

    async def finish(self, pages: Sequence[Page] | str, markup: InlineKeyboardMarkup | None = None) -> None:
        """Show the final answer, with the buttons under its last message, and delete surplus messages.

        `pages` must not be empty.

        Raises:
            DeliveryError: Not all of the answer could be shown.
        """
        if isinstance(pages, str):
            pages = plain_pages(pages)
        last = len(pages) - 1
        for slot, page in enumerate(pages):
            await self._show_final(slot, page, markup if slot == last else None)
        await self._finish(last)

    async def whisper(self, text: str, person: int) -> None:
        """Show a final text that concerns only `person`; in a group, hide it from other members if Telegram allows it.

        If a message of the reply was already sent, or Telegram refuses, everybody sees the text.
        """
        if self.place.in_group and not self._messages:
            await self._record(0)
            call = Whisper(
                chat_id=self.place.chat,
                **content(Page(text)),
                message_thread_id=self.place.topic,
                ephemeral_message_parameters=EphemeralMessageParameters(receiver_user_id=person),
            )
            try:
                sent: Message | bool = await self._bot(call)
            except Doubtful as error:
                log.warning("message may have arrived, sent again", update=self._update, error=str(error))
            else:
                if isinstance(sent, Message):
                    if sent.ephemeral_message_id is None:
                        await self._ledger.replies.sent(self._update, 0, sent.message_id)
                    await self._record_final(0)
                    self.finished = True
                    return
                self._unsent.add(0)
        await self.finish(text)

    async def finish_with_picture(
        self, picture: InputFile, caption: str, markup: InlineKeyboardMarkup | None = None
    ) -> None:
        """Show a picture with a caption, and buttons under it, as the final answer.

        Raises:
            DeliveryError: The picture could not be shown.
        """
        media = InputMediaPhoto(media=picture, caption=caption)
        if 0 not in self._messages:
            await self._send(0, PENDING, None)
        try:
            await self._bot.edit_message_media(media, **self._at(0), reply_markup=markup)
        except TelegramBadRequest as error:  # the user deleted the message, or it is too old
            log.info("message replaced", update=self._update, error=error.message)
            await self._send(0, PENDING, None, replace=True)
            await self._bot.edit_message_media(media, **self._at(0), reply_markup=markup)
        await self._finish(0)

    async def _finish(self, last: int) -> None:
        """Delete the messages in slots after `last`, and record the remaining messages as final."""
        for slot in [slot for slot in self._messages if slot > last]:
            await self._delete(slot)
        for slot in sorted(self._messages):
            await self._record_final(slot)
        self.finished = True

    async def _show_final(
        self, slot: int, page: Page, markup: InlineKeyboardMarkup | None, *, replace: bool = False
    ) -> None:
        """Show the final content of a slot.

        In private chats, the final content is always shown by an edit, because an edit can be repeated safely.
        With `replace`, a new message is sent even if the slot already has one.
        """
        if replace or slot not in self._messages:
            first = (page, markup) if self.place.in_group else (PENDING, None)
            await self._send(slot, *first, replace=replace)
        if self._shown.get(slot) == (page, markup):
            return
        try:
            await self._bot.edit_message_text(**self._at(slot), **content(page), reply_markup=markup)
        except TelegramBadRequest as error:
            if refuses_entities(error, page):
                await self._show_final(slot, Page(page.text), markup)
                return
            if replace:
                raise
            # The user deleted the message, or it is too old to be edited.
            log.info("message replaced", update=self._update, error=error.message)
            await self._show_final(slot, page, markup, replace=True)
