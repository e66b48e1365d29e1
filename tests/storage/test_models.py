"""Models and promotions in the ledger."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from storage.errors import IllegalTransition, StorageError, UnknownRecord
from storage.learning_records import Actor, Model
from storage.ledger import Ledger
from storage.state_machines import MODEL_TRANSITIONS, ModelState


def model(name: str, state: ModelState = ModelState.CANDIDATE, created: float = 0.0) -> Model:
    return Model(name, f"/models/{name}", state, None, created, report='{"better": true}', manifest_hash="feed")


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    async with Ledger.open(tmp_path) as ledger:
        yield ledger


async def states(ledger: Ledger) -> dict[str, ModelState]:
    return {each.id: each.state for each in await ledger.models.all()}


async def test_models_are_kept(ledger: Ledger) -> None:
    """A model is read back as it was added; a duplicate name and an unknown name are errors."""
    run = await ledger.runs.start("admin")
    added = Model("run-1", "/models/run-1", ModelState.CANDIDATE, run.id, 12.0, "", "{}", "feed")
    await ledger.models.add(added)
    assert await ledger.models.get("run-1") == added
    assert await ledger.models.all() == [added]
    with pytest.raises(StorageError, match="already"):
        await ledger.models.add(added)
    with pytest.raises(UnknownRecord, match="no model run-2"):
        await ledger.models.get("run-2")


@pytest.mark.parametrize("start", ModelState)
@pytest.mark.parametrize("end", [state for state in ModelState if state is not ModelState.LIVE])
async def test_transitions(ledger: Ledger, start: ModelState, end: ModelState) -> None:
    """A model can enter exactly the states that MODEL_TRANSITIONS lists for its current state."""
    await ledger.models.add(model("run-1", start))
    if end in MODEL_TRANSITIONS[start]:
        moved = await ledger.models.move("run-1", end, "worse than the live one")
        assert (moved.state, moved.reason) == (end, "worse than the live one")
    else:
        with pytest.raises(IllegalTransition, match=f"is {start} and cannot become {end}"):
            await ledger.models.move("run-1", end)
        assert (await ledger.models.get("run-1")).state is start


async def test_rollbacks_step_further_back(ledger: Ledger) -> None:
    """Each successive rollback goes further back, never to a model that an earlier rollback replaced.

    A rollback can also undo a promotion.
    """

    async def back() -> str:
        previous = await ledger.models.previous()
        assert previous is not None
        await ledger.promotions.make(previous.id, back=True)
        return previous.id

    for number, name in enumerate(("base", "run-1", "run-2", "run-3")):
        await ledger.models.add(model(name, created=number + 1.0))
        await ledger.promotions.make(name)
    assert [await back(), await back()] == ["run-2", "run-1"]
    await ledger.promotions.make("run-3")
    await ledger.promotions.make("run-1")
    assert [await back(), await back(), await back()] == ["run-3", "run-1", "base"]
    assert await ledger.models.previous() is None
    await ledger.promotions.make("run-2")
    await ledger.promotions.make("run-3")
    await ledger.models.drop_directory("run-2")
    assert await back() == "base"


async def test_a_promotion_retires_the_live_model(ledger: Ledger) -> None:
    """A promotion makes a model live, retires the previous live model and records who decided.

    Any model still stored can be promoted next.
    """
    assert await ledger.models.live() is None
    for name, created in (("base", 1.0), ("run-1", 2.0), ("run-2", 3.0)):
        await ledger.models.add(model(name, created=created))
    first = await ledger.promotions.make("base")
    assert (first.model, first.previous, first.by, first.done) == ("base", None, None, first.created)
    assert await ledger.models.previous() is None
    assert (await ledger.promotions.make("run-1", Actor("Ada", 7))).previous == "base"
    assert await states(ledger) == {
        "base": ModelState.RETIRED, "run-1": ModelState.LIVE, "run-2": ModelState.CANDIDATE
    }  # fmt: skip
    previous = await ledger.models.previous()
    assert previous is not None
    assert previous.id == "base"
    await ledger.promotions.make("base", Actor("Olga"))
    live = await ledger.models.live()
    assert live is not None
    assert live.id == "base"
    assert [(each.model, each.previous) for each in await ledger.promotions.latest()] == [
        ("base", "run-1"), ("run-1", "base"), ("base", None)
    ]  # fmt: skip


async def test_a_rejected_model_can_be_promoted_all_the_same(ledger: Ledger) -> None:
    """An admin can promote a rejected model, and the model keeps the reason for its rejection."""
    await ledger.models.add(model("run-1"))
    await ledger.models.move("run-1", ModelState.REJECTED, "worse")
    await ledger.promotions.make("run-1", Actor("Ada", 7))
    kept = await ledger.models.get("run-1")
    assert (kept.state, kept.reason) == (ModelState.LIVE, "worse")


async def test_only_one_model_is_live(ledger: Ledger) -> None:
    """Adding or promoting models or changing their states, even concurrently, never makes two of them live."""
    await ledger.models.add(model("base", ModelState.LIVE))
    with pytest.raises(StorageError, match="base is live"):
        await ledger.models.add(model("other", ModelState.LIVE))
    names = [f"run-{number}" for number in range(6)]
    for name in names:
        await ledger.models.add(model(name))
    with pytest.raises(IllegalTransition, match="promotion"):
        await ledger.models.move("run-1", ModelState.LIVE)
    with pytest.raises(IllegalTransition, match="base is live"):
        await ledger.promotions.make("base")
    await asyncio.gather(*(ledger.promotions.make(name) for name in names))
    assert sorted((await states(ledger)).values()).count(ModelState.LIVE) == 1


async def test_a_promotion_asked_for_in_a_shell(ledger: Ledger, tmp_path: Path) -> None:
    """A promotion requested by another process stays pending until the bot completes it or reports a failure.

    Completing the promotion makes the model live.
    """
    await ledger.models.add(model("base", ModelState.LIVE))
    await ledger.models.add(model("run-1"))
    async with Ledger.open(tmp_path) as shell:
        asked = await shell.promotions.request("run-1")
        with pytest.raises(UnknownRecord):
            await shell.promotions.request("run-9")
        with pytest.raises(IllegalTransition):
            await shell.promotions.request("base")
    assert await ledger.promotions.pending() == [asked]
    assert (await ledger.models.get("run-1")).state is ModelState.CANDIDATE
    failed = await ledger.promotions.finish(asked.id, "green did not start")
    assert (failed.done, failed.error) == (None, "green did not start")
    assert await ledger.promotions.pending() == []
    assert (await ledger.models.get("run-1")).state is ModelState.CANDIDATE
    again = await ledger.promotions.request("run-1")
    finished = await ledger.promotions.finish(again.id)
    assert finished.done is not None
    assert await ledger.promotions.get(again.id) == finished
    assert await states(ledger) == {"base": ModelState.RETIRED, "run-1": ModelState.LIVE}
    with pytest.raises(IllegalTransition, match="already closed"):
        await ledger.promotions.finish(again.id)


async def test_finishing_after_the_promotion_itself(ledger: Ledger) -> None:
    """A promotion request is closed without further changes if its model has become live in the meantime."""
    await ledger.models.add(model("run-1"))
    asked = await ledger.promotions.request("run-1")
    await ledger.promotions.make("run-1")
    assert (await ledger.promotions.finish(asked.id)).done is not None
    assert await states(ledger) == {"run-1": ModelState.LIVE}


async def test_a_removed_model_stays_in_the_books(ledger: Ledger) -> None:
    """A model whose files were removed keeps its row but can be neither promoted nor rolled back to."""
    await ledger.models.add(model("base", ModelState.LIVE))
    await ledger.models.add(model("run-1"))
    await ledger.promotions.make("run-1")
    with pytest.raises(IllegalTransition, match="run-1 is live"):
        await ledger.models.drop_directory("run-1")
    assert (await ledger.models.drop_directory("base")).directory == ""
    assert await ledger.models.previous() is None
    with pytest.raises(IllegalTransition, match="were deleted"):
        await ledger.promotions.make("base")
    with pytest.raises(IllegalTransition, match="were deleted"):
        await ledger.promotions.request("base")
