"""A question with what was said before becomes a Prompt, its streamed answer an Exchange.

Knows that a conversation is asked one question at a time, and what becomes of an answer that is not awaited to its end.
What was said before, and how much of that the model sees, is the history's. Knows nothing about Telegram.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final
from weakref import WeakValueDictionary

from bot.chat.history import History, cut, halved
from bot.chat.in_flight import Brake
from bot.settings import ChatSettings
from inference.chat_format.template import prompt_hash
from inference.messages import Answer, Delta, Engine, Picture, Prompt, PromptTooLong, Role, Sampling, Turn, Usage
from storage.records import Exchange

SEED_BITS: Final = 31
LIVELY: Final = 0.8
"""The temperature of another answer where `chat.temperature` is 0, which would only say the same again."""


class NoPictureYet(Exception):
    """The conversation has no picture to talk about."""


class EmptyAnswer(Exception):
    """The model ended without a word."""


class Interrupted(Exception):
    """The brake was pulled and there is nothing to keep."""


def chat_key(session: int) -> str:
    """What the engines know a conversation by."""
    return f"session-{session}"


@dataclass(frozen=True, slots=True)
class Question:
    """What somebody asks. `update` is the Telegram update that brought it, `topic` the forum topic (0: none).

    `instead_of` is the earlier exchange in whose place the new one shall stand: edited, or asked once more.
    """

    update: int
    chat: int
    asker: int
    topic: int
    text: str
    pictures: tuple[Picture, ...] = ()
    instead_of: Exchange | None = None


class Conversation:
    """Asks the engine and keeps the record."""

    def __init__(self, history: History, engine: Engine, settings: ChatSettings) -> None:
        self._history = history
        self._engine = engine
        self._settings = settings
        self._turns: WeakValueDictionary[int, asyncio.Lock] = WeakValueDictionary()

    async def has_picture(self, chat: int, asker: int, topic: int) -> bool:
        """Whether the open conversation is about a picture already, or may be after the answer that is being given."""
        session = await self._history.open_session(chat, asker, topic)
        if session is None:
            return False
        turn = self._turns.get(session)
        return (turn is not None and turn.locked()) or await self._history.has_picture(session)

    async def subject(self, exchange: Exchange, chat: int, asker: int, topic: int) -> tuple[Picture, ...]:
        """The pictures that an exchange of another conversation than the asker's open one is about; else none."""
        if exchange.session == await self._history.open_session(chat, asker, topic):
            return ()
        return await self._history.subject(exchange)

    async def once_more(
        self, exchange: Exchange, update: int, text: str = "", pictures: tuple[Picture, ...] = ()
    ) -> Question:
        """The question of an exchange again, or `text` and `pictures` in the place of its own."""
        return Question(
            update=update,
            chat=exchange.chat,
            asker=exchange.asker,
            topic=0,
            text=text or exchange.question,
            pictures=pictures or await self._history.pictures(exchange),
            instead_of=exchange,
        )

    async def ask(self, question: Question, show: Callable[[Delta], None], brake: Brake) -> Exchange:
        """Answer, showing every delta, and return the exchange as recorded.

        A pulled `brake` ends the engine's work; what came until then is the answer if it is to be kept. Raises
        NoPictureYet, EmptyAnswer, Interrupted, Forgotten, InferenceError. What fails is not recorded: the next question
        does not see it. An update that was answered before must not come here again (`Exchanges.for_update`).
        """
        former = question.instead_of
        if former:
            session = former.session
        else:
            session = await self._history.session(question.chat, question.asker, question.topic, question.update)
        async with self._turn(session, brake):
            latest = await self._history.latest(session, former.place if former else None)
            if not latest and not question.pictures:
                raise NoPictureYet
            seen = self._history.seen(latest, pictured=bool(question.pictures))
            prompt = await self._prompt(session, seen, question)
            while True:
                try:
                    answer = await self._answered(prompt, show, brake)
                    break
                except PromptTooLong:
                    prompt = halved(prompt)
            if not answer.text.strip():
                raise EmptyAnswer
            exchange = _exchange(session, question, answer.cut or prompt, answer)
            return await self._history.record(exchange)

    @asynccontextmanager
    async def _turn(self, session: int, brake: Brake) -> AsyncIterator[None]:
        """One question of a conversation at a time, so that the next one knows the answer. Raises Interrupted."""
        turn = self._turns.setdefault(session, asyncio.Lock())
        mine = False
        async with brake:
            await turn.acquire()
            mine = True
        if not mine:
            raise Interrupted
        try:
            yield
        finally:
            turn.release()

    async def _answered(self, prompt: Prompt, show: Callable[[Delta], None], brake: Brake) -> Answer:
        if brake.pulled:
            raise Interrupted
        stream = self._engine.answer(prompt)
        spoken = _Spoken()
        try:
            async with brake:
                async for delta in stream:
                    show(delta)
                    spoken.take(delta)
                    if delta.answer is not None:
                        return delta.answer
        finally:
            if isinstance(stream, AsyncGenerator):
                await stream.aclose()
        if not brake.pulled:
            raise EmptyAnswer
        if not (brake.keep and spoken.text.strip()):
            raise Interrupted
        return spoken.answer()

    async def _prompt(self, session: int, seen: list[Exchange], question: Question) -> Prompt:
        settings = self._settings
        temperature = settings.temperature or (LIVELY if question.instead_of else 0.0)
        prompt = Prompt(
            system=settings.persona,
            turns=(*await self._history.turns(seen), Turn(Role.USER, question.text, question.pictures)),
            chat=chat_key(session),
            sampling=Sampling(temperature, settings.top_p, settings.max_new_tokens, secrets.randbits(SEED_BITS)),
        )
        return cut(prompt, settings.history_turns)


def _exchange(session: int, question: Question, prompt: Prompt, answer: Answer) -> Exchange:
    sampling = prompt.sampling
    return Exchange(
        session=session,
        chat=question.chat,
        asker=question.asker,
        update=question.update,
        question=question.text,
        pictures=tuple(picture.sha256 for picture in question.pictures),
        answer=answer.text,
        model=answer.model,
        system=prompt.system,
        prompt_hash=prompt_hash(prompt),
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_new_tokens=sampling.max_new_tokens,
        seed=sampling.seed,
        top_k=sampling.top_k,
        finish=answer.finish,
        prompt_tokens=answer.usage.prompt_tokens,
        completion_tokens=answer.usage.completion_tokens,
        cached_tokens=answer.usage.cached_tokens,
        encoded_tiles=answer.usage.encoded_tiles,
        first_token_seconds=answer.first_token_seconds,
        seconds=answer.seconds,
        replaces=question.instead_of.place if question.instead_of else None,
    )


class _Spoken:
    """What has been said of an answer so far, for the case that its end is not awaited."""

    def __init__(self) -> None:
        self.text = ""
        self._model = ""
        self._began = time.monotonic()
        self._first = 0.0

    def take(self, delta: Delta) -> None:
        """Take in one step of the answer."""
        if delta.restarted:
            self.text = ""
        elif delta.text:
            self._first = self._first or time.monotonic()
            self.text += delta.text
            self._model = delta.model

    def answer(self) -> Answer:
        """The answer as far as it came. The engine counts at the end only, so how many tokens it took is unknown."""
        seconds = time.monotonic() - self._began
        return Answer(self.text, self._model, "abort", Usage(), self._first - self._began, seconds)
