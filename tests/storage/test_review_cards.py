"""Cards: what an operator sees of an exchange, and which filters select it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from storage.chat_records import Chat, Person, PictureState
from storage.learning_records import Correction, Rating, Review, ReviewDecision
from storage.ledger import Ledger
from storage.review_cards import CardFilter
from tests.support.ledgers import exchange, picture

ADA, BEN, GROUP = 11, 12, -500


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    async with Ledger.open(tmp_path) as ledger:
        await ledger.people.save(Person(ADA, "Ada"), Chat(ADA))
        await ledger.people.save(Person(BEN, "Ben"), Chat(GROUP, "group", "Friends"))
        for name, state in (("aa", PictureState.CLEAN), ("bb", PictureState.QUARANTINED)):
            await ledger.pictures.add(picture(name, state=state))
        yield ledger


class Asked:
    """Records exchanges and votes with ascending update IDs."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._update = 0

    async def __call__(self, votes: dict[int, int], *, session: int = 0, **fields: Any) -> int:
        """Record an exchange with one vote by each rater in `votes`, and return its ID."""
        chat = fields.setdefault("chat", ADA)
        asker = fields.setdefault("asker", ADA)
        session = session or await self._ledger.sessions.restart(chat, asker)
        self._update += 1
        number = (await self._ledger.exchanges.record(exchange(session, self._update, **fields))).id
        for rater, value in votes.items():
            self._update += 1
            await self._ledger.votes.cast(Rating(number, rater, value, self._update))
        return number


@pytest.fixture
def asked(ledger: Ledger) -> Asked:
    return Asked(ledger)


async def shown(ledger: Ledger, **fields: Any) -> list[int]:
    """Return the IDs of the cards that a filter selects, checked against the number that it reports."""
    cards, more = await ledger.review_cards.page(CardFilter(**fields), None, 100)
    assert not more
    assert (await ledger.review_cards.totals(CardFilter(**fields), 0))[0] == len(cards)
    return [card.exchange.id for card in cards]


async def test_a_card_has_all_that_is_known(ledger: Ledger, asked: Asked) -> None:
    """A card has the conversation as it was, its picture, the latest votes with reasons, corrections and reviews."""
    session = await ledger.sessions.restart(GROUP, BEN)
    first = await asked({}, session=session, chat=GROUP, asker=BEN, pictures=("aa",), question="What?")
    number = await asked({BEN: 1, ADA: 1}, session=session, chat=GROUP, asker=BEN, question="And now?")
    await asked({}, session=session, chat=GROUP, asker=BEN, question="Asked again", replaces=first)
    await ledger.votes.cast(Rating(number, ADA, -1, 900, reason="tone"))
    shown = await ledger.corrections.add(Correction(number, ADA, "Corrected.", 901))
    (card,), _ = await ledger.review_cards.page(CardFilter(), None, 10)
    assert (card.exchange.id, card.asker, card.chat) == (number, "Ben", Chat(GROUP, "group", "Friends"))
    assert [each.question for each in card.history] == ["What?"]
    assert [each.sha256 for each in card.pictures] == ["aa"]
    assert [(each.name, each.value, each.reason) for each in card.votes] == [("Ben", 1, ""), ("Ada", -1, "tone")]
    assert (card.correction, card.reviews, card.taught) == ("", (), "Answer to 2.")
    await ledger.corrections.confirm(shown, BEN)
    (card,), _ = await ledger.review_cards.page(CardFilter(), None, 10)
    assert (card.correction, card.taught) == ("Corrected.", "Corrected.")
    await ledger.reviews.add(Review(number, ReviewDecision.EDIT, "Olga", "Edited."))
    (card,), _ = await ledger.review_cards.page(CardFilter(), None, 10)
    (review,) = card.reviews
    assert (review.reviewer, review.created > 0, card.taught) == ("Olga", True, "Edited.")


