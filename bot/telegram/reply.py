"""Replies: the messages that answer one update, sent once and then edited, even after a crash.

A reply is recorded in the ledger before it is sent and again, with its message ID, after it has been
sent, so that a replayed update edits the existing message. A crash or a broken connection between the
two records may leave a message whose ID is unknown; the ledger counts such replies as doubtful. In
private chats, such a message is only a placeholder, because the final text is always an edit; in groups,
where calls are scarce, it may be the final text. See docs/promises.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final, Self

import structlog
from aiogram import Bot
from aiogram.exceptions import TelegramAPIError, TelegramBadRequest
from aiogram.methods import SendMessage, TelegramMethod
from aiogram.types import (
    EphemeralMessageParameters,
    ForceReply,
    InlineKeyboardMarkup,
    InputFile,
    InputMediaPhoto,
    LinkPreviewOptions,
    Message,
    ReplyParameters,
)

from bot.telegram.client import Doubtful, Notice, PartialEdit, Placeholder, Typing, Undelivered, Whisper
from bot.telegram.formatting import Page, plain_pages
from storage.errors import NotSaved
from storage.guests import GUESTS
from storage.ledger import Ledger

NO_PREVIEW: Final = LinkPreviewOptions(is_disabled=True)
PENDING: Final = Page("…")
"""The content of a message in a private chat before its first edit."""

_RESEND_PAUSES: Final = (0.5, 1.0, 2.0, 4.0, 8.0)

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a reply.

    Attributes:
        chat: ID of the chat.
        topic: ID of the forum topic, or None.
        question: ID of the message being answered, or 0 if unknown.
        quotes: Whether the reply quotes the question, as it does in groups.
        guest: ID of the guest query that the reply answers; empty if the bot is a member of the chat.
    """

    chat: int
    topic: int | None = None
    question: int = 0
    quotes: bool = False
    guest: str = ""

    @classmethod
    def of(cls, message: Message) -> Place:
        """Return the place where an answer to `message` belongs."""
        if message.guest_query_id:
            return cls(chat=GUESTS, guest=message.guest_query_id)
        return cls(
            chat=message.chat.id,
            topic=message.message_thread_id if message.is_topic_message else None,
            question=message.message_id,
            quotes=message.chat.type != "private",
        )


