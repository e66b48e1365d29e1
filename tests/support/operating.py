"""An AdminService for tests over a real ledger: notifications are recorded, and no engine changes its model."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

from bot.admin.canary import Trials
from bot.admin.service import AdminService
from inference.engines.commands import Kind
from inference.serving.deployment_status import Counters, Status
from inference.serving.supervisor import State
from storage.learning_records import Model, Run
from storage.ledger import Ledger
from storage.model_store import ModelStore
from tests.support.lessons import settings
from training.job_specs import TrainingPaths
from training.launcher import ChildTrainer
from training.merged_models import MergedModels


class Admins:
    """A stub of the notifications that records the ends of runs and the keys of alerts."""

    def __init__(self) -> None:
        self.told: list[tuple[Run, Model | None]] = []
        self.alerts: list[str] = []

    async def run_changed(self, run: Run) -> None: ...

    async def run_finished(self, run: Run, model: Model | None, *_: Any, **__: Any) -> None:
        self.told.append((run, model))

    async def notify(self, sentence: str, **values: object) -> None: ...

    async def alert(self, key: str, sentence: str, **values: object) -> None:
        self.alerts.append(key)


class Nothing:
    """A stub of the erasure with nothing to remove, and of notes that are not due."""

    async def settle(self) -> None: ...

    async def send(self) -> None: ...


def merged_models(ledger: Ledger, folder: Path, *, keep: int = 3) -> MergedModels:
    """Return the merged models of the runs in `folder`; real workers merge them."""
    places = TrainingPaths(folder / "base", folder / "runs", folder / "sources")
    return MergedModels(ledger, ModelStore(folder / "models"), ChildTrainer(settings()), places, keep=keep)


class News:
    """A stub of the pipeline that says whether there is something to learn from."""

    def __init__(self, same: Run | None = None) -> None:
        self.same = same

    async def unchanged_since(self) -> Run | None:
        return self.same


class NoEngine:
    """A stub of the model switch that only records the live model in the ledger."""

    can_try = False

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    @asynccontextmanager
    async def engine_away(self, run: int) -> AsyncIterator[None]:
        yield

    async def prune(self) -> None: ...

    async def promote(self, model: str, by: int | None, *_: Any) -> Model:
        await self._ledger.promotions.make(model, by)
        return await self._ledger.models.get(model)


def idle() -> Status:
    """Return the status of an engine that has answered nothing yet."""
    return Status(Kind.CPU, "a", State.READY, False, None, (), 0, 0, 0, 0, None, "", Counters())


def operations(ledger: Ledger, pipeline: Any, changeover: Any = None, admins: Admins | None = None) -> AdminService:
    """Return an AdminService that is not started."""
    notices: Any = admins or Admins()
    trials = Trials(ledger, changeover or cast(Any, NoEngine(ledger)), idle, notices)
    made: Any = AdminService  # what stands in for others is of no type that it names
    found: AdminService = made(
        ledger=ledger,
        pipeline=pipeline,
        trials=trials,
        vitals=None,
        notices=notices,
        forgetting=Nothing(),
        notes=Nothing(),
        trainer_missing=lambda: None,
    )
    return found