async def test_a_long_conversation_is_cut(ledger: Ledger, asked: Asked) -> None:
    """A card has the last questions about its picture, and the picture however long ago it was sent.

    Questions about an earlier picture, which the model does not see, are left out.
    """
    session = await ledger.sessions.restart(ADA, ADA)
    ids = [await asked({}, session=session, pictures=("aa",))]
    ids += [await asked({}, session=session) for _ in range(12)]
    number = await asked({ADA: 1}, session=session)
    (card,), _ = await ledger.review_cards.page(CardFilter(), None, 10)
    assert card.exchange.id == number and [each.id for each in card.history] == ids[-10:]
    assert [each.sha256 for each in card.pictures] == ["aa"]
    shown = await asked({ADA: 1}, session=session, pictures=("bb",))
    again = await asked({}, session=session, pictures=("bb",), replaces=shown)
    followed = await asked({ADA: 1}, session=session)
    (last, first), _ = await ledger.review_cards.page(CardFilter(), None, 2)
    assert (first.exchange.id, first.history) == (shown, ())
    assert last.exchange.id == followed and [each.id for each in last.history] == [again]


async def test_a_quarantined_picture_is_not_shown(ledger: Ledger, asked: Asked) -> None:
    """The card of an exchange about a quarantined picture has no picture."""
    await asked({ADA: 1}, pictures=("bb",))
    (card,), _ = await ledger.review_cards.page(CardFilter(), None, 10)
    assert card.pictures == ()


async def test_filters(ledger: Ledger, asked: Asked) -> None:
    """Each filter selects the exchanges that it describes; together they narrow down the selection."""
    liked = await asked({ADA: 1, BEN: 1}, question="100 % red?", created=100.0)
    disliked = await asked({ADA: -1}, model="run-1", created=200.0)
    even = await asked({ADA: 1, BEN: -1}, chat=GROUP, asker=BEN, answer="A RED cup_", created=300.0)
    unrated = await asked({}, created=400.0)
    taken_back = await asked({ADA: 1}, created=500.0)
    await ledger.votes.cast(Rating(taken_back, ADA, 0, 900))
    await ledger.reviews.add(Review(liked, ReviewDecision.DROP, "web"))
    assert await shown(ledger) == [taken_back, even, disliked, liked]
    assert await shown(ledger, thumb=1) == [liked]
    assert await shown(ledger, thumb=-1) == [disliked]
    assert await shown(ledger, model="run-1") == [disliked]
    assert await shown(ledger, chat=GROUP) == [even]
    assert await shown(ledger, since=200.0, until=500.0) == [even, disliked]
    assert await shown(ledger, text="red") == [even, liked]
    assert await shown(ledger, text="% red") == [liked]
    assert await shown(ledger, text="cup_") == [even]
    assert await shown(ledger, text="_red") == []
    assert await shown(ledger, decision="drop", text="red") == [liked]
    assert await shown(ledger, person=BEN) == [even, liked]
    assert await shown(ledger, person=ADA) == [taken_back, unrated, even, disliked, liked]
    assert await ledger.review_cards.models() == ["base", "run-1"]
    assert await ledger.review_cards.groups() == [Chat(GROUP, "group", "Friends")]


async def test_the_number_to_train_on(ledger: Ledger, asked: Asked) -> None:
    """Liked and complete answers, corrections and edits are counted as lessons; dropped ones are not."""
    liked, dropped, edited, corrected, cut = [
        await asked({ADA: value}, finish=finish)
        for value, finish in ((1, "stop"), (1, "stop"), (-1, "stop"), (-1, "stop"), (1, "length"))
    ]
    await ledger.reviews.add(Review(dropped, ReviewDecision.DROP, "web"))
    await ledger.reviews.add(Review(edited, ReviewDecision.EDIT, "web", "Better."))
    shown = await ledger.corrections.add(Correction(corrected, ADA, "Corrected.", 901))
    await ledger.corrections.confirm(shown, BEN)
    assert await ledger.review_cards.totals(CardFilter(), 0) == (5, 3)
    assert await ledger.review_cards.totals(CardFilter(), 1) == (5, 2)
    assert await ledger.review_cards.kept(CardFilter()) == [liked, edited, corrected, cut]


