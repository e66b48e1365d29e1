"""How the demo's bot tells the chat page where its learning stands."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from bot.admin.run_manager import RunManager
from bot.cli.demo_learning import learning
from storage.learning_records import Rating
from storage.state_machines import ModelState
from tests.support.children import until
from tests.support.operating import Admins, serving
from tests.support.pipelines import Room
from training.gate.report import Decision, Report


@pytest_asyncio.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    made = Room(tmp_path)
    await made.fill()
    yield made
    await made.ledger.close()


async def votes(room: Room, *, likes: bool) -> None:
    """Add answers until 14 of the live model can judge a run, of which six are disliked unless `likes` is true."""
    for number in range(10, 14):
        await room.like(10 * number, f"rgb({number}, 0, 0)")
    for exchange in () if likes else range(9, 15):
        await room.ledger.votes.cast(Rating(exchange, 1, -1, 900 + exchange))


async def stands(runs: RunManager) -> tuple[str, str]:
    found = await learning(runs)
    return found["run"], found["votes"]


async def test_learning_from_the_first_vote_to_a_rejected_model(room: Room) -> None:
    """The votes are ready for a run, which learns from them all; a rejected model leaves the old one in place."""
    async with serving(room.ledger, room.pipeline(min_rated=6), admins=Admins()) as runs:
        assert await stands(runs) == ("", ""), "too few answers can judge a run"
        await votes(room, likes=False)
        assert await stands(runs) == ("", "ready")
        room.trainer.report = Report(Decision.REJECTED, "it forgot", harmful=True)
        room.trainer.hangs = "train"
        run = await runs.retrain(7)
        await room.trainer.hanging.wait()
        assert await stands(runs) == ("running", "")
        room.trainer.over.set()
        await until(lambda: runs._work is None and not runs._plans)
        assert (await room.ledger.models.get(f"run-{run.id}")).state is ModelState.REJECTED
        assert await stands(runs) == ("kept", ""), "there is nothing new to learn from"
        await room.ledger.votes.cast(Rating(9, 1, 1, 990))
        assert await stands(runs) == ("kept", "ready")


async def test_votes_that_like_everything(room: Room) -> None:
    """If nearly all answers are liked, the page can say so before a run."""
    async with serving(room.ledger, room.pipeline(), admins=Admins()) as runs:
        await votes(room, likes=True)
        assert await stands(runs) == ("", "alike")
