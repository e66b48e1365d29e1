"""A `RunManager` service for tests, with a real ledger, recorded notifications and no engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from bot.admin.canary_trial import Trials
from bot.admin.periodic import repeat
from bot.admin.run_manager import RunManager
from bot.config import Settings
from bot.live_settings import LiveSettings
from inference.engines.commands import Kind
from inference.serving.deployment_status import Counters, Status
from inference.serving.supervisor import State
from storage.learning_records import Actor, Model, Run
from storage.ledger import Ledger
from storage.model_store import ModelStore
from tests.support.lessons import settings
from training.job_specs import TrainingPaths
from training.launcher import ChildTrainer
from training.merged_models import MergedModels


class Admins:
    """A stub for the admin notifications; it records finished runs and the keys of alerts."""

    def __init__(self) -> None:
        self.told: list[tuple[Run, Model | None]] = []
        self.alerts: list[str] = []

    async def run_changed(self, run: Run) -> None: ...

    async def run_finished(self, run: Run, model: Model | None, *_: Any, **__: Any) -> None:
        self.told.append((run, model))

    async def notify(self, sentence: str, **values: object) -> None: ...

    async def alert(self, key: str, sentence: str, **values: object) -> None:
        self.alerts.append(key)


def merged_models(ledger: Ledger, folder: Path, *, keep: int = 3) -> MergedModels:
    """Return `MergedModels` for the runs in `folder`, with real workers that merge the models."""
    places = TrainingPaths(folder / "base", folder / "runs", folder / "sources")
    chosen = settings(keep_models=keep)
    return MergedModels(ledger, ModelStore(folder / "models"), ChildTrainer(chosen), chosen, places)


class News:
    """A stub for the pipeline; it reports whether there is anything new to learn from."""

    def __init__(self, same: Run | None = None) -> None:
        self.same = same

    async def unchanged_since(self) -> Run | None:
        return self.same


class NoEngine:
    """A stub for the model switch; it only records the live model in the ledger."""

    can_try = False

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    @asynccontextmanager
    async def engine_away(self, run: int) -> AsyncIterator[None]:
        yield

    async def stop_after_evaluation(self) -> None: ...

    async def prune(self) -> None: ...

    async def serve(self) -> None: ...

    async def promote(self, model: str, by: Actor | None, *_: Any) -> Model:
        await self._ledger.promotions.make(model, by)
        return await self._ledger.models.get(model)


def idle() -> Status:
    """Return the status of an engine that has not answered anything yet."""
    return Status(Kind.CPU, "a", State.READY, False, None, (), 0, 0, 0, 0, None, "", Counters())


@asynccontextmanager
async def serving(
    ledger: Ledger, pipeline: Any, switch: Any = None, admins: Admins | None = None
) -> AsyncIterator[RunManager]:
    """Run a `RunManager` with its background loop and the loop for model promotions, and yield it."""
    notices: Any = admins or Admins()
    switch = switch or NoEngine(ledger)
    runs = RunManager(
        ledger, pipeline, Trials(ledger, switch, idle, notices, LiveSettings(Settings())), notices, lambda: None
    )
    await runs.start()
    loops = [
        asyncio.create_task(repeat(duty, serve, notices))
        for duty, serve in {"runs": runs.serve, "promotions": switch.serve}.items()
    ]
    try:
        yield runs
    finally:
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
        await runs.stop()
