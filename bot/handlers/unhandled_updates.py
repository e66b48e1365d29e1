"""Apologies for updates that are not handled because the disk is full or because they failed too often.

A message received while the disk is full is answered once there is space, because Telegram sends it
again or the inbox has stored it. A tap is not handled later, because the user will tap again, and two
taps on a thumb would cancel each other out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

import structlog
from aiogram import Bot
from aiogram.types import Chat, Message, ReplyParameters, Update
from cachetools import LRUCache
from pydantic import ValidationError

from bot.admin.notifications import Notifications
from bot.handlers.button_taps import acknowledge
from bot.i18n import Translator, later
from bot.live_settings import LiveSettings
from bot.telegram.errors import CALL_ERRORS, Doubtful
from bot.telegram.guest_reply import reply_type
from bot.telegram.place import Place
from bot.updates.addressing import spoken_to
from storage.errors import StorageError
from storage.ledger import Ledger

DISK_FULL: Final = later("My disk is full; ask again once my operator has made room.")
GAVE_UP: Final = later(
    "⚠ I gave up on update {update} after several attempts. It stays in the database. I won't report more of these "
    "for an hour. Reason: {reason}"
)
SORRY: Final = later(
    "Sorry, something went wrong and I couldn't answer this. My admins have been notified. Please try again."
)

REMEMBERED: Final = 4096

log = structlog.get_logger()


@dataclass(eq=False)
class Apologies:
    """Sends apologies to the senders of updates that are not handled."""

    bot: Bot
    ledger: Ledger
    settings: LiveSettings
    translator: Translator
    notices: Notifications

    def __post_init__(self) -> None:
        self._answered: LRUCache[int | str, None] = LRUCache(REMEMBERED)

    async def given_up(self, update: int, reason: str) -> None:
        """Apologize to the sender of an update that the bot gave up on, and notify the admins at most once an hour."""
        await self._apologize(update)
        if self.notices.is_news("set aside"):
            await self.notices.notify(GAVE_UP, update=update, reason=reason)

    async def _apologize(self, update: int) -> None:
        """Answer an update's callback query, if any, and apologize in a private chat or to a guest query.

        A malformed update is handled as far as it can be read.
        """
        try:
            payload = json.loads((await self.ledger.inbox.get(update)).payload)
        except (ValueError, StorageError) as error:  # deleted since, or unreadable; admins are notified anyway
            log.warning("apology not sent", update=update, error=str(error))
            return
        tap = payload.get("callback_query")
        try:
            if isinstance(tap, dict) and isinstance(tap.get("id"), str):
                await self.bot.answer_callback_query(tap["id"])
        except CALL_ERRORS as error:
            log.info("tap not answered", update=update, error=str(error))
        found = _guest(payload) or _private_chat(payload)
        if found is None:
            return
        place, person, language = found
        say = self.translator.for_person(await self.ledger.people.get(person), language)
        reply = await reply_type(place).open(self.bot, self.ledger, update, place)
        try:
            await reply.finish(say(SORRY))
        except (*CALL_ERRORS, StorageError) as error:
            log.warning("apology not delivered", chat=place.chat, error=str(error))

    async def disk_full(self, raw: dict[str, Any]) -> bool:
        """Inform the sender of an update or album that the disk is full, unless this method has already done so.

        Args:
            raw: The update as Telegram sent it.

        Returns:
            True if the update is a tap whose sender has now been informed; it needs no further handling.
        """
        try:
            update = Update.model_validate(raw, context={"bot": self.bot})
        except ValueError:  # an unknown shape, which no handler could read either
            return False
        message, tap = update.message or update.edited_message, update.callback_query
        sender = tap.from_user if tap else message.from_user if message else None
        key = (message.media_group_id if message else None) or update.update_id
        if sender is None or key in self._answered:
            return False
        self._answered[key] = None
        person = await self.ledger.people.get(sender.id)
        text = self.translator.for_person(person, sender.language_code)(DISK_FULL)
        try:
            if tap:
                await acknowledge(tap, text)
                if tap.message:
                    await self._replace(update.update_id, tap.message.chat.id, text)
            elif message and await self._would_answer(message, sender.id):
                await self._show(update.update_id, message, text)
        except CALL_ERRORS as error:
            log.warning("sender not informed that the disk is full", update=update.update_id, error=str(error))
            if not isinstance(error, Doubtful):
                del self._answered[key]
            return False
        return tap is not None

    async def _would_answer(self, message: Message, sender: int) -> bool:
        limits, admins = self.settings.now.limits, self.settings.now.telegram.admins
        allowed = sender in admins or limits.allows(sender, message.chat.id)
        return allowed and await spoken_to((message,), self.bot)

    async def _replace(self, update: int, chat: int, text: str) -> bool:
        """Replace the unfinished answer to an update with `text`, and return whether there was such an answer."""
        begun = [each.message for each in await self.ledger.replies.for_update(update) if each.message is not None]
        if begun:
            await self.bot.edit_message_text(text, chat_id=chat, message_id=begun[-1])
        return bool(begun)

    async def _show(self, update: int, message: Message, text: str) -> None:
        if await self._replace(update, message.chat.id, text):
            return
        quoted = ReplyParameters(message_id=message.message_id, allow_sending_without_reply=True)
        await self.bot.send_message(
            message.chat.id,
            text,
            message_thread_id=message.message_thread_id if message.is_topic_message else None,
            reply_parameters=None if message.chat.type == "private" else quoted,
        )


def _guest(payload: dict[str, Any]) -> tuple[Place, int, str | None] | None:
    """Return where to reply to a guest query, and the sender's ID and language; None for any other update."""
    try:
        message = Message.model_validate(payload.get("guest_message"))
    except ValidationError:
        return None
    sender = message.from_user
    return (Place.of(message), sender.id, sender.language_code) if sender and message.guest_query_id else None


def _private_chat(payload: dict[str, Any]) -> tuple[Place, int, str | None] | None:
    """Return an update's private chat, and the sender's ID and language.

    Return None if the update is malformed or not from a private chat.
    """
    tap = payload.get("callback_query")
    said = tap if isinstance(tap, dict) else payload.get("message") or payload.get("edited_message")
    message = tap.get("message") if isinstance(tap, dict) else said
    if not isinstance(said, dict) or not isinstance(message, dict):
        return None
    try:
        chat = Chat.model_validate(message.get("chat"))
    except ValidationError:
        return None
    sender = said.get("from")
    language = sender.get("language_code") if isinstance(sender, dict) else None
    if chat.type != "private":
        return None
    return Place(chat.id), chat.id, language if isinstance(language, str) else None
