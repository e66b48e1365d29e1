"""Votes in the ledger: they are append-only, and only each rater's latest vote counts."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from storage.counts import Approval
from storage.errors import StorageError, UnknownRecord
from storage.learning_records import Correction, Rating, Trust
from storage.ledger import FILE_NAME, Ledger
from tests.support.ledgers import exchange


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    async with Ledger.open(tmp_path) as ledger:
        yield ledger


@pytest.fixture
async def rated(ledger: Ledger) -> int:
    """Return the ID of an exchange to vote on."""
    return (await ledger.exchanges.record(exchange(await ledger.sessions.open(1, 1), 1))).id


async def test_the_latest_vote_of_a_rater_counts(ledger: Ledger, rated: int) -> None:
    """Only each rater's latest vote counts, so a rater who changes their mind is counted once."""
    assert await ledger.votes.latest(rated, 1) is None
    for update, (rater, value) in enumerate([(1, 1), (2, 1), (1, -1), (3, -1), (3, 1)], start=10):
        assert await ledger.votes.cast(Rating(rated, rater, value, update))
    assert [await ledger.votes.latest(rated, rater) for rater in (1, 2, 3, 4)] == [-1, 1, 1, None]
    (found,) = await ledger.votes.rated_exchanges()
    assert (found.exchange.id, found.ups, found.downs, found.raters, found.liked_by) == (rated, 2, 1, (1, 2, 3), (2, 3))
    counts = await ledger.counts.totals()
    assert (counts["votes"], counts["ups"], counts["downs"]) == (5, 2, 1)


async def test_a_tap_is_counted_once(ledger: Ledger, rated: int) -> None:
    """A vote delivered twice with the same update is counted once, even if another vote came in between."""
    assert await ledger.votes.cast(Rating(rated, 1, 1, update=10))
    assert await ledger.votes.cast(Rating(rated, 1, -1, update=11))
    assert not await ledger.votes.cast(Rating(rated, 1, 1, update=10))
    assert await ledger.votes.latest(rated, 1) == -1


async def test_a_vote_needs_an_exchange_and_a_thumb(ledger: Ledger, rated: int) -> None:
    """A vote on an unknown exchange and a vote that is neither up nor down are refused."""
    with pytest.raises(UnknownRecord, match=f"no exchange {rated + 1}"):
        await ledger.votes.cast(Rating(rated + 1, 1, 1, 10))
    with pytest.raises(StorageError, match="1, -1 or 0"):
        await ledger.votes.cast(Rating(rated, 1, 2, 10))
    assert await ledger.votes.latest(rated, 1) is None


async def test_feedback_cannot_be_changed(ledger: Ledger, rated: int, tmp_path: Path) -> None:
    """A stored vote cannot be changed, even by an SQL update of the database file."""
    await ledger.votes.cast(Rating(rated, 1, -1, 10))
    database = sqlite3.connect(tmp_path / FILE_NAME)
    try:
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            database.execute("UPDATE feedback SET value = 1")
    finally:
        database.close()
    assert await ledger.votes.latest(rated, 1) == -1


async def test_rated_exchanges_bring_their_conversation(ledger: Ledger) -> None:
    """A rated exchange is returned with all earlier exchanges of its session, rated or not, and no others."""
    session, other = await ledger.sessions.open(1, 1), await ledger.sessions.open(1, 2)
    ids = [(await ledger.exchanges.record(exchange(place, update))).id for update, place in
           enumerate([session, other, session, session, other])]  # fmt: skip
    await ledger.votes.cast(Rating(ids[3], 1, 1, 100))
    await ledger.votes.cast(Rating(ids[1], 1, -1, 101))
    assert [
        (each.exchange.id, [before.id for before in each.history]) for each in await ledger.votes.rated_exchanges()
    ] == [
        (ids[1], []),
        (ids[3], [ids[0], ids[2]]),
    ]


async def test_a_forgotten_person_leaves_nothing(ledger: Ledger, rated: int, tmp_path: Path) -> None:
    """Deleting a user's row also deletes the user's sessions, exchanges and votes; no exchange ID is reused."""
    await ledger.votes.cast(Rating(rated, 1, 1, 10))
    theirs = (await ledger.exchanges.record(exchange(await ledger.sessions.open(2, 2), 2, asker=2, chat=2))).id
    await ledger.votes.cast(Rating(theirs, 1, 1, 11))
    await ledger.votes.cast(Rating(rated, 2, -1, 12))
    database = sqlite3.connect(tmp_path / FILE_NAME)
    try:
        database.execute("PRAGMA foreign_keys=ON")
        with database:
            database.execute("DELETE FROM users WHERE id = 2")
    finally:
        database.close()
    (found,) = await ledger.votes.rated_exchanges()
    assert (found.exchange.id, found.raters) == (rated, (1,))
    with pytest.raises(UnknownRecord):
        await ledger.exchanges.get(theirs)
    assert (await ledger.exchanges.record(exchange(await ledger.sessions.open(1, 1), 3))).id > theirs


