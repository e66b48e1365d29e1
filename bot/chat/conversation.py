"""Conversations, which put one question at a time to the engine and record each exchange."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, nullcontext, suppress
from dataclasses import asdict, replace
from typing import Final
from weakref import WeakValueDictionary

from bot.chat.errors import DeletedMeanwhile, EmptyAnswer, Interrupted
from bot.chat.history import History, halved
from bot.chat.in_flight import QuestionInFlight
from bot.chat.question import Question
from bot.settings import ChatSettings
from inference.chat_format.template import prompt_hash
from inference.messages import Answer, Delta, Engine, InferenceError, Picture, Prompt, PromptTooLong, Usage
from storage.chat_records import Exchange
from storage.duels import Duel
from storage.errors import UnknownRecord
from storage.guests import GUESTS
from storage.ledger import Ledger

LATEST: Final = 64
"""The number of exchanges that `latest` searches; in a shared conversation, some may be other people's."""

INVITED: Final = 5
"""During a trial, one answer in this many offers a comparison of two answers."""


class Conversation:
    """Puts questions to the engine and records the answers."""

    def __init__(self, ledger: Ledger, history: History, engine: Engine, settings: ChatSettings) -> None:
        self._ledger = ledger
        self._history = history
        self._engine = engine
        self._settings = settings
        self._turns: WeakValueDictionary[int, asyncio.Lock] = WeakValueDictionary()

    async def has_picture(self, question: Question) -> bool:
        """Return whether the user's open conversation has a picture, or may get one from a question in flight."""
        session = await self._ledger.sessions.find(*self._place(question))
        if session is None:
            return False
        turn = self._turns.get(session)
        return (turn is not None and turn.locked()) or await self._ledger.exchanges.has_pictures(session)

    async def latest(self, question: Question) -> Exchange | None:
        """Return the user's latest exchange in the open conversation, or None if there is none.

        If several users share the conversation, the other users' exchanges are skipped.
        """
        session = await self._ledger.sessions.find(*self._place(question))
        exchanges = await self._ledger.exchanges.history(session, LATEST) if session is not None else []
        return next((each for each in reversed(exchanges) if each.asker == question.asker), None)

    async def open_duel(self, exchange: Exchange) -> Duel | None:
        """Return the undecided duel about an exchange, or None if there is none."""
        return await self._ledger.duels.open(exchange.id)

    async def invites_comparison(self, exchange: Exchange) -> bool:
        """Return whether an answer's buttons offer a duel.

        During a trial, they do so for one answer in every `INVITED`.
        """
        return exchange.id % INVITED == 0 and await self._ledger.canaries.running() is not None

    async def may_be_rated(self, exchange: Exchange) -> bool:
        """Return whether an answer can be rated; in guest mode, only if the bot may learn from the asker."""
        if exchange.chat != GUESTS:
            return True
        asker = await self._ledger.people.get(exchange.asker)
        return asker is not None and asker.teaches_as_guest and not asker.opted_out

    async def restart(self, question: Question) -> None:
        """Begin a new conversation.

        If the user's update is handled twice, two conversations begin, which is harmless because the first one
        is empty.
        """
        await self._ledger.sessions.restart(*self._place(question))

    async def subject(self, exchange: Exchange, question: Question) -> tuple[Picture, ...]:
        """Return the pictures that an exchange is about.

        The result is empty if `question` belongs to the same conversation as the exchange.
        """
        if exchange.session == await self._ledger.sessions.find(*self._place(question)):
            return ()
        return await self._history.subject(exchange)

    async def ask(self, question: Question, show: Callable[[Delta], None], in_flight: QuestionInFlight) -> Exchange:
        """Answer a question, pass every delta of the answer to `show`, and return the recorded exchange.

        A failed answer is not recorded, so it does not appear in the history of the next question. The caller
        must ensure that the question's update has not been answered before (`ledger.exchanges.for_update`).

        Raises:
            NoPictureYet: There is no picture to talk about.
            EmptyAnswer: The model produced no text.
            Interrupted: `in_flight` was interrupted, and no part of the answer is to be kept.
            DeletedMeanwhile: The user or the conversation was deleted.
            UnknownRecord: A picture was deleted.
            InferenceError: The engine failed.
        """
        if question.replaces and not question.pictures:
            question = replace(question, pictures=await self._history.pictures(question.replaces))
        session = await self._session(question)
        async with self._turn(session, in_flight):
            prompt = await self._history.prompt(session, question)
            if not question.models:
                return await self._record(await self._fitting(session, question, prompt, show, in_flight))
            return await self._compared(session, question, prompt, in_flight)

    async def answer_now(self, exchange: Exchange) -> str:
        """Answer an earlier question with the live model, without recording the answer.

        Raises the same errors as `ask`.
        """
        question = Question(
            update=exchange.update,
            chat=exchange.chat,
            topic=0,
            asker=exchange.asker,
            received=exchange.created,
            text=exchange.question,
            pictures=await self._history.pictures(exchange),
            replaces=exchange,
        )
        prompt = await self._history.prompt(exchange.session, question)
        found = await self._fitting(exchange.session, question, prompt, lambda delta: None, QuestionInFlight(question))
        return found.answer

    async def _compared(
        self, session: int, question: Question, prompt: Prompt, in_flight: QuestionInFlight
    ) -> Exchange:
        """Let both of the question's models answer, record the first answer, and start a duel with the second.

        There is no duel if one of the models fails or if both answers are the same.
        """
        found: list[Exchange] = []
        for model in question.models:
            last = model == question.models[-1]
            with nullcontext() if last and not found else suppress(InferenceError, EmptyAnswer):
                asked = replace(prompt, model=model)
                found.append(await self._fitting(session, question, asked, lambda delta: None, in_flight))
        recorded = await self._record(found[0])
        if len(found) > 1 and found[1].answer.strip() != found[0].answer.strip():
            await self._ledger.duels.start(recorded, found[1])
        return recorded

    async def _record(self, exchange: Exchange) -> Exchange:
        try:
            return await self._ledger.exchanges.record(exchange)
        except UnknownRecord as error:
            raise DeletedMeanwhile from error

    async def _fitting(
        self,
        session: int,
        question: Question,
        prompt: Prompt,
        show: Callable[[Delta], None],
        in_flight: QuestionInFlight,
    ) -> Exchange:
        """Answer a prompt, and return the exchange without recording it.

        The prompt's history is shortened until the prompt fits the engine.
        """
        while True:
            try:
                answer = await self._answer(prompt, show, in_flight)
                break
            except PromptTooLong:
                prompt = halved(prompt)
        if not answer.text.strip():
            raise EmptyAnswer
        return _exchange(session, question, answer.cut or prompt, answer)

    async def _session(self, question: Question) -> int:
        """Return the ID of the session that a question belongs to, opening a session if there is none."""
        if question.replaces:
            return question.replaces.session
        try:
            return await self._ledger.sessions.open(*self._place(question), update=question.update)
        except UnknownRecord as error:
            raise DeletedMeanwhile from error

    def _place(self, question: Question) -> tuple[int, int, int]:
        """Return the IDs of the chat, the conversation's owner and the topic, which together identify a session."""
        return question.chat, self._settings.conversation_owner(question.chat, question.asker), question.topic

    @asynccontextmanager
    async def _turn(self, session: int, in_flight: QuestionInFlight) -> AsyncIterator[None]:
        """Wait for the session's earlier questions, whose answers belong in the prompt, then run the block.

        Raises:
            Interrupted: `in_flight` was interrupted during the wait.
        """
        turn = self._turns.setdefault(session, asyncio.Lock())
        acquired = False
        async with in_flight.interruptible():
            acquired = await turn.acquire()
        if not acquired:
            raise Interrupted
        try:
            yield
        finally:
            turn.release()

    async def _answer(self, prompt: Prompt, show: Callable[[Delta], None], in_flight: QuestionInFlight) -> Answer:
        if in_flight.interrupted:
            raise Interrupted
        text, model, began, first = "", "", time.monotonic(), 0.0
        async with aclosing(self._engine.answer(prompt)) as stream, in_flight.interruptible():
            async for delta in stream:
                show(delta)
                if delta.answer is not None:
                    return delta.answer
                if delta.restarted:
                    text = ""
                elif delta.text:
                    first = first or time.monotonic()
                    text, model = text + delta.text, delta.model
        if not in_flight.interrupted:
            raise EmptyAnswer
        if not (in_flight.stopped and text.strip()):
            raise Interrupted
        # Engines count tokens only at the end, so the usage of a partial answer is unknown.
        return Answer(text, model, "abort", Usage(), first - began, time.monotonic() - began)


def _exchange(session: int, question: Question, prompt: Prompt, answer: Answer) -> Exchange:
    former = question.replaces
    return Exchange(
        session=session,
        chat=former.chat if former else question.chat,
        asker=former.asker if former else question.asker,
        update=question.update,
        question=question.text,
        pictures=tuple(picture.sha256 for picture in question.pictures),
        answer=answer.text,
        model=answer.model,
        system=prompt.system,
        prompt_hash=prompt_hash(prompt),
        **asdict(prompt.sampling),
        finish=answer.finish,
        **asdict(answer.usage),
        first_token_seconds=answer.first_token_seconds,
        seconds=answer.seconds,
        replaces=former.position if former else None,
    )