async def test_an_undone_decision_does_not_count(ledger: Ledger, asked: Asked) -> None:
    """After an undo an exchange is selected and counted as if it had never been reviewed; its card has both reviews.

    A run that took the decision into account still shows it.
    """
    liked, unrated = await asked({ADA: 1}), await asked({})
    await ledger.reviews.add(Review(liked, ReviewDecision.DROP, "Olga"))
    await ledger.reviews.add(Review(unrated, ReviewDecision.EDIT, "Olga", "Better."))
    run = await ledger.runs.start("admin")
    await ledger.run_selections.freeze(run.id, [(unrated, "train")], reviews=await ledger.reviews.newest())
    assert await shown(ledger, unreviewed=True) == []
    assert await ledger.review_cards.totals(CardFilter(), 0) == (2, 1)
    for number in (liked, unrated):
        await ledger.reviews.add(Review(number, ReviewDecision.UNDO, "Ben"))
    assert await shown(ledger) == await shown(ledger, unreviewed=True) == [liked]
    assert await shown(ledger, decision="drop") == await shown(ledger, decision="edit") == []
    assert await ledger.review_cards.totals(CardFilter(), 0) == (1, 1)
    assert await ledger.review_cards.kept(CardFilter()) == [liked]
    (card,), _ = await ledger.review_cards.page(CardFilter(), None, 10)
    assert card.decision is None
    assert [(each.decision, each.reviewer) for each in card.reviews] == [("drop", "Olga"), ("undo", "Ben")]
    (card,), _ = await ledger.review_cards.page(CardFilter(run=run.id), None, 10)
    assert (card.decision, card.taught) == (ReviewDecision.EDIT, "Better.")


async def test_pages_follow_each_other(ledger: Ledger, asked: Asked) -> None:
    """The cursor continues after the last card, even if a new exchange has been rated in the meantime."""
    ids = [await asked({ADA: 1}) for _ in range(5)]
    cards, more = await ledger.review_cards.page(CardFilter(), None, 2)
    assert ([card.exchange.id for card in cards], more) == ([ids[4], ids[3]], True)
    await asked({ADA: 1})
    cards, more = await ledger.review_cards.page(CardFilter(), ids[3], 3)
    assert ([card.exchange.id for card in cards], more) == ([ids[2], ids[1], ids[0]], False)


async def test_a_runs_cards_are_as_it_was_frozen(ledger: Ledger, asked: Asked) -> None:
    """A run's cards are the exchanges that taught or judged it, with the reviews that it took into account."""
    taught, both, judged, other = [await asked({ADA: 1}) for _ in range(4)]
    await ledger.reviews.add(Review(taught, ReviewDecision.EDIT, "web", "Edited before."))
    run = await ledger.runs.start("admin")
    rows = [(taught, "train"), (both, "worse"), (judged, "held_out")]
    await ledger.run_selections.freeze(run.id, rows, judged=[both], reviews=await ledger.reviews.newest())
    await ledger.reviews.add(Review(taught, ReviewDecision.EDIT, "web", "Edited later."))
    await ledger.reviews.add(Review(both, ReviewDecision.DROP, "web"))
    assert await shown(ledger, run=run.id) == [both, taught]
    assert await shown(ledger, run=run.id, judged=True) == [judged, both]
    cards, _ = await ledger.review_cards.page(CardFilter(run=run.id), None, 10)
    assert [card.taught for card in cards] == ["Answer to 3.", "Edited before."]
    assert cards[0].reviews == ()
    assert await shown(ledger, decision="drop") == [both]
    assert other in await shown(ledger)


@pytest.mark.parametrize(
    ("fields", "index"),
    [
        ({}, "exchanges"),
        ({"model": "base"}, "exchanges_model"),
        ({"chat": 1}, "exchanges_chat"),
        ({"since": 1.0, "until": 2.0}, "exchanges_created"),
        ({"person": 1}, "INTEGER PRIMARY KEY"),
        ({"run": 1}, "INTEGER PRIMARY KEY"),
    ],
)
async def test_filters_use_indexes(ledger: Ledger, fields: dict[str, Any], index: str) -> None:
    """A filter on a column searches an index, and the votes of an exchange are always found by one."""
    chosen = CardFilter(thumb=1, **fields)
    plan = [
        row["detail"]
        for row in await ledger._readers.do(
            lambda database: database.execute(
                f"EXPLAIN QUERY PLAN SELECT id FROM exchanges WHERE {chosen.where} ORDER BY id DESC LIMIT 21",
                chosen.values,
            ).fetchall()
        )
    ]
    assert index in plan[0]
    assert any("feedback USING INDEX feedback_exchange (exchange=?)" in step for step in plan)
    assert not any("SCAN feedback" in step for step in plan)
