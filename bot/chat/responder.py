"""Giving an answer: a placeholder with ⏹, the words as they come, the final text with the thumbs, or a kind sentence.

The one way for questions, edited questions and questions asked once more. Knows what is said when there is no answer;
leaves the record to `conversation`, the painting to `streaming`, and who wants it stopped to `steering`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from bot.chat.conversation import Conversation, EmptyAnswer, Interrupted, NoPictureYet, Question
from bot.chat.history import Forgotten
from bot.chat.images import PictureRefused
from bot.chat.in_flight import Asked, Steering
from bot.chat.throttling import Limits, TooMuch
from bot.i18n import Say
from bot.settings import TelegramSettings
from bot.telegram.formatting import markdown_pages
from bot.telegram.keyboards import rating, stopping
from bot.telegram.outbox import Reply
from bot.telegram.streaming import Screen
from bot.telegram.wait_notices import Waiting
from inference.messages import Delta, EngineCrashed, EngineUnavailable, InferenceError, PictureError, PromptTooLong
from storage.errors import UnknownRecord
from storage.records import Exchange

GROUP_EDITS: Final = 3
"""Groups take 20 messages a minute, private chats 60: their edits come that many times slower."""

GROUP_HOLD_SECONDS: Final = 1.0
"""An answer in a group that is there within this time takes one call: it has no placeholder."""


class Answers:
    """Answers questions, one at a time for each conversation, and keeps them steerable meanwhile."""

    def __init__(
        self,
        conversation: Conversation,
        steering: Steering,
        limits: Limits,
        settings: TelegramSettings,
        waiting: Waiting,
    ) -> None:
        self._conversation = conversation
        self._steering = steering
        self._limits = limits
        self._settings = settings
        self._waiting = waiting

    async def give(
        self,
        asked: Asked,
        question: Callable[[], Awaitable[Question]],
        reply: Reply,
        say: Say,
        *,
        placeholder: str,
    ) -> Exchange | None:
        """Answer on `reply`, or say there why not; the exchange if there is one.

        `question` is awaited again each time the question has been edited while it was being answered.
        """
        try:
            with self._limits.answering(asked), self._steering.answering(asked) as underway:
                async with self._screen(asked, reply, say, placeholder) as screen:
                    while True:
                        try:
                            found = await question()
                            exchange = await self._conversation.ask(found, screen.show, underway.brake)
                            break
                        except Interrupted:
                            if not underway.edited:
                                raise
                            underway.begin_anew()
                            screen.show(Delta(restarted=True))
        except (
            *(TooMuch, PictureRefused, NoPictureYet, Interrupted, EmptyAnswer, Forgotten),
            *(InferenceError, UnknownRecord),
        ) as error:
            async with self._waiting.telling(reply, asked.asker, asked.update, say):
                await reply.finish(sorry(error, say))
            return None
        await self._show(exchange, reply, say)
        return exchange

    async def again(self, former: Exchange, asked: Asked, reply: Reply, say: Say) -> Exchange | None:
        """Another answer to the question of an exchange, in whose place it stands from then on."""

        async def question() -> Question:
            return await self._conversation.once_more(former, asked.update)

        return await self.give(asked, question, reply, say, placeholder=say("Let me think again…"))

    async def show_again(self, exchange: Exchange, reply: Reply, say: Say) -> None:
        """Show what an interrupted attempt has recorded."""
        await self._show(exchange, reply, say)

    async def _show(self, exchange: Exchange, reply: Reply, say: Say) -> None:
        """The final text of an answer, with what to do about it."""
        async with self._waiting.telling(reply, exchange.asker, exchange.update, say):
            await reply.finish(markdown_pages(exchange.answer), rating(exchange.id, say=say))

    def _screen(self, asked: Asked, reply: Reply, say: Say, placeholder: str) -> Screen:
        private = asked.chat > 0  # a private chat's id is its person's
        seconds = self._settings.edit_seconds * (1 if private else GROUP_EDITS)
        hold = 0.0 if private else GROUP_HOLD_SECONDS
        return Screen(reply, say, placeholder, seconds, stopping(asked.update, say), hold)


def sorry(error: Exception, say: Say) -> str:
    """What to say, and what to do, when there is no answer."""
    if isinstance(error, PictureRefused | TooMuch):
        return say(error.sentence, **error.values)
    if isinstance(error, NoPictureYet):
        return say(
            "I talk about pictures, and I have not seen one yet. Please send me one, with your question or before it."
        )
    if isinstance(error, Forgotten):
        return say("What you ask about has been deleted meanwhile, so I have dropped this question as well.")
    if isinstance(error, UnknownRecord):
        return say("I do not have that picture any more. Please send it again.")
    if isinstance(error, Interrupted):
        return say("I have stopped before the first word.")
    if isinstance(error, EmptyAnswer):
        return say("I am at a loss for words. Please ask in other words, or send the picture again.")
    if isinstance(error, PromptTooLong):
        return say("That is more than I can keep in mind at once. Please ask more briefly or send fewer pictures.")
    if isinstance(error, PictureError):
        return say("I could not look at this picture. Please send it as a photo.")
    if isinstance(error, EngineUnavailable):
        return say("I cannot answer just now. Please ask again in a minute or two.")
    if isinstance(error, EngineCrashed):
        return say("Something broke while I was answering, and it was not your fault. Please ask once more.")
    return say("I could not make sense of that. Please ask in other words, or begin anew with /new.")
