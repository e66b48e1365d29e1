"""Notes to users whose votes helped to train the live model.

A user who wants notes gets one for each such model, in a private chat.
"""

from __future__ import annotations

import structlog
from aiogram import Bot
from aiogram.exceptions import TelegramAPIError

from bot.chat.conversation import Conversation
from bot.chat.errors import EmptyAnswer, NoPictureYet
from bot.i18n import Translator, later
from inference.messages import InferenceError
from storage.chat_records import Exchange
from storage.errors import UnknownRecord
from storage.learning_records import Model
from storage.ledger import Ledger
from storage.teachers import Teacher

NOTE = later(
    "A model that learned from your votes is live. You once asked: {question}\n\nYou liked this answer: "
    "{before}\n\nNow I'd say: {now}\n\n/privacy turns these messages off."
)

log = structlog.get_logger()


class TeacherNotes:
    """Sends notes to users whose votes helped to train the live model."""

    def __init__(self, bot: Bot, ledger: Ledger, conversation: Conversation, translator: Translator) -> None:
        self._bot = bot
        self._ledger = ledger
        self._conversation = conversation
        self._translator = translator
        self._seen = ""  # the live model whose notes have all been sent

    async def send(self) -> None:
        """Send the notes about the live model that are due.

        Raises:
            StorageError: The ledger cannot be read or written.
        """
        live = await self._ledger.models.live()
        if live is None or live.id == self._seen:
            return
        for each in await self._ledger.teachers.waiting(live) if live.run is not None else []:
            await self._ledger.teachers.note(live, each.person)
            await self._send(live, each)
        self._seen = live.id

    async def _example(self, teacher: Teacher) -> tuple[Exchange, str]:
        """Return the newest exchange whose answer has changed (if none has, the oldest), and the new answer."""
        for exchange in teacher.exchanges:
            now = await self._conversation.answer_now(exchange)
            if now != exchange.answer:
                break
        return exchange, now

    async def _send(self, live: Model, teacher: Teacher) -> None:
        person = await self._ledger.people.get(teacher.person)
        if person is None:
            return
        say = self._translator.for_person(person)
        try:
            exchange, now = await self._example(teacher)
            text = say(NOTE, question=exchange.question, before=exchange.answer, now=now)
            await self._bot.send_message(teacher.person, text)
        except (InferenceError, EmptyAnswer, NoPictureYet, UnknownRecord, TelegramAPIError) as error:
            log.info("note to a user not sent", model=live.id, reason=type(error).__name__)
