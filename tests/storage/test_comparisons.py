"""Blind comparisons in the ledger: their questions, choices and scores, and their erasure."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from storage.chat_records import Chat, Person
from storage.comparisons import Comparison, Score
from storage.errors import UnknownRecord
from storage.learning_records import Trust
from storage.ledger import Ledger
from tests.support.ledgers import exchange, picture

RED, BLUE, GREEN = "a" * 64, "b" * 64, "c" * 64


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    """A ledger in which user 1 asked twice about a red picture, then in a follow-up, and user 2 about a blue one."""
    async with Ledger.open(tmp_path) as made:
        for person, name in ((1, RED), (2, BLUE)):
            await made.people.save(Person(person), Chat(person))
            await made.pictures.add(picture(name), person)
        for update, person, name in ((1, 1, RED), (2, 1, RED), (3, 2, BLUE)):
            session = await made.sessions.restart(person, person)
            asked = exchange(
                session, update, chat=person, asker=person, question=f"Question {update}?", pictures=(name,)
            )
            await made.exchanges.record(asked)
        await made.exchanges.record(exchange(session, 4, chat=2, asker=2, pictures=(BLUE,)))
        await made.exchanges.record(exchange(await made.sessions.restart(2, 2), 5, chat=2, asker=2))
        await made.exchanges.record(
            exchange(await made.sessions.restart(2, 2), 6, chat=2, asker=2, pictures=(RED, BLUE))
        )
        yield made


def made(exchange: int, *, swapped: bool = False, choice: int | None = None) -> Comparison:
    return Comparison(0, exchange, "base", "run-1", "Plain.", "Playful!", swapped, choice)


async def test_questions_are_new_and_have_one_picture(ledger: Ledger) -> None:
    """Only first questions about exactly one picture count, the newest for each picture, of people who allow it.

    Later pictures of a conversation count too.
    """

    async def found(**options: Trust) -> list[tuple[int, str]]:
        questions = await ledger.comparisons.new_questions("run-1", "base", 10, **options)
        return [(each.exchange, each.sha256) for each in questions]

    assert await found() == [(3, BLUE), (2, RED)]
    assert await found(trust=Trust(blocked=frozenset({2}))) == [(2, RED)]
    await ledger.blocks.add(1, "Olga")
    assert await found() == [(3, BLUE)]
    await ledger.people.set_opted_out(2, True)
    assert await found() == []
    await ledger.blocks.remove(1)
    await ledger.comparisons.add([made(2)])
    assert await found() == []
    assert len(await ledger.comparisons.new_questions("base", "run-2", 10)) == 1
    await ledger.pictures.add(picture(GREEN), 1)
    session = await ledger.sessions.restart(1, 1)
    for update, name in ((7, RED), (8, GREEN), (9, GREEN)):
        await ledger.exchanges.record(exchange(session, update, chat=1, asker=1, pictures=(name,)))
    assert await found() == [(8, GREEN), (7, RED)]


async def test_a_choice_counts_for_the_model_that_was_shown_there(ledger: Ledger) -> None:
    """A choice is of an answer as shown, and counts for its model; only the first choice counts."""
    comparisons = ledger.comparisons
    await comparisons.add([made(1, swapped=True), made(2), made(3, choice=0), made(1), made(999)])
    assert await comparisons.score("run-1", "base") == Score(0, 0, 1, 2)
    shown = await comparisons.undecided("run-1", "base")
    assert shown is not None and (shown.exchange, shown.shown) == (1, ("Playful!", "Plain."))
    assert (await comparisons.choose(shown.id, 1, "Olga")).choice == 2
    assert (await comparisons.choose(shown.id, 2, "Olga")).choice == 2
    shown = await comparisons.undecided("base", "run-1")
    assert shown is not None and (shown.exchange, shown.shown) == (2, ("Plain.", "Playful!"))
    assert (await comparisons.choose(shown.id, 1, "Olga")).choice == 1
    assert await comparisons.undecided("base", "run-1") is None
    assert await comparisons.score("base", "run-1") == Score(1, 1, 1, 0)
    assert await comparisons.score("base", "run-2") == Score()
    assert await comparisons.pairs() == [("base", "run-1")]
    with pytest.raises(UnknownRecord):
        await comparisons.choose(99, 1, "Olga")


async def test_comparisons_go_with_the_person(ledger: Ledger) -> None:
    """An erasure removes the comparisons on the person's questions, and with them their part of the score."""
    await ledger.comparisons.add([made(2, choice=1), made(3, choice=2)])
    await ledger.personal_data.erase(1)
    assert await ledger.comparisons.score("base", "run-1") == Score(0, 1, 0, 0)