async def test_what_a_blocked_person_taught_teaches_no_longer(ledger: Ledger) -> None:
    """Training ignores votes, corrections, confirmations and questions from blocked users or blocked groups."""
    spammer, friend, group = 66, 1, -500
    asked = [
        (
            await ledger.exchanges.record(
                exchange(await ledger.sessions.open(chat, asker), update, chat=chat, asker=asker)
            )
        ).id
        for update, (chat, asker) in enumerate([(friend, friend), (spammer, spammer), (group, friend)], start=1)
    ]
    for update, (number, rater) in enumerate([(0, friend), (0, spammer), (1, friend), (2, friend)], start=10):
        await ledger.votes.cast(Rating(asked[number], rater, 1, update))
    mine = (
        await ledger.exchanges.record(
            exchange(await ledger.sessions.open(friend, friend), 4, chat=friend, asker=friend)
        )
    ).id
    for update, (author, by) in enumerate([(spammer, friend), (friend, spammer)], start=20):
        shown = await ledger.corrections.add(Correction(mine, author, "Buy!", update))
        await ledger.corrections.confirm(shown, by)
    assert [each.exchange.id for each in await ledger.votes.rated_exchanges()] == [*asked, mine]
    assert [each.chosen.exchange.id for each in await ledger.votes.preferences()] == [mine]
    trust = Trust(blocked=frozenset({spammer, group}))
    (left,) = await ledger.votes.rated_exchanges(trust)
    assert (left.exchange.id, left.ups, left.raters) == (asked[0], 1, (friend,))
    assert await ledger.votes.preferences(trust) == []


async def test_an_author_alone_confirms_nothing(ledger: Ledger, rated: int) -> None:
    """Corrections confirmed only by their author are not used for training, unless the author is an admin."""
    for update in range(60):
        await ledger.corrections.confirm(await ledger.corrections.add(Correction(rated, 66, "Buy!", 100 + update)), 66)
    assert await ledger.votes.rated_exchanges() == []
    (mine,) = await ledger.votes.rated_exchanges(Trust(admins=frozenset({66})))
    assert (mine.exchange.answer, mine.corrected) == ("Buy!", True)
    assert await ledger.corrections.count_since(66, 0, exchange=rated) == 0
    assert await ledger.corrections.count_since(66, 0, exchange=rated + 1) == 1


async def test_votes_of_new_people_count_later(ledger: Ledger, rated: int) -> None:
    """Votes and corrections from new users are stored but count only after a while; admins' count at once."""
    later = time.time() + 7200
    ledger.votes._clock = ledger.corrections._clock = lambda: later
    for rater in (1, 2, 3):
        await ledger.votes.cast(Rating(rated, rater, 1, 10 + rater))
    await ledger.corrections.confirm(await ledger.corrections.add(Correction(rated, 2, "Better.", 20)), 1)
    age = Trust(newcomer_seconds=3600)
    (found,) = await ledger.votes.rated_exchanges(age)
    assert (found.ups, found.raters, found.corrected) == (1, (1,), False)
    assert await ledger.votes.preferences(age) == []
    waiting = await ledger.votes.newcomers(age)
    assert waiting is not None and (waiting.people, waiting.wait) == (2, 3600)
    assert waiting.first == later + 3600
    assert await ledger.votes.newcomers(Trust()) is None
    (found,) = await ledger.votes.rated_exchanges(Trust(admins=frozenset({3}), newcomer_seconds=3600))
    assert found.raters == (1, 3)
    ledger.votes._clock = lambda: later + 3700
    (found,) = await ledger.votes.rated_exchanges(age)
    assert found.corrected
    assert await ledger.votes.newcomers(age) is None


async def test_the_approval_of_a_model_has_each_raters_latest_vote(ledger: Ledger, rated: int) -> None:
    """A model's approval counts each rater's latest vote; users who opted out are ignored.

    Models without votes are omitted.
    """
    session = await ledger.sessions.open(1, 1)
    other = (await ledger.exchanges.record(exchange(session, 2, model="run-1"))).id
    await ledger.exchanges.record(exchange(session, 3, model="run-2"))
    votes = [(rated, 1, 1), (rated, 2, -1), (rated, 3, -1), (rated, 3, 1), (rated, 4, 1), (rated, 4, 0), (other, 2, 1)]
    for update, vote in enumerate(votes, start=10):
        await ledger.votes.cast(Rating(*vote, update))
    assert await ledger.counts.approvals() == {"base": Approval(2, 1), "run-1": Approval(1, 0)}
    await ledger.people.set_opted_out(2, True)
    assert await ledger.counts.approvals() == {"base": Approval(2, 0)}


async def test_votes_per_day_add_up_to_the_approval(ledger: Ledger, rated: int) -> None:
    """A vote counts on its own day, a changed one on the day of the change, and a withdrawn one not at all."""
    day = 86_400.0
    for update, (rater, value, when) in enumerate(
        [(1, 1, 3 * day), (2, -1, 3 * day), (2, 1, 5 * day - 1), (3, -1, 5 * day), (4, 1, 6 * day), (4, 0, 7 * day)],
        start=10,
    ):
        await ledger.votes.cast(Rating(rated, rater, value, update, created=when))
    found = await ledger.counts.votes_per_day()
    days = {"1970-01-04": Approval(1, 0), "1970-01-05": Approval(1, 0), "1970-01-06": Approval(0, 1)}
    assert found == {"base": days} and list(found["base"]) == list(days)
    assert await ledger.counts.approvals() == {"base": Approval(2, 1)}
