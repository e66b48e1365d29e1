"""A question with what was said before becomes a Prompt, its streamed answer an Exchange.

Knows which part of a conversation the model sees: the newest turns and always the picture they are about, chosen so
that the beginning of the prompt stays the same for many turns and the engine's cache of it keeps being hit. The cuts
are `inference.prompt.fit`'s, so the training finds the same prompt again by its hash. Knows nothing about Telegram.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Final

from bot.settings import ChatSettings
from inference.messages import Answer, Delta, Engine, Picture, Prompt, PromptTooLong, Role, Sampling, Turn
from inference.prompt import SYSTEM, fit, prompt_hash
from storage.ledger import Ledger
from storage.pictures import PictureStore
from storage.records import Exchange, UnknownRecord

NEAR: Final = 64
FAR: Final = 2000
SEED_BITS: Final = 31


class NoPictureYet(Exception):
    """The conversation has no picture to talk about."""


class EmptyAnswer(Exception):
    """The model ended without a word."""


class Forgotten(Exception):
    """The conversation was deleted while the answer was on its way."""


def chat_key(session: int) -> str:
    """What the engines know a conversation by."""
    return f"session-{session}"


@dataclass(frozen=True, slots=True)
class Question:
    """What somebody asks. `update` is the Telegram update that brought it, `topic` the forum topic (0: none)."""

    update: int
    chat: int
    asker: int
    topic: int
    text: str
    pictures: tuple[Picture, ...] = ()


class Conversation:
    """Asks the engine and keeps the record."""

    def __init__(self, ledger: Ledger, pictures: PictureStore, engine: Engine, settings: ChatSettings) -> None:
        self._ledger = ledger
        self._pictures = pictures
        self._engine = engine
        self._settings = settings

    async def has_picture(self, chat: int, asker: int, topic: int) -> bool:
        """Whether the open conversation is about a picture already."""
        return bool(await self._history(await self._ledger.session(chat, asker, topic)))

    async def ask(self, question: Question, show: Callable[[Delta], None]) -> Exchange:
        """Answer, showing every delta, and return the exchange as recorded.

        Raises NoPictureYet, EmptyAnswer, Forgotten, InferenceError. What fails is not recorded: the next question does
        not see it. An update that was answered before must not come here again (`Ledger.exchange_for_update`).
        """
        session = await self._ledger.session(question.chat, question.asker, question.topic)
        history = await self._history(session)
        if not history and not question.pictures:
            raise NoPictureYet
        prompt = await self._prompt(session, history, question)
        while True:
            try:
                answer = await self._answered(prompt, show)
                break
            except PromptTooLong:
                prompt = _halved(prompt)
        if not answer.text.strip():
            raise EmptyAnswer
        return await self._record(session, question, answer.cut or prompt, answer)

    async def _answered(self, prompt: Prompt, show: Callable[[Delta], None]) -> Answer:
        stream = self._engine.answer(prompt)
        try:
            async for delta in stream:
                show(delta)
                if delta.answer is not None:
                    return delta.answer
        finally:
            if isinstance(stream, AsyncGenerator):
                await stream.aclose()
        raise EmptyAnswer

    async def _history(self, session: int) -> list[Exchange]:
        """The latest exchanges, back to where the model's view can begin; empty without any picture."""
        for limit in (NEAR, FAR):
            history = await self._ledger.history(session, limit)
            pictured = [place for place, each in enumerate(history) if each.pictures]
            if len(pictured) >= self._settings.history_pictures or len(history) < limit:
                break
        return history[pictured[-self._settings.history_pictures :][0] :] if pictured else []

    async def _prompt(self, session: int, history: list[Exchange], question: Question) -> Prompt:
        turns: list[Turn] = []
        for each in self._within(history, question):
            pictures = [await self._picture(sha256) for sha256 in each.pictures]
            turns += (Turn(Role.USER, each.question, tuple(pictures)), Turn(Role.ASSISTANT, each.answer))
        settings = self._settings
        prompt = Prompt(
            system=settings.system_prompt or SYSTEM,
            turns=(*turns, Turn(Role.USER, question.text, question.pictures)),
            chat=chat_key(session),
            sampling=Sampling(
                settings.temperature, settings.top_p, settings.max_new_tokens, secrets.randbits(SEED_BITS)
            ),
        )
        return _shortened(prompt, _kept(len(_asked(prompt)), settings.history_turns))

    def _within(self, history: list[Exchange], question: Question) -> list[Exchange]:
        """Begin at the oldest picture that the model shall still see, the question's own included."""
        allowed = self._settings.history_pictures - bool(question.pictures)
        pictured = [place for place, each in enumerate(history) if each.pictures]
        return history[pictured[-allowed:][0] :] if allowed and pictured else []

    async def _picture(self, sha256: str) -> Picture:
        row = await self._ledger.picture(sha256)
        return Picture(await self._pictures.get(sha256), sha256, row.media_type)

    async def _record(self, session: int, question: Question, prompt: Prompt, answer: Answer) -> Exchange:
        sampling = prompt.sampling
        exchange = Exchange(
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
        )
        try:
            return await self._ledger.exchange(await self._ledger.record_exchange(exchange))
        except UnknownRecord as error:
            raise Forgotten from error


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
