"""Which changes since the last run give a new run something to learn."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from storage.learning_records import Rating, Review, ReviewDecision
from tests.support.ledgers import exchange
from tests.support.llava_files import foodie
from tests.support.pipelines import Room


@pytest_asyncio.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    """Provide a `Room` with votes and one run that learned from them and ended with a verdict."""
    made = Room(tmp_path)
    await made.fill()
    await made.run()
    yield made
    await made.ledger.close()


async def since(room: Room, **changes: Any) -> int | None:
    """Return the ID of the last run with a verdict, or None if anything to learn from has changed since.

    `changes` override settings.
    """
    run = await room.pipeline(**changes).planner.unchanged_since()
    return run.id if run else None


async def test_drops_and_edits_are_news(room: Room) -> None:
    """A drop or an edit gives a new run something to learn; keeping an answer that is learned anyway does not.

    A run limited to some answers differs from one of all answers, but not from one limited to all of them.
    """
    await room.ledger.reviews.add(Review(1, ReviewDecision.KEEP, "web"))
    assert await since(room) == 1
    whole = (await room.pipeline().planner.plan()).fingerprint
    assert (await room.pipeline().planner.plan(frozenset(range(1, 11)))).fingerprint == whole
    assert (await room.pipeline(min_rated=2).planner.plan(frozenset((1, 2)))).fingerprint != whole
    for decision, text in ((ReviewDecision.DROP, ""), (ReviewDecision.EDIT, "Edited.")):
        await room.ledger.reviews.add(Review(1, decision, "web", text))
        assert await since(room) is None
        await room.ledger.reviews.add(Review(1, ReviewDecision.KEEP, "web"))
        assert await since(room) == 1


async def test_votes_are_news_until_a_run_has_learned_from_them(room: Room) -> None:
    """A new vote gives a new run something to learn until a run has learned from it.

    A vote that was taken back does not count as a change, and a failed run counts as having learned nothing.
    """
    assert await since(room) == 1
    assert (await room.pipeline().planner.plan()).fingerprint
    await room.ledger.votes.cast(Rating(1, 2, -1, 900))
    assert await since(room) is None
    await room.ledger.votes.cast(Rating(1, 2, 0, 901))
    assert await since(room) == 1
    await room.like(910, "brown")
    room.trainer.fails = "train"
    await room.run()
    assert await since(room) is None
    room.trainer.fails = ""
    await room.run()
    assert await since(room) == 3


async def test_another_worse_answer_is_news_for_dpo(room: Room) -> None:
    """For DPO, a second answer to a prompt gives a new run something to learn, even without a vote on it.

    The second answer forms a pair with the liked one.
    """
    await room.run(room.pipeline(objective="dpo"))
    first = await room.ledger.exchanges.get(1)
    again = exchange(first.session, 920, replaces=1, question="Which colour?", answer="Hm.", model="base")
    again = replace(again, prompt_hash=first.prompt_hash)
    await room.ledger.exchanges.record(again)
    assert (await since(room, objective="dpo"), await since(room)) == (None, None)
    assert len(await room.ledger.votes.preferences()) == 1
    await room.run(room.pipeline(objective="dpo"))
    assert await since(room, objective="dpo") == 3


async def test_a_change_of_the_live_model_is_no_news(room: Room) -> None:
    """A promotion or a rollback gives a new run nothing to learn, because the votes are unchanged."""
    await room.ledger.promotions.make("run-1")
    assert await since(room) == 1
    await room.ledger.promotions.make("base", back=True)
    assert await since(room) == 1


@pytest.mark.parametrize(
    "changed",
    [
        {"knobs": {"epochs": 2}},
        {"seed": 1},
        {"threshold": 1},
        {"rater_share": 0},
        {"max_loss_points": 5},
        {"regression": "facts"},
    ],
)
async def test_changed_hyperparameters_are_news(room: Room, changed: dict[str, Any]) -> None:
    """A changed setting that shapes the model or its evaluation is a reason for a new run."""
    assert await since(room, **changed) is None


async def test_where_and_when_it_trains_is_no_news(room: Room) -> None:
    """A changed setting without effect on the model is no reason for a new run.

    Nor is a hyperparameter that is set to the recipe's own value.
    """
    assert await since(room, timeout=60.0, schedule="0 3 * * *", min_rated=4, keep_models=1) == 1
    own = (await room.pipeline().planner.plan()).recipe
    assert not isinstance(own, Path)
    assert await since(room, knobs={"epochs": own.epochs}) == 1


async def test_a_source_is_news_until_it_is_the_same_file(room: Room, tmp_path: Path) -> None:
    """A source gives a new run something to learn if it is new or its file has changed since the last run."""
    file = foodie(tmp_path / "food")
    sources: dict[str, Any] = {"sources": [{"path": str(file)}]}
    assert await since(room, **sources) is None
    await room.run(room.pipeline(**sources))
    assert await since(room, **sources) == 2
    file.write_text(file.read_text() + "\n")
    assert await since(room, **sources) is None


async def test_a_mistake_is_news(room: Room, tmp_path: Path) -> None:
    """An invalid source counts as a change since the last run, so that a new run starts and reports the error."""
    (tmp_path / "sources" / "broken").mkdir(parents=True)
    assert await since(room) is None
