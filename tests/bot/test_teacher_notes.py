"""Notes to users whose votes taught the live model."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

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
