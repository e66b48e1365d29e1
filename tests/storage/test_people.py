"""Users, chats and sessions in the ledger."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from storage.chat_records import Chat, Person
from storage.ledger import Ledger
from tests.support.ledgers import exchange


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    async with Ledger.open(tmp_path) as ledger:
        yield ledger


async def test_a_person_and_a_chat_are_kept_as_last_seen(ledger: Ledger) -> None:
    """Saving a user or chat again updates names and the client's language but not the user's chosen language."""
    assert await ledger.people.get(5) is None
    assert await ledger.people.chat(6) is None
    await ledger.people.save(Person(5, "Ana", "en"), Chat(6, "group", "Friends"))
    await ledger.people.set_language(5, "zh")
    await ledger.people.save(Person(5, "Anna", "de"), Chat(6, "supergroup", "Best friends"))
    assert await ledger.people.get(5) == Person(5, "Anna", "de", "zh")
    assert await ledger.people.chat(6) == Chat(6, "supergroup", "Best friends")
    await ledger.people.set_language(5, None)
    assert await ledger.people.get(5) == Person(5, "Anna", "de", None)


async def test_a_language_can_be_chosen_before_anything_else(ledger: Ledger) -> None:
    """A language chosen with /language is kept even if the command is the user's first message."""
    await ledger.people.set_language(5, "zh")
    await ledger.people.save(Person(5, "Ana", "en"), Chat(5))
    assert await ledger.people.get(5) == Person(5, "Ana", "en", "zh")


async def test_a_session_belongs_to_user_chat_and_topic(ledger: Ledger) -> None:
    """Each combination of user, chat and topic has its own session, and /new begins a fresh one."""
    session = await ledger.sessions.open(1, 1)
    assert await ledger.sessions.open(1, 1) == session
    others = {
        await ledger.sessions.open(1, 2),
        await ledger.sessions.open(2, 1),
        await ledger.sessions.open(1, 1, topic=9),
    }
    assert len(others | {session}) == 4
    fresh = await ledger.sessions.restart(1, 1)
    assert fresh not in others | {session}
    assert await ledger.sessions.open(1, 1) == fresh
    assert await ledger.sessions.open(1, 2) in others


async def test_a_session_is_begun_once(ledger: Ledger) -> None:
    """Many concurrent requests for the same session open it only once."""
    assert len(set(await asyncio.gather(*(ledger.sessions.open(1, 1) for _ in range(20))))) == 1


async def test_a_new_session_has_no_history(ledger: Ledger) -> None:
    """Exchanges before /new do not appear in the new session's history but stay stored."""
    before = await ledger.sessions.open(1, 1)
    await ledger.exchanges.record(exchange(before, 1))
    assert await ledger.exchanges.history(await ledger.sessions.restart(1, 1), 10) == []
    assert [each.update for each in await ledger.exchanges.history(before, 10)] == [1]


async def test_private_chats_are_listed(ledger: Ledger) -> None:
    """Only private chats are listed for a broadcast, oldest first."""
    for person, chat in ((1, Chat(1)), (2, Chat(-7, "group", "All")), (3, Chat(3))):
        await ledger.people.save(Person(person), chat)
    assert await ledger.people.private_chats() == [1, 3]
