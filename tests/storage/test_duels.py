"""Duels: two answers to one question, and the choice between them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from storage.chat_records import Chat, Exchange, Person
from storage.duels import Duel
from storage.errors import UnknownRecord
from storage.learning_records import Model, Rating, Trust
from storage.ledger import Ledger
from storage.state_machines import ModelState
from tests.support.ledgers import exchange


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    """A ledger with a user, a live model and a canary."""
    async with Ledger.open(tmp_path) as made:
        await made.people.save(Person(1), Chat(1))
        await made.models.add(Model("base", "/m/base", ModelState.LIVE, None, 1.0))
        await made.models.add(Model("run-1", "/m/1", ModelState.CANDIDATE, None, 1.0))
        await made.canaries.start("run-1", 0.5)
        yield made


async def begin(ledger: Ledger, update: int = 10) -> tuple[Exchange, Duel]:
    """Record an exchange and a duel between two new answers to its question, and return both.

    The live model's answer comes first in the duel.
    """
    session = await ledger.sessions.restart(1, 1)
    former = await ledger.exchanges.record(exchange(session, update))
    new = exchange(session, update + 1, replaces=former.id, answer="Plain.")
    recorded = await ledger.exchanges.record(new)
    await ledger.replies.begin(update + 1, 0, 1)
    await ledger.replies.sent(update + 1, 0, 77 + update)
    return former, await ledger.duels.start(recorded, replace(new, answer="Playful!", model="run-1"))


async def test_the_better_answer_stands(ledger: Ledger) -> None:
    """A chosen rival becomes the newest answer and takes over the message; only the first choice counts."""
    former, duel = await begin(ledger)
    assert (duel.exchange.answer, duel.rival.answer, duel.better) == ("Plain.", "Playful!", None)
    assert await ledger.duels.open(duel.exchange.id) == duel
    chosen = await ledger.duels.choose(duel.id, 1, 2, 20)
    assert (chosen.exchange.answer, chosen.rival.answer, chosen.better) == ("Playful!", "Plain.", 1)
    assert (chosen.exchange.model, chosen.exchange.update) == ("run-1", 20)
    assert await ledger.exchanges.newest_at(former.position) == chosen.exchange.id
    assert await ledger.exchanges.for_message(1, 87) == chosen.exchange
    assert await ledger.duels.open(chosen.exchange.id) is None
    assert await ledger.duels.choose(duel.id, 1, 1, 21) == chosen, "a replay, or another tap, changes nothing"


@pytest.mark.parametrize("choice", [0, 1])
async def test_the_first_answer_stands(ledger: Ledger, choice: int) -> None:
    """The first answer stays if it is chosen as better or if both answers are rated equal."""
    former, duel = await begin(ledger)
    chosen = await ledger.duels.choose(duel.id, 1, choice, 20)
    assert (chosen.exchange.answer, chosen.better) == ("Plain.", choice)
    assert await ledger.exchanges.newest_at(former.position) == chosen.exchange.id


async def test_choices_are_evidence_of_a_trial(ledger: Ledger) -> None:
    """In a canary's trial, each choice shows which model's answer was better.

    Choices by blocked users and by users who have opted out do not count.
    """
    trial = await ledger.canaries.running()
    assert trial is not None
    for number, choice in enumerate((2, 1, 0)):
        _, duel = await begin(ledger, 100 * (number + 1))
        chosen = await ledger.duels.choose(duel.id, 1, choice, 100 * (number + 1) + 50)
        await ledger.votes.cast(Rating(chosen.exchange.id, 1, 1, 100 * (number + 1) + 50))
    assert await ledger.duels.won(trial) == [True, False]
    assert len(await ledger.canaries.votes(trial)) == 1, "the vote of a choice does not count twice"
    assert await ledger.duels.won(trial, Trust(blocked=frozenset({1}))) == []
    await ledger.people.set_opted_out(1, True)
    assert await ledger.duels.won(trial) == []


async def test_choices_are_preferences(ledger: Ledger) -> None:
    """The chosen answer counts as preferred to its rival for as long as it is liked."""
    _, duel = await begin(ledger)
    chosen = await ledger.duels.choose(duel.id, 1, 2, 20)
    await ledger.votes.cast(Rating(chosen.exchange.id, 1, 1, 20))
    pairs = {(each.chosen.exchange.answer, each.rejected) for each in await ledger.votes.preferences()}
    assert ("Playful!", "Plain.") in pairs
    await ledger.votes.cast(Rating(chosen.exchange.id, 1, 0, 21))
    assert await ledger.votes.preferences() == []


async def test_erased_answers_take_their_duels_with_them(ledger: Ledger) -> None:
    """Erasing a user's data deletes the user's duels and choices."""
    _, duel = await begin(ledger)
    await ledger.duels.choose(duel.id, 1, 2, 20)
    await ledger.personal_data.erase(1)
    with pytest.raises(UnknownRecord):
        await ledger.duels.get(duel.id)
