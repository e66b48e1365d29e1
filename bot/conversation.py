"""A question with what was said before becomes a Prompt, its streamed answer an Exchange.

Knows which part of a conversation the model sees: the newest turns and always the picture they are about, chosen so
that the beginning of the prompt stays the same for many turns and the engine's cache of it keeps being hit. The cuts
are `inference.prompt.fit`'s, so the training finds the same prompt again by its hash. Knows nothing about Telegram.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final
from weakref import WeakValueDictionary

import structlog

from bot.settings import ChatSettings
from bot.steering import Brake
from bot.unsaved import Unsaved
from inference.messages import Answer, Delta, Engine, Picture, Prompt, PromptTooLong, Role, Sampling, Turn, Usage
from inference.prompt import fit, prompt_hash
from storage.errors import NotSaved, UnknownRecord
from storage.ledger import Ledger
from storage.pictures import PictureStore
from storage.records import Exchange

NEAR: Final = 64
FAR: Final = 2000
SEED_BITS: Final = 31
LIVELY: Final = 0.8
"""The temperature of another answer where `chat.temperature` is 0, which would only say the same again."""

log = structlog.get_logger()


class NoPictureYet(Exception):
    """The conversation has no picture to talk about."""


class EmptyAnswer(Exception):
    """The model ended without a word."""


class Interrupted(Exception):
    """The brake was pulled and there is nothing to keep."""


class Forgotten(Exception):
    """The conversation was deleted while the answer was on its way."""


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

    def __init__(self, ledger: Ledger, pictures: PictureStore, engine: Engine, settings: ChatSettings) -> None:
        self._ledger = ledger
        self._pictures = pictures
        self._engine = engine
        self._settings = settings
        self._turns: WeakValueDictionary[int, asyncio.Lock] = WeakValueDictionary()
        self._unsaved = Unsaved()

    async def has_picture(self, chat: int, asker: int, topic: int) -> bool:
        """Whether the open conversation is about a picture already, or may be after the answer that is being given."""
        session = await self._session(chat, asker, topic)
        turn = self._turns.get(session)
        return (turn is not None and turn.locked()) or bool(await self._history(session))

    async def subject(self, exchange: Exchange, chat: int, asker: int, topic: int) -> tuple[Picture, ...]:
        """The pictures that an exchange of another conversation than the asker's open one is about; else none."""
        if exchange.session == await self._session(chat, asker, topic):
            return ()
        before = await self._ledger.history(exchange.session, NEAR, exchange.place)
        about = next((each for each in (exchange, *reversed(before)) if each.pictures), exchange)
        return tuple([await self._picture(exchange.session, sha256) for sha256 in about.pictures])

    async def once_more(
        self, exchange: Exchange, update: int, text: str = "", pictures: tuple[Picture, ...] = ()
    ) -> Question:
        """The question of an exchange again, or `text` and `pictures` in the place of its own."""
        pictures = pictures or tuple([await self._picture(exchange.session, each) for each in exchange.pictures])
        return Question(
            update=update,
            chat=exchange.chat,
            asker=exchange.asker,
            topic=0,
            text=text or exchange.question,
            pictures=pictures,
            instead_of=exchange,
        )

    async def ask(self, question: Question, show: Callable[[Delta], None], brake: Brake) -> Exchange:
        """Answer, showing every delta, and return the exchange as recorded.

        A pulled `brake` ends the engine's work; what came until then is the answer if it is to be kept. Raises
        NoPictureYet, EmptyAnswer, Interrupted, Forgotten, InferenceError. What fails is not recorded: the next question
        does not see it. An update that was answered before must not come here again (`Ledger.exchange_for_update`).
        What cannot be saved because the disk is full has the id 0.
        """
        former = question.instead_of
        session = former.session if former else await self._session(question.chat, question.asker, question.topic)
        async with self._turn(session, brake):
            history = await self._history(session, former.place if former else None)
            if not history and not question.pictures:
                raise NoPictureYet
            prompt = await self._prompt(session, history, question)
            while True:
                try:
                    answer = await self._answered(prompt, show, brake)
                    break
                except PromptTooLong:
                    prompt = _halved(prompt)
            if not answer.text.strip():
                raise EmptyAnswer
            exchange = _exchange(session, question, answer.cut or prompt, answer)
            follows_on_unsaved = not all(each.id for each in self._within(history, question))
            return await self._recorded(exchange, question, saved=not follows_on_unsaved)

    async def _session(self, chat: int, asker: int, topic: int) -> int:
        """The open session; where none can be begun because the disk is full, a number that no session has."""
        try:
            return await self._ledger.session(chat, self._settings.talker(chat, asker), topic)
        except NotSaved:
            return -asker

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

    async def _recorded(self, exchange: Exchange, question: Question, *, saved: bool) -> Exchange:
        """The exchange as recorded; as it is, with the id 0, where it cannot be saved."""
        try:
            if saved:
                recorded = await self._ledger.exchange(await self._ledger.record_exchange(exchange))
                self._unsaved.forget(exchange.session)
                return recorded
        except UnknownRecord as error:
            if exchange.session > 0:
                raise Forgotten from error
        except NotSaved as error:
            log.warning("an exchange was not saved", update=question.update, error=str(error))
        if question.instead_of is None:
            self._unsaved.add(exchange, question.pictures)
        return exchange

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

    async def _history(self, session: int, before: int | None = None) -> list[Exchange]:
        """The latest exchanges, back to where the model's view can begin; empty without any picture."""
        for limit in (NEAR, FAR):
            history = await self._ledger.history(session, limit, before)
            if before is None:
                history += self._unsaved.history(session)
            pictured = [place for place, each in enumerate(history) if each.pictures]
            if len(pictured) >= self._settings.history_pictures or len(history) < limit:
                break
        return history[pictured[-self._settings.history_pictures :][0] :] if pictured else []

    async def _prompt(self, session: int, history: list[Exchange], question: Question) -> Prompt:
        turns: list[Turn] = []
        for each in self._within(history, question):
            pictures = [await self._picture(session, sha256) for sha256 in each.pictures]
            turns += (Turn(Role.USER, each.question, tuple(pictures)), Turn(Role.ASSISTANT, each.answer))
        settings = self._settings
        temperature = settings.temperature or (LIVELY if question.instead_of else 0.0)
        prompt = Prompt(
            system=settings.persona,
            turns=(*turns, Turn(Role.USER, question.text, question.pictures)),
            chat=chat_key(session),
            sampling=Sampling(temperature, settings.top_p, settings.max_new_tokens, secrets.randbits(SEED_BITS)),
        )
        return _shortened(prompt, _kept(len(_asked(prompt)), settings.history_turns))

    def _within(self, history: list[Exchange], question: Question) -> list[Exchange]:
        """Begin at the oldest picture that the model shall still see, the question's own included."""
        allowed = self._settings.history_pictures - bool(question.pictures)
        pictured = [place for place, each in enumerate(history) if each.pictures]
        return history[pictured[-allowed:][0] :] if allowed and pictured else []

    async def _picture(self, session: int, sha256: str) -> Picture:
        if remembered := self._unsaved.picture(session, sha256):
            return remembered
        row = await self._ledger.picture(sha256)
        return Picture(await self._pictures.get(sha256), sha256, row.media_type)


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


def _asked(prompt: Prompt) -> list[Turn]:
    return [turn for turn in prompt.turns if turn.role is Role.USER]


def _kept(questions: int, limit: int) -> int:
    """How many of the newest `questions`, the present one included, the model sees: at most `limit` earlier ones.

    Where they must be cut they are cut by half the limit at once, so that the prompt's beginning, and with it the
    engine's cache, stays the same for the next turns.
    """
    over = questions - 1 - limit
    if over <= 0:
        return questions
    step = max(1, limit // 2)
    return max(1, questions - step * math.ceil(over / step))


def _shortened(prompt: Prompt, questions: int) -> Prompt:
    """The prompt with its newest `questions` only; the newest picture stays. Raises PromptTooLong for less than one."""
    return fit(prompt, questions, lambda shorter: len(_asked(shorter)))


def _halved(prompt: Prompt) -> Prompt:
    return _shortened(prompt, len(_asked(prompt)) // 2)
