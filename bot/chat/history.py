"""What was said in a conversation before: as the ledger has it, and how much of it the model sees.

The model sees the newest turns and always the picture they are about, chosen so that the beginning of the prompt stays
the same for many turns and the engine's cache of it keeps being hit. The cuts are
`inference.chat_format.template.fit`'s, so the training finds the same prompt again by its hash. Engines, and who waits
for an answer, are left to others.
"""

from __future__ import annotations

import math

from bot.chat.legacy_pictures import StoredPictures
from bot.settings import ChatSettings
from inference.chat_format.template import fit
from inference.messages import Picture, Prompt, Role, Turn
from storage.errors import UnknownRecord
from storage.ledger import Ledger
from storage.picture_store import PictureStore
from storage.records import Exchange


class Forgotten(Exception):
    """What is asked about, or who asks, was deleted while the answer was on its way."""


class History:
    """The exchanges of all conversations, each of which is a session of the ledger."""

    def __init__(self, ledger: Ledger, pictures: PictureStore, settings: ChatSettings, stored: StoredPictures) -> None:
        self._ledger = ledger
        self._pictures = pictures
        self._stored = stored
        self._settings = settings

    async def open_session(self, chat: int, asker: int, topic: int) -> int | None:
        """Return the open session, None where there is none yet."""
        return await self._ledger.sessions.find(chat, self._settings.talker(chat, asker), topic)

    async def session(self, chat: int, asker: int, topic: int, update: int) -> int:
        """Return the open session; begin one for `update` where there is none.

        Raises:
            Forgotten: The sender of the update had everything deleted meanwhile.
        """
        try:
            return await self._ledger.sessions.open(chat, self._settings.talker(chat, asker), topic, update=update)
        except UnknownRecord as error:
            raise Forgotten from error

    async def latest(self, session: int, before: int | None = None) -> list[Exchange]:
        """The latest exchanges, back to where the model's view can begin; empty without any picture.

        `before` is the place of the exchange that they lead to, None where that is yet to come.
        """
        history = await self._ledger.exchanges.history_since(session, self._settings.history_pictures, before)
        return _newest_pictured(history, self._settings.history_pictures)

    async def has_picture(self, session: int) -> bool:
        """Whether a picture was shown in the conversation."""
        return await self._ledger.exchanges.has_pictures(session)

    def seen(self, latest: list[Exchange], *, pictured: bool) -> list[Exchange]:
        """From the oldest picture on that the model shall still see beside the question, which may be `pictured`."""
        return _newest_pictured(latest, self._settings.history_pictures - pictured)

    async def turns(self, exchanges: list[Exchange]) -> list[Turn]:
        """What was said, with the pictures. Raises UnknownRecord for one that is gone."""
        turns: list[Turn] = []
        for each in exchanges:
            turns += (Turn(Role.USER, each.question, await self.pictures(each)), Turn(Role.ASSISTANT, each.answer))
        return turns

    async def pictures(self, exchange: Exchange) -> tuple[Picture, ...]:
        """The pictures that came with an exchange's question. Raises UnknownRecord for one that is gone."""
        return tuple([await self._picture(sha256) for sha256 in exchange.pictures])

    async def subject(self, exchange: Exchange) -> tuple[Picture, ...]:
        """The pictures that an exchange is about: its own, or the newest before it."""
        if exchange.pictures:
            return await self.pictures(exchange)
        before = await self._ledger.exchanges.history_since(exchange.session, 1, exchange.place)
        return await self.pictures(before[0]) if before else ()

    async def record(self, exchange: Exchange) -> Exchange:
        """Record an exchange and return it with its id and time.

        Raises:
            Forgotten: Its conversation, its asker or what it replaces was deleted meanwhile.
        """
        try:
            return await self._ledger.exchanges.record(exchange)
        except UnknownRecord as error:
            raise Forgotten from error

    async def _picture(self, sha256: str) -> Picture:
        row = await self._stored.clean(await self._ledger.pictures.get(sha256))
        return Picture(await self._pictures.get(row.sha256), row.sha256, row.media_type)


def cut(prompt: Prompt, limit: int) -> Prompt:
    """The prompt with at most `limit` questions before the present one; the newest picture stays.

    Where they must be cut they are cut by half the limit at once, so that the prompt's beginning, and with it the
    engine's cache, stays the same for the next turns.
    """
    questions = _questions(prompt)
    over = questions - 1 - limit
    step = max(1, limit // 2)
    return _newest(prompt, questions if over <= 0 else max(1, questions - step * math.ceil(over / step)))


def halved(prompt: Prompt) -> Prompt:
    """The prompt with the newer half of its questions; the newest picture stays. Raises PromptTooLong for one alone."""
    return _newest(prompt, _questions(prompt) // 2)


def _newest(prompt: Prompt, questions: int) -> Prompt:
    return fit(prompt, questions, _questions)


def _questions(prompt: Prompt) -> int:
    return sum(turn.role is Role.USER for turn in prompt.turns)


def _newest_pictured(exchanges: list[Exchange], most: int) -> list[Exchange]:
    """From the oldest on of those, `most` of them, that brought pictures last; empty without any."""
    places = [place for place, each in enumerate(exchanges) if each.pictures]
    return exchanges[places[-most:][0] :] if most and places else []
