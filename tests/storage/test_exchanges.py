"""Picture rows, exchanges and histories in the ledger."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from storage.errors import StorageError, UnknownRecord
from storage.ledger import FILE_NAME, Ledger
from tests.support.ledgers import exchange, picture

CLOCK = 1_800_000_000.5


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    async with Ledger.open(tmp_path, clock=lambda: CLOCK) as ledger:
        for sha256 in ("aa", "bb", "cc"):
            await ledger.pictures.add(picture(sha256))
        yield ledger


async def test_an_exchange_comes_back_as_it_was_recorded(ledger: Ledger) -> None:
    """A recorded exchange is read back with every field unchanged, including the order of its pictures."""
    session = await ledger.sessions.open(1, 1)
    asked = exchange(session, 77, question="这是什么？ 🟥\n<image>", pictures=("cc", "aa"), seed=None, encoded_tiles=13)
    kept = await ledger.exchanges.record(asked)
    assert kept == replace(asked, id=kept.id, created=CLOCK)
    assert await ledger.exchanges.get(kept.id) == kept
    assert await ledger.exchanges.for_update(77) == kept
    assert await ledger.exchanges.history(session, 1) == [kept]


async def test_a_given_time_is_kept(ledger: Ledger) -> None:
    """An exchange recorded with a time of its own, as in an import, keeps that time."""
    kept = await ledger.exchanges.record(exchange(await ledger.sessions.open(1, 1), 1, created=12.5))
    assert kept.created == 12.5
    assert await ledger.exchanges.get(kept.id) == kept


async def test_an_update_is_answered_once(ledger: Ledger) -> None:
    """Recording a second exchange for an update changes nothing and returns the first one."""
    session = await ledger.sessions.open(1, 1)
    first = await ledger.exchanges.record(exchange(session, 5, answer="first", pictures=("aa",)))
    again = await ledger.exchanges.record(exchange(session, 5, answer="second", pictures=("bb",)))
    assert again == first == await ledger.exchanges.get(first.id)
    assert (first.answer, first.pictures) == ("first", ("aa",))


async def test_unknown_exchanges(ledger: Ledger) -> None:
    """Looking up a missing exchange by ID raises an error; looking it up by update returns None."""
    with pytest.raises(UnknownRecord, match="no exchange 9"):
        await ledger.exchanges.get(9)
    assert await ledger.exchanges.for_update(9) is None


async def test_an_exchange_needs_its_session_and_pictures(ledger: Ledger) -> None:
    """An exchange about an unknown picture or in an unknown session is refused, and nothing is stored."""
    session = await ledger.sessions.open(1, 1)
    with pytest.raises(StorageError, match="picture"):
        await ledger.exchanges.record(exchange(session, 1, pictures=("aa", "unknown")))
    with pytest.raises(StorageError, match="session 999"):
        await ledger.exchanges.record(exchange(999, 1))
    assert await ledger.exchanges.for_update(1) is None


async def test_history_is_the_latest_the_oldest_first(ledger: Ledger) -> None:
    """A limited history contains the newest exchanges of one session, oldest first."""
    session, other = await ledger.sessions.open(1, 1), await ledger.sessions.open(1, 2)
    for update in range(1, 8):
        await ledger.exchanges.record(exchange(other if update == 4 else session, update))
    assert [each.update for each in await ledger.exchanges.history(session, 3)] == [5, 6, 7]
    assert [each.update for each in await ledger.exchanges.history(session, 100)] == [1, 2, 3, 5, 6, 7]
    assert await ledger.exchanges.history(session, 0) == []


async def test_history_since_a_picture(ledger: Ledger) -> None:
    """`history_since` starts at the n-th newest exchange with pictures, or at the oldest if there are fewer.

    Without any pictures, the history is empty.
    """
    session, other = await ledger.sessions.open(1, 1), await ledger.sessions.open(1, 2)

    async def since(pictures: int, before: int | None = None) -> list[int]:
        return [each.update for each in await ledger.exchanges.history_since(session, pictures, before)]

    await ledger.exchanges.record(exchange(other, 1, pictures=("aa",)))
    await ledger.exchanges.record(exchange(session, 2))
    assert await since(1) == []
    assert not await ledger.exchanges.has_pictures(session)
    shown = await ledger.exchanges.record(exchange(session, 3, pictures=("aa", "bb")))
    await ledger.exchanges.record(exchange(session, 4))
    newest = await ledger.exchanges.record(exchange(session, 5, pictures=("cc",)))
    await ledger.exchanges.record(exchange(session, 6))
    assert await ledger.exchanges.has_pictures(session)
    assert [await since(pictures) for pictures in (1, 2, 9)] == [[5, 6], [3, 4, 5, 6], [3, 4, 5, 6]]
    assert await since(1, before=newest.id) == [3, 4]
    assert await since(1, before=shown.id) == []
    await ledger.exchanges.record(exchange(session, 7, pictures=("aa",), replaces=shown.id))
    assert await since(2) == [7, 4, 5, 6]


async def test_pictures_rows(ledger: Ledger) -> None:
    """Adding a picture again does not change its row, and getting an unknown picture raises an error."""
    await ledger.pictures.add(picture("aa", width=999))
    assert await ledger.pictures.get("aa") == picture("aa", created=CLOCK)
    with pytest.raises(UnknownRecord, match="no picture dd"):
        await ledger.pictures.get("dd")
    assert [each.sha256 for each in await ledger.pictures.all()] == ["aa", "bb", "cc"]


async def test_turns_show_who_said_what(ledger: Ledger, tmp_path: Path) -> None:
    """The `turns` view has a user row and an assistant row for every exchange."""
    session = await ledger.sessions.open(1, 1)
    found = (await ledger.exchanges.record(exchange(session, 3, question="Q", answer="A", pictures=("aa", "bb")))).id
    database = sqlite3.connect(tmp_path / FILE_NAME)
    try:
        rows = database.execute(
            "SELECT exchange, session, role, user, model, text, pictures FROM turns ORDER BY exchange, position"
        ).fetchall()
    finally:
        database.close()
    assert rows == [
        (found, session, "user", 1, None, "Q", 2),
        (found, session, "assistant", None, "base", "A", 0),
    ]
