"""Notes to users whose votes taught the live model."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from bot.admin.teacher_notes import TeacherNotes
from bot.i18n import Translator
from storage.chat_records import Chat, Exchange
from storage.chat_records import Person as Stored
from storage.learning_records import Model, Rating
from storage.ledger import Ledger
from storage.state_machines import ModelState
from tests.support.ledgers import exchange
from tests.support.person import UP, Person, button
from tests.support.whole_bot import ADMIN, WholeBot, picture, whole_bot, words

WANTED = "Tell me when a new model has learned from my votes"
NOTE = "A model that learned from your votes is live."


@pytest.fixture
async def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[WholeBot]:
    """A bot that has not been started yet, with an empty data folder and an emulator."""
    async with whole_bot(tmp_path, monkeypatch) as made:
        yield made


async def noted(person: Person) -> list[str]:
    """Return the notes about new models received by `person`."""
    return [words(each) for each in await person.bot_messages() if NOTE in words(each)]


async def test_who_taught_a_model_hears_of_it_once(place: WholeBot) -> None:
    """A user who asked for notes gets one when a model that learned from their votes goes live.

    The note compares an earlier answer with the new model's. Other users get none, and a restart sends no
    second note.
    """
    async with place.running(training={"canary": 0}):
        admin, silent = await place.person(ADMIN, "Ada", "en"), await place.person(8, "Ben", "en")
        for seed, person in enumerate((admin, admin, admin, silent)):
            await person.toast(await person.taps(UP, await person.asks(photo=picture(seed), caption="What is it?")))
        await admin.command("/privacy")
        switch = await place.says(ADMIN, lambda said: bool(button(said, WANTED)))
        await admin.taps(WANTED, switch)
        await place.says(ADMIN, lambda said: bool(button(said, "Don't tell me about new models")))
        await admin.command("/retrain")
        note = words(await place.says(ADMIN, lambda said: NOTE in words(said)))
        assert "You once asked: What is it?" in note
        before, now = note.split("You liked this answer: ")[1].split("Now I'd say: ")
        assert before.startswith("base/") and now.startswith("run-1/")
        async with place.ledger() as ledger:
            assert (await ledger.counts.totals())["exchanges"] == 4, "nothing is recorded"
    async with place.running(training={"canary": 0}):
        await admin.asks(photo=picture(50))
        assert len(await noted(admin)) == 1
        assert await noted(silent) == []
    async with place.ledger() as ledger:
        live = await ledger.models.live()
        assert live is not None
        assert await ledger.teachers.waiting(live) == []


async def test_who_opts_out_hears_nothing(place: WholeBot) -> None:
    """A user who opts out of learning loses the switch for notes and gets no notes."""
    async with place.running(training={"canary": 0}):
        admin = await place.person(ADMIN, "Ada", "en")
        await admin.command("/privacy")
        switch = await place.says(ADMIN, lambda said: bool(button(said, WANTED)))
        await admin.taps("Don't learn from me", switch)
        message = await place.says(ADMIN, lambda said: bool(button(said, "Learn from me")))
        assert not button(message, WANTED)


class Told:
    """A stub for the bot and the conversation: the new model answers differently from the second question on."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    async def answer_now(self, exchange: Exchange) -> str:
        return exchange.answer if exchange.update > 2 else f"Now {exchange.update}."

    async def send_message(self, _: int, text: str) -> None:
        self.texts.append(text)


async def test_the_note_shows_an_answer_that_has_changed(tmp_path: Path) -> None:
    """Of the answers that a person liked, the note shows the newest one that the new model answers differently."""
    told: Any = Told()
    async with Ledger.open(tmp_path) as ledger:
        await ledger.people.save(Stored(8, "Ada"), Chat(8))
        await ledger.people.set_wants_notes(8, True)
        liked = []
        for number in range(1, 5):
            session = await ledger.sessions.restart(8, 8)
            made = await ledger.exchanges.record(exchange(session, number, chat=8, asker=8, answer=f"Before {number}."))
            await ledger.votes.cast(Rating(made.id, 8, 1, 100 + number))
            liked.append((made.id, "train"))
        run = await ledger.runs.start("admin")
        await ledger.run_selections.freeze(run.id, liked)
        await ledger.models.add(Model("run-1", "run-1", ModelState.CANDIDATE, run.id, 1.0))
        await ledger.promotions.make("run-1", None)
        await TeacherNotes(told, ledger, told, Translator({})).send()
    (text,) = told.texts
    assert "Before 2." in text and "Now 2." in text
