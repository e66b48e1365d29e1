"""Prompts built from the history of a conversation, which is stored in the ledger.

The model sees the newest turns. The newest picture is always included, even if its turn has been dropped.
If old turns have to be dropped, several are dropped at once, so that the beginning of the prompt stays the
same for the next few questions and the engine finds it in its cache. The history is shortened by
`inference.chat_format.template.fit`, so that training can rebuild the same prompt and recognize it by
its hash.
"""

from __future__ import annotations

import math
import secrets
from typing import Final

from bot.chat.errors import NoPictureYet
from bot.chat.picture_reencoding import StoredPictures
from bot.chat.question import Question
from bot.live_settings import LiveSettings
from inference.chat_format.template import fit, question_count
from inference.messages import Picture, Prompt, Role, Sampling, Turn
from storage.chat_records import Exchange
from storage.ledger import Ledger

SEED_BITS: Final = 31

REGENERATED_TEMPERATURE: Final = 0.8
"""The temperature of a regenerated answer if `chat.temperature` is 0, which would only repeat the former answer."""


def chat_key(session: int) -> str:
    """Return the name by which engines identify the conversation of a session."""
    return f"session-{session}"


class History:
    """Builds prompts from conversations; each conversation is a session in the ledger."""

    def __init__(self, ledger: Ledger, pictures: StoredPictures, settings: LiveSettings) -> None:
        self._ledger = ledger
        self._pictures = pictures
        self._settings = settings

    async def prompt(self, session: int, question: Question) -> Prompt:
        """Return the prompt for a question, including the history of its conversation.

        Raises:
            NoPictureYet: Neither the question nor the conversation has a picture.
            UnknownRecord: A picture was deleted.
        """
        settings, persona = self._settings.now.chat, self._settings.persona
        earlier = await self._ledger.exchanges.history_since(
            session,
            settings.history_pictures - bool(question.pictures),
            question.replaces.position if question.replaces else None,
        )
        if not (earlier or question.pictures):
            raise NoPictureYet
        turns: list[Turn] = []
        for each in earlier:
            turns += (Turn(Role.USER, each.question, await self.pictures(each)), Turn(Role.ASSISTANT, each.answer))
        turns.append(Turn(Role.USER, question.text, question.pictures))
        temperature = settings.temperature or (REGENERATED_TEMPERATURE if question.replaces else 0.0)
        prompt = Prompt(
            system=persona,
            turns=tuple(turns),
            chat=chat_key(session),
            sampling=Sampling(temperature, settings.top_p, settings.max_new_tokens, secrets.randbits(SEED_BITS)),
        )
        return _cut(prompt, settings.history_turns)

    async def pictures(self, exchange: Exchange) -> tuple[Picture, ...]:
        """Return the pictures of an exchange's question.

        Raises:
            UnknownRecord: A picture was deleted.
        """
        return tuple([await self._pictures.get(sha256) for sha256 in exchange.pictures])

    async def subject(self, exchange: Exchange) -> tuple[Picture, ...]:
        """Return the pictures an exchange is about: its own or, if it has none, the newest ones before it."""
        if exchange.pictures:
            return await self.pictures(exchange)
        before = await self._ledger.exchanges.history_since(exchange.session, 1, exchange.position)
        return await self.pictures(before[0]) if before else ()


def halved(prompt: Prompt) -> Prompt:
    """Return a prompt with the newer half of the questions in `prompt`.

    Raises:
        PromptTooLong: `prompt` has only one question.
    """
    return fit(prompt, question_count(prompt) // 2, question_count)


def _cut(prompt: Prompt, limit: int) -> Prompt:
    """Return a prompt with at most `limit` questions before the last one.

    Older questions are dropped in steps of half the limit.
    """
    questions = question_count(prompt)
    excess = questions - 1 - limit
    if excess <= 0:
        return prompt
    step = max(1, limit // 2)
    return fit(prompt, max(1, questions - step * math.ceil(excess / step)), question_count)
