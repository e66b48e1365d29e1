"""The messages of a reply, in numbered slots, each of which is recorded in the ledger before and after it is sent.

A replayed update therefore edits the existing message. A crash or a broken connection between the two
records may leave a message whose ID is unknown; the ledger counts such replies as doubtful.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final, Self

import structlog
from aiogram import Bot
from aiogram.exceptions import TelegramBadRequest
from aiogram.methods import SendMessage, TelegramMethod
from aiogram.types import ForceReply, InlineKeyboardMarkup, LinkPreviewOptions, Message

from bot.telegram.errors import Doubtful, Undelivered
from bot.telegram.formatting import Page
from bot.telegram.methods import Placeholder
from bot.telegram.place import Place
from storage.errors import NotSaved
from storage.ledger import Ledger

NO_PREVIEW: Final = LinkPreviewOptions(is_disabled=True)

_RESEND_PAUSES: Final = (0.5, 1.0, 2.0, 4.0, 8.0)

log = structlog.get_logger()


class RecordedMessages:
    """The messages that answer one update, in slots numbered from 0."""

    def __init__(self, bot: Bot, ledger: Ledger, update: int, place: Place) -> None:
        """Create a reply without messages; use `open` if an earlier attempt may have sent some."""
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
                await self._delete(slot)  # the next attempt would not know about the message
                raise
            self._shown[slot] = page, None if isinstance(markup, ForceReply) else markup
            return True
        raise Undelivered(f"sendMessage was interrupted {len(_RESEND_PAUSES)} times")

    async def _call_send(
        self, slot: int, page: Page, markup: InlineKeyboardMarkup | ForceReply | None, kind: type[SendMessage]
    ) -> int | str | None:
        """Send a message, and return its ID, or None if the call was dropped."""
        send: TelegramMethod[Any] = kind(
            chat_id=self.place.chat,
            **content(page),
            reply_markup=markup,
            message_thread_id=self.place.topic,
            reply_parameters=self.place.quoted() if slot == 0 else None,
        )
        try:
            sent: Message | bool = await self._bot(send)
            return sent.message_id if isinstance(sent, Message) else None
        except TelegramBadRequest as error:
            if not refuses_entities(error, page):
                raise
            return await self._call_send(slot, Page(page.text), markup, kind)

    async def _record(self, slot: int) -> int | str | None:
        """Record that the message of a slot is about to be sent.

        Returns:
            The ID of the message if it was sent before, otherwise None.
        """
        place = self.place
        known = await self._ledger.replies.begin(
            self._update, slot, place.chat, question=place.question, topic=place.topic
        )
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


def content(page: Page) -> dict[str, Any]:
    """Return a page as parameters of a call that sends or edits a message."""
    return {"text": page.text, "entities": list(page.entities), "link_preview_options": NO_PREVIEW}


def refuses_entities(error: TelegramBadRequest, page: Page) -> bool:
    """Return whether Telegram refused only the formatting of `page`, so that its text can still be sent."""
    if not page.entities or "entit" not in error.message.lower():
        return False
    log.warning("entities refused", error=error.message)
    return True
