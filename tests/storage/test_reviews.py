"""Reviews and blocks: what an operator dropped, edited or blocked, and how it changes what is learned."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from storage.database import Database, Migrations
from storage.errors import StorageError, UnknownRecord
from storage.learning_records import Correction, Rating, Review, ReviewDecision, Trust
from storage.ledger import FILE_NAME, Ledger
from storage.migrations import migrate, migrations
from storage.state_machines import RunState
from tests.support.ledgers import exchange

DAY = 86_400.0


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    async with Ledger.open(tmp_path) as ledger:
        yield ledger


@pytest.fixture
async def liked(ledger: Ledger) -> list[int]:
    """Return the IDs of three answers in one conversation, each liked by users 1 and 2."""
    session = await ledger.sessions.open(1, 1)
    ids = [(await ledger.exchanges.record(exchange(session, update))).id for update in range(3)]
    for number in ids:
        for rater in (1, 2):
            await ledger.votes.cast(Rating(number, rater, 1, 100 * rater + number))
    return ids


async def review(ledger: Ledger, number: int, decision: ReviewDecision, text: str = "") -> int:
    return await ledger.reviews.add(Review(number, decision, "web", text))


async def answers(ledger: Ledger, reviews: int | None = None) -> dict[int, str]:
    """Return the answers to learn from, by the IDs of the exchanges."""
    found = await ledger.votes.rated_exchanges(reviews=reviews)
    return {each.exchange.id: each.exchange.answer for each in found}


async def test_what_was_dropped_teaches_nothing_until_it_is_kept(ledger: Ledger, liked: list[int]) -> None:
    """A dropped exchange is no lesson, but stays in the history of later ones; a later "keep" brings it back."""
    await review(ledger, liked[1], ReviewDecision.DROP)
    found = await ledger.votes.rated_exchanges()
    assert [each.exchange.id for each in found] == [liked[0], liked[2]]
    assert [each.id for each in found[1].history] == liked[:2]
    assert liked[1] not in {each.chosen.exchange.id for each in await ledger.votes.preferences()}
    await review(ledger, liked[1], ReviewDecision.KEEP)
    assert [*await answers(ledger)] == liked


async def test_an_edit_is_learned_instead_of_the_answer(ledger: Ledger, liked: list[int]) -> None:
    """The text of the latest edit replaces the answer and counts for those who liked it.

    It is preferred to the answer, and takes precedence over a confirmed correction.
    """
    shown = await ledger.corrections.add(Correction(liked[0], 3, "Corrected.", 900))
    await ledger.corrections.confirm(shown, 2)
    await review(ledger, liked[0], ReviewDecision.EDIT, "First edit.")
    await review(ledger, liked[0], ReviewDecision.EDIT, "  Second edit. ")
    first, *_ = await ledger.votes.rated_exchanges()
    assert (first.exchange.answer, first.exchange.finish, first.corrected) == ("Second edit.", "stop", True)
    assert (first.ups, first.downs, first.liked_by) == (2, 0, (1, 2))
    (pair,) = await ledger.votes.preferences()
    assert (pair.chosen.exchange.answer, pair.rejected) == ("Second edit.", "Answer to 0.")


async def test_an_edit_needs_no_vote(ledger: Ledger) -> None:
    """An edited answer without votes is learned, and survives the expiry of unrated answers; a drop does not."""
    session = await ledger.sessions.open(1, 1)
    number = (await ledger.exchanges.record(exchange(session, 1, created=DAY))).id
    await review(ledger, number, ReviewDecision.EDIT, "Better.")
    assert await answers(ledger) == {number: "Better."}
    assert await ledger.personal_data.expire(2 * DAY) == 0
    other = (await ledger.exchanges.record(exchange(await ledger.sessions.restart(1, 1), 2, created=DAY))).id
    await review(ledger, other, ReviewDecision.DROP)
    assert await ledger.personal_data.expire(2 * DAY) == 1


async def test_a_run_keeps_to_the_reviews_it_was_planned_with(ledger: Ledger, liked: list[int]) -> None:
    """Reviews after a given one do not change what a run learns that was planned at that time."""
    edit = await review(ledger, liked[0], ReviewDecision.EDIT, "Better.")
    await review(ledger, liked[0], ReviewDecision.DROP)
    await review(ledger, liked[1], ReviewDecision.DROP)
    assert await answers(ledger, edit) == {
        liked[0]: "Better.",
        liked[1]: "Answer to 1.",
        liked[2]: "Answer to 2.",
    }
    assert await answers(ledger, 0) == {number: f"Answer to {place}." for place, number in enumerate(liked)}
    assert [*await answers(ledger)] == [liked[2]]


async def test_an_undone_decision_changes_nothing_that_is_learned(ledger: Ledger, liked: list[int]) -> None:
    """After an undo the votes decide as before, and an edited answer without votes expires again.

    A run that was planned before the undo keeps to the decision. A decision after the undo counts.
    """
    before = await ledger.votes.rated_exchanges()
    session = await ledger.sessions.restart(1, 1)
    unrated = (await ledger.exchanges.record(exchange(session, 9, created=DAY))).id
    await review(ledger, liked[0], ReviewDecision.DROP)
    await review(ledger, liked[1], ReviewDecision.EDIT, "Better.")
    planned = await review(ledger, unrated, ReviewDecision.EDIT, "Better.")
    for number in (liked[0], liked[1], unrated):
        await review(ledger, number, ReviewDecision.UNDO)
    assert await ledger.votes.rated_exchanges() == before
    assert await answers(ledger, planned) == {liked[1]: "Better.", liked[2]: "Answer to 2.", unrated: "Better."}
    await review(ledger, liked[2], ReviewDecision.UNDO)
    await review(ledger, liked[2], ReviewDecision.DROP)
    assert [*await answers(ledger)] == liked[:2]
    assert await ledger.personal_data.expire(2 * DAY) == 1


def test_reviews_of_an_earlier_version_stay(tmp_path: Path) -> None:
    """A ledger from before decisions could be undone keeps its reviews and their IDs, and never reuses an ID."""
    earlier = Migrations("thumbtune")
    for each in migrations._migrations[:28]:
        earlier(name=each.name)(each.fn)
    add = "INSERT INTO reviews(exchange, decision, text, reviewer, created) VALUES (?, ?, ?, 'Olga', 1.5)"
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as database:
        migrate(Database(database), earlier)
        with pytest.raises(sqlite3.IntegrityError):
            database.execute(add, (1, "undo", ""))
        database.executemany(add, [(1, "drop", ""), (1, "edit", "Better."), (2, "keep", "")])
        database.execute("DELETE FROM reviews WHERE exchange = 2")
        database.commit()
        before = database.execute("SELECT * FROM reviews").fetchall()
        migrate(Database(database))
        assert database.execute("SELECT * FROM reviews").fetchall() == before
        assert database.execute(add, (1, "undo", "")).lastrowid == 4
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            database.execute("UPDATE reviews SET decision = 'keep'")
        names = {row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE tbl_name = 'reviews'")}
        assert names == {"reviews", "reviews_exchange", "reviews_author", "reviews_are_append_only"}


async def test_a_review_is_checked_and_never_changed(ledger: Ledger, liked: list[int], tmp_path: Path) -> None:
    """An edit needs a text, a review needs an exchange, and a stored review cannot be changed."""
    with pytest.raises(StorageError, match="can't be empty"):
        await review(ledger, liked[0], ReviewDecision.EDIT, " ")
    with pytest.raises(UnknownRecord):
        await review(ledger, 999, ReviewDecision.DROP)
    number = await review(ledger, liked[0], ReviewDecision.DROP, "not an edit")
    assert number == await ledger.reviews.newest()
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as database:
        assert database.execute("SELECT text, reviewer FROM reviews").fetchall() == [("", "web")]
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            database.execute("UPDATE reviews SET decision = 'keep'")


async def test_an_edit_of_someones_words_goes_with_them(ledger: Ledger, liked: list[int], tmp_path: Path) -> None:
    """An edit that began with a person's correction is not learned once they opt out, and is erased with them.

    An edit of an edit counts as theirs too. Erasing the person who asked erases all reviews of the exchange.
    """
    shown = await ledger.corrections.add(Correction(liked[0], 3, "Corrected.", 900))
    await ledger.corrections.confirm(shown, 2)
    await review(ledger, liked[0], ReviewDecision.EDIT, "Corrected a little.")
    await ledger.corrections.confirm(shown, None)
    await review(ledger, liked[0], ReviewDecision.EDIT, "Corrected a little more.")
    await review(ledger, liked[1], ReviewDecision.EDIT, "The operator's own words.")
    await ledger.people.set_opted_out(3, True)
    assert (await answers(ledger))[liked[0]] == "Answer to 0."
    await ledger.people.set_opted_out(3, False)
    assert (await answers(ledger))[liked[0]] == "Corrected a little more."
    await ledger.personal_data.erase(3)
    assert [*(await answers(ledger)).values()] == ["Answer to 0.", "The operator's own words.", "Answer to 2."]
    await ledger.personal_data.erase(1)
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as database:
        assert database.execute("SELECT * FROM reviews").fetchall() == []


async def test_a_blocked_person_teaches_nothing_even_after_erasure(ledger: Ledger, liked: list[int]) -> None:
    """The votes and questions of a person blocked on the page do not count; erasing the data keeps the block."""
    await ledger.blocks.add(2, "web")
    await ledger.blocks.add(2, "again")
    found = await ledger.votes.rated_exchanges()
    assert [(each.ups, each.raters) for each in found] == [(1, (1,))] * 3
    await ledger.personal_data.erase(2)
    assert await ledger.blocks.includes(2) and not await ledger.blocks.includes(1)
    await ledger.blocks.add(1, "web")
    assert await ledger.votes.rated_exchanges(Trust()) == []
    await ledger.blocks.remove(1)
    assert [each.exchange.id for each in await ledger.votes.rated_exchanges()] == liked


async def test_a_limited_run_stays_limited(ledger: Ledger, liked: list[int]) -> None:
    """The limit of a run is stored with it; erased exchanges leave it without lifting it."""
    assert await ledger.runs.limit(await ledger.runs.start("admin", 7)) is None
    await ledger.runs.request_cancel(1)
    await ledger.runs.move(1, RunState.CANCELLED)
    run = await ledger.runs.start("web", only=[*liked[:2], 999])
    assert (run.trigger, run.requested_by, run.limited) == ("web", None, True)
    assert await ledger.runs.limit(run) == frozenset(liked[:2])
    await ledger.personal_data.erase(1)
    assert await ledger.runs.limit(run) == frozenset()
