"""Answers to questions, each in a message that shows the text as it grows.

The message begins with a placeholder, then shows the words as they arrive, and ends with the final text
and buttons. New questions, edited questions and regenerated answers are all handled this way. If there
is no answer, the message shows an apology.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Final

from aiogram import Bot
from aiogram.types import InlineKeyboardMarkup

from bot.chat.answer_times import AnswerTimes
from bot.chat.conversation import Conversation
from bot.chat.errors import DeletedMeanwhile, EmptyAnswer, Interrupted, NoPictureYet, Refused
from bot.chat.in_flight import InFlight
from bot.chat.picture_receiver import PictureReceiver
from bot.chat.question import Question, text_of
from bot.chat.throttling import Throttle
from bot.i18n import Say, later
from bot.live_settings import LiveSettings
from bot.telegram.callback_data import Stop
from bot.telegram.formatting import markdown_pages
from bot.telegram.keyboards import duel_buttons, guest_buttons, one_button, rating_buttons
from bot.telegram.rate_limit_notices import WaitNotices
from bot.telegram.reply import Reply
from bot.telegram.streaming import GROUP_EDITS, GROUP_HOLD_SECONDS, StreamedAnswer
from inference.messages import Delta, EngineCrashed, EngineUnavailable, InferenceError, PictureError, PromptTooLong
from storage.chat_records import Exchange
from storage.errors import UnknownRecord
from storage.guests import GUESTS

_APOLOGIES: Final[dict[type[Exception], str]] = {
    NoPictureYet: later("Send me a picture first."),
    DeletedMeanwhile: later("What you asked about has been deleted, so I dropped this question too."),
    UnknownRecord: later("I no longer have that picture. Please send it again."),
    Interrupted: later("I stopped before writing anything."),
    EmptyAnswer: later("I couldn't come up with an answer. Try asking in other words, or send the picture again."),
    PromptTooLong: later("That's more than I can take in at once. Ask a shorter question or send fewer pictures."),
    PictureError: later("I couldn't look at this picture. Please send it as a photo."),
    EngineUnavailable: later("I can't answer right now. Please ask again in a minute or two."),
    EngineCrashed: later("Something went wrong while I was answering; it wasn't your fault. Please ask again."),
    InferenceError: later("I couldn't process that. Ask in other words, or start over with /new."),
}
"""The apology for each error. The first matching class applies."""

UNANSWERED: Final[tuple[type[Exception], ...]] = (Refused, *_APOLOGIES)
"""The errors that end a question with an apology."""


@dataclass(eq=False)
class Responder:
    """Answers questions with messages that show the answer as it grows."""

    bot: Bot
    conversation: Conversation
    pictures: PictureReceiver
    in_flight: InFlight
    throttle: Throttle
    notices: WaitNotices
    times: AnswerTimes
    settings: LiveSettings

    async def answer(self, question: Question, reply: Reply, say: Say, placeholder: str) -> Exchange | None:
        """Answer a question in `reply` and return the exchange; if that fails, apologize there and return None."""
        asked = question.received  # not a monotonic clock: the bot may have restarted since
        try:
            with self.throttle.admitted(question), self.in_flight.register(question) as in_flight:
                async with self._screen(question, reply, say, placeholder) as screen:
                    while True:
                        try:
                            question = await self._completed(question, say)
                            exchange = await self.conversation.ask(question, screen.show, in_flight)
                            break
                        except Interrupted:
                            if not in_flight.edited:
                                raise
                            in_flight.restart()
                            asked, screen.first_words = time.time(), None
                            screen.show(Delta(restarted=True))
        except UNANSWERED as error:
            async with self.notices.during(reply, question.asker, question.update, say):
                await reply.whisper(apology(error, say), question.asker)
            return None
        await self.show(exchange, reply, say)
        shown = time.time()
        self.times.first_word.observe(max((screen.first_words or shown) - asked, 0))
        if exchange.finish != "abort":
            self.times.answer.observe(max(shown - asked, 0))
        return exchange

    async def show(self, exchange: Exchange, reply: Reply, say: Say) -> None:
        """Show the final text of an answer with its buttons, or both answers of an undecided duel."""
        # Only a regenerated answer can be part of a duel.
        duel = await self.conversation.open_duel(exchange) if exchange.replaces else None
        buttons: InlineKeyboardMarkup | None
        if exchange.chat == GUESTS:
            may_be_rated = await self.conversation.may_be_rated(exchange)
            text, buttons = exchange.answer, guest_buttons(exchange.id) if may_be_rated else None
        elif duel is None:
            compare = await self.conversation.invites_comparison(exchange)
            text, buttons = exchange.answer, rating_buttons(exchange.id, say=say, compare=compare)
        else:
            asks = say("Which is better?")
            text = f"1️⃣ {duel.exchange.answer}\n\n2️⃣ {duel.rival.answer}\n\n{asks}"
            buttons = duel_buttons(duel.id, say)
        async with self.notices.during(reply, exchange.asker, exchange.update, say):
            await reply.finish(markdown_pages(text), buttons)

    async def _completed(self, question: Question, say: Say) -> Question:
        """Return the question with its latest text and with its picture files downloaded and stored."""
        settings = self.settings.now.chat
        if question.messages:
            username = str((await self.bot.me()).username)
            text = text_of([self.in_flight.newest(each) for each in question.messages], username)
            text = text[: settings.max_question_characters] or say(settings.default_question)
            question = replace(question, text=text)
        if question.files:
            received = await self.pictures.receive_all(question.files, question.sender, question.update)
            question = replace(question, files=(), pictures=received)
        return question

    def _screen(self, question: Question, reply: Reply, say: Say, placeholder: str) -> StreamedAnswer:
        private = question.chat > 0  # a private chat has the positive ID of its user
        seconds = self.settings.now.telegram.edit_seconds * (1 if private else GROUP_EDITS)
        hold = GROUP_HOLD_SECONDS if question.chat < 0 else 0.0
        stop = one_button(say("⏹ Stop"), Stop(update=question.update))
        return StreamedAnswer(reply, say, placeholder, seconds, stop, hold)


def apology(error: Exception, say: Say) -> str:
    """Return a message that says why there is no answer and what the user can do about it."""
    if isinstance(error, Refused):
        return say(str(error))
    return say(next(sentence for kind, sentence in _APOLOGIES.items() if isinstance(error, kind)))