class Reply:
    """The reply to one update: one or more messages, in slots numbered from 0."""

    def __init__(self, bot: Bot, ledger: Ledger, update: int, place: Place) -> None:
        """Create a reply of which nothing has been sent; use `open` if an earlier attempt may have sent something."""
        self.place = place
        self.finished = False
        self._bot = bot
        self._ledger = ledger
        self._update = update
        self._messages: dict[int, int | str] = {}
        self._shown: dict[int, tuple[Page, InlineKeyboardMarkup | None]] = {}
        self._unsent: set[int] = set()  # slots that are recorded but certainly not sent

    @classmethod
    async def open(cls, bot: Bot, ledger: Ledger, update: int, place: Place) -> Self:
        """Return the reply to `update` as earlier attempts left it."""
        reply = cls(bot, ledger, update, place)
        known = await ledger.replies.for_update(update)
        reply._messages = {each.slot: shown for each in known if (shown := each.inline or each.message) is not None}
        if known:
            reply.place = replace(place, topic=known[0].topic or place.topic)
        reply.finished = bool(known) and all(each.final for each in known)
        return reply

    @property
    def begun(self) -> bool:
        """Whether a message of the reply has been sent."""
        return bool(self._messages)

    @property
    def messages(self) -> tuple[int | str, ...]:
        """The IDs of the reply's messages, in the order of their slots."""
        return tuple(self._messages[slot] for slot in sorted(self._messages))

    async def adopt(self, messages: Sequence[int]) -> None:
        """Use existing messages for this reply, such as those of an earlier answer to the question."""
        for slot, message in enumerate(messages):
            if slot not in self._messages:
                await self._record(slot)
                await self._ledger.replies.sent(self._update, slot, message)
                self._messages[slot] = message

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
                # A sent message may arrive twice. In a private chat that must not be part of an answer.
                content = PENDING if slot and not self._in_group else page
                if not await self._send(slot, content, buttons, optional=self._in_group):
                    return False
            if self._shown.get(slot) == (page, buttons):
                continue
            edit: TelegramMethod[Message | bool] = PartialEdit(
                **self._at(slot), **self._content(page), reply_markup=buttons
            )
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
        where = {"message_thread_id": self.place.topic, "reply_parameters": self._quoted()}
        await self._bot(Notice(chat_id=self.place.chat, **self._content(page), **where))

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
        """Show a final text that concerns only `person`, in a group so that only they see it, if Telegram allows that.

        If a message of the reply has been sent, or Telegram refuses, everybody sees the text.
        """
        if self._in_group and not self._messages:
            await self._record(0)
            call = Whisper(
                chat_id=self.place.chat,
                **self._content(Page(text)),
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

    @property
    def _in_group(self) -> bool:
        return self.place.chat < 0  # the ID of a private chat is its user's, and positive

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
            content = (page, markup) if self._in_group else (PENDING, None)
            await self._send(slot, *content, replace=replace)
        if self._shown.get(slot) == (page, markup):
            return
        try:
            await self._bot.edit_message_text(**self._at(slot), **self._content(page), reply_markup=markup)
        except TelegramBadRequest as error:
            if _refuses_entities(error, page):
                await self._show_final(slot, Page(page.text), markup)
                return
            if replace:
                raise
            # The user deleted the message, or it is too old to be edited.
            log.info("message replaced", update=self._update, error=error.message)
            await self._show_final(slot, page, markup, replace=True)

    async def _send(
        self,
        slot: int,
        page: Page,
        markup: InlineKeyboardMarkup | ForceReply | None,
        *,
        replace: bool = False,
        optional: bool = False,
    ) -> bool:
        """Send the message of a slot.

        If the message may or may not have arrived, it is sent again: twice is better than never. With `replace`,
        it takes the place of a message that can no longer be edited.

        Returns:
            False if an `optional` message was not sent because the chat has no capacity, otherwise True.
        """
        for pause in _RESEND_PAUSES:
            if slot not in self._unsent:
                known = await self._record(slot)
                if known is not None and not replace:
                    self._messages[slot] = known
                    return True
            try:
                message = await self._call_send(slot, page, markup, Placeholder if optional else SendMessage)
            except Doubtful as error:
                log.warning("message may have arrived, sent again", update=self._update, slot=slot, error=str(error))
                self._unsent.discard(slot)
                await asyncio.sleep(pause)
                continue
            if message is None:
                self._unsent.add(slot)
                return False
            self._unsent.discard(slot)
            self._messages[slot] = message
            try:
                await self._ledger.replies.sent(self._update, slot, message)
            except NotSaved:
                await self._delete(slot)  # the next attempt would not know of the message
                raise
            self._shown[slot] = page, None if isinstance(markup, ForceReply) else markup
            return True
        raise Undelivered(f"sendMessage broke off {len(_RESEND_PAUSES)} times")

    async def _call_send(
        self, slot: int, page: Page, markup: InlineKeyboardMarkup | ForceReply | None, kind: type[SendMessage]
    ) -> int | str | None:
        """Send a message, and return its ID, or None if the call was dropped."""
        send: TelegramMethod[Any] = kind(
            chat_id=self.place.chat,
            **self._content(page),
            reply_markup=markup,
            message_thread_id=self.place.topic,
            reply_parameters=self._quoted() if slot == 0 else None,
        )
        try:
            sent: Message | bool = await self._bot(send)
            return sent.message_id if isinstance(sent, Message) else None
        except TelegramBadRequest as error:
            if not _refuses_entities(error, page):
                raise
            return await self._call_send(slot, Page(page.text), markup, kind)

    async def _record(self, slot: int) -> int | str | None:
        """Record that the message of a slot is about to be sent.

        Returns:
            The ID of the message if it was sent before, otherwise None.
        """
        place = self.place
        known = await self._ledger.replies.begin(self._update, slot, place.chat, place.question, place.topic)
        return known.inline or known.message

    async def _record_final(self, slot: int) -> None:
        with suppress(NotSaved):  # a replay edits the message to the same text
            await self._ledger.replies.finish(self._update, slot)

    async def _delete(self, slot: int) -> None:
        try:
            await self._bot.delete_message(**self._at(slot))
        except TelegramBadRequest as error:
            log.info("message not deleted", update=self._update, error=error.message)

    def _at(self, slot: int) -> dict[str, Any]:
        """Return the parameters that identify the message of a slot."""
        message = self._messages[slot]
        if isinstance(message, str):
            return {"inline_message_id": message}
        return {"chat_id": self.place.chat, "message_id": message}

    def _content(self, page: Page) -> dict[str, Any]:
        return {
            "text": page.text,
            "entities": list(page.entities),
            "link_preview_options": NO_PREVIEW,
        }

    def _quoted(self) -> ReplyParameters | None:
        quoted = ReplyParameters(message_id=self.place.question, allow_sending_without_reply=True)
        elsewhere = self.place.topic is not None and not self._in_group  # the question may be outside the topic
        return quoted if self.place.quotes and not elsewhere else None


def _refuses_entities(error: TelegramBadRequest, page: Page) -> bool:
    """Return whether Telegram refused only the formatting of `page`, so that its text can still be sent."""
    if not page.entities or "entit" not in error.message.lower():
        return False
    log.warning("entities refused", error=error.message)
    return True
