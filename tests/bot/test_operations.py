"""The order of model switches.

The deployment and the ledger are real, the engines are fake, and training is a stub.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from bot.admin.judging_engines import JudgingEngines
from bot.admin.model_switch import ModelSwitch
from bot.admin.refusals import AdminRefusal
from inference.serving.supervisor import State
from inference.settings import InferenceSettings
from storage.errors import NotSaved
from storage.learning_records import Model, Run
from storage.ledger import Ledger
from storage.state_machines import ModelState, RunState
from tests.support.children import until
from tests.support.deployments import QUICK, a_model, deployed, under_way
from tests.support.ledgers import full_disk
from tests.support.operating import merged_models, serving


class Training:
    """A stub of the training pipeline whose run lasts until `over` is set."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.planner = self
        self.over = asyncio.Event()

    async def plan(self, _: object) -> None:
        """Do nothing, as if a run could always start."""

    async def run(self, run: Run, *_: object) -> Model | None:
        await self._ledger.runs.move(run.id, RunState.TRAINING)
        await self.over.wait()
        await self._ledger.runs.move(run.id, RunState.FAILED, reason="enough")
        return None


@pytest.mark.parametrize("swap", ["blue-green", "cold"])
async def test_no_model_changes_while_training_has_the_memory(tmp_path: Path, swap: str) -> None:
    """A model switch in progress completes before the engines pause for training.

    A switch requested during training is refused with the reason, and works afterwards.
    """
    second = a_model(tmp_path, "b")
    async with Ledger.open(tmp_path / "ledger") as ledger, deployed(tmp_path, swap=swap) as deployment:
        for name, directory in (("a", tmp_path / "a"), ("b", second)):
            await ledger.models.add(Model(name, str(directory), ModelState.CANDIDATE, None, 0.0))
        await ledger.promotions.make("a")
        training = Training(ledger)
        changeover = ModelSwitch(ledger, deployment, merged_models(ledger, tmp_path), pause_while_training=True)
        async with serving(ledger, training, changeover) as runs:
            talk, _ = await under_way(deployment, "words:3 gate:1", "chat")
            changing = asyncio.create_task(changeover.promote("b", None))
            await until(lambda: deployment.status().swapping_to or deployment.status().nodes[0].away)
            run = await runs.retrain(1)
            await until(lambda: changeover.away_for == run.id)
            assert not changing.done()
            (tmp_path / "a" / "gate").touch()
            assert (await changing).state is ModelState.LIVE
            await talk
            await until(lambda: deployment.status().paused and not deployment.status().pids)
            with pytest.raises(AdminRefusal, match=rf"run {run.id} trains.*again"):
                await changeover.promote("a", None)
            asked = await ledger.promotions.request("a")
            while not (refused := await ledger.promotions.get(asked.id)).error:
                await asyncio.sleep(0.02)
            assert f"run {run.id} trains" in refused.error
            assert deployment.status().pids == ()
            training.over.set()
            await until(lambda: deployment.status().state is State.READY)
            assert deployment.status().model == "b"
            await changeover.rollback(None)
            assert deployment.status().model == "a"


@pytest.mark.parametrize("asked", ["here", "by another process"])
async def test_a_change_that_cannot_be_recorded_is_undone(tmp_path: Path, asked: str) -> None:
    """If a full disk prevents recording a model switch, the engine returns to the model that the ledger names.

    A request from another process is not retried while the disk is full, and is refused once there is room.
    """
    second = a_model(tmp_path, "b")
    async with Ledger.open(tmp_path / "ledger") as ledger, deployed(tmp_path, swap="blue-green") as deployment:
        for name, directory in (("a", tmp_path / "a"), ("b", second)):
            await ledger.models.add(Model(name, str(directory), ModelState.CANDIDATE, None, 0.0))
        await ledger.promotions.make("a")
        changeover = ModelSwitch(ledger, deployment, merged_models(ledger, tmp_path), pause_while_training=False)
        request = await ledger.promotions.request("b") if asked == "by another process" else None
        with full_disk(ledger):
            for _ in range(2):
                with pytest.raises(NotSaved):
                    await (changeover.carry_out(request) if request else changeover.promote("b", None))
        assert (deployment.status().model, await ledger.models.live()) == ("a", await ledger.models.get("a"))
        assert deployment.status().counters.swaps == (2 if request else 4)
        if request:
            await changeover.carry_out(request)
            assert (await ledger.promotions.get(request.id)).error == "the disk is full"
        assert (await changeover.promote("b", None)).state is ModelState.LIVE


async def test_a_candidate_has_an_engine_while_it_is_judged(tmp_path: Path) -> None:
    """An evaluation may ask the live model's engine and one for the candidate, until the candidate's is stopped.

    The candidate's engine is not started if it would end a canary or use memory that training needs, and one that
    cannot start is done without.
    """
    async with Ledger.open(tmp_path / "ledger") as ledger, deployed(tmp_path) as deployment:
        for name in "abc":
            await ledger.models.add(Model(name, str(a_model(tmp_path, name)), ModelState.CANDIDATE, None, 0.0))
        await ledger.promotions.make("a")
        switch = ModelSwitch(ledger, deployment, merged_models(ledger, tmp_path), pause_while_training=True)
        engines = JudgingEngines(deployment, switch, InferenceSettings.model_validate(QUICK))
        live = deployment.status().pid
        [of_live] = engines.of("a", tmp_path / "a")
        assert (of_live.directory, of_live.name, of_live.at_once) == (str(tmp_path / "a"), "a", 4)
        await engines.start("b", tmp_path / "b")
        [of_candidate] = engines.of("b", tmp_path / "b")
        assert of_candidate.url != of_live.url and of_candidate.key != of_live.key
        await switch.stop_after_evaluation()
        assert (deployment.status().pids, engines.of("b", tmp_path / "b")) == ((live,), [])

        await engines.start("d", a_model(tmp_path, "d", start="exit"))
        assert (deployment.status().pids, engines.of("d", tmp_path / "d")) == ((live,), [])

        await switch.begin_trial("b", 0.5)
        await engines.start("c", tmp_path / "c")
        await switch.stop_after_evaluation()
        assert engines.of("c", tmp_path / "c") == [] and engines.of("b", tmp_path / "b") != []
        await switch.promote("a", None, confirmed=True)
        async with switch.engine_away(7):
            assert engines.of("a", tmp_path / "a") == []
            await engines.start("c", tmp_path / "c")
            assert deployment.status().pids == ()


@pytest.mark.parametrize(
    ("kind", "gigabytes", "limit", "fits"),
    [
        ("cpu", 12, "max", True),
        ("cpu", 8, "max", False),
        ("cpu", 12, "8000000000", False),
        ("lmdeploy", 12, "max", False),
    ],
)
def test_a_candidate_s_engine_starts_beside_a_worker_only_where_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, gigabytes: int, limit: str, fits: bool
) -> None:
    """Beside the taste test, an engine starts on a CPU if six times the weights are at most half of the free memory.

    In a container, its limit counts too.
    """
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(900_000_000)
    pages = {"SC_PAGE_SIZE": 1, "SC_AVPHYS_PAGES": gigabytes * 10**9}
    monkeypatch.setattr("bot.admin.judging_engines.os.sysconf", pages.__getitem__)
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    monkeypatch.setattr("bot.admin.judging_engines._CONTAINER_LIMIT", tmp_path / "memory.max")
    unused: Any = None
    engines = JudgingEngines(unused, unused, InferenceSettings(engine=kind))
    assert engines.fit_beside_workers(tmp_path) == fits
