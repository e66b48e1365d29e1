"""Runtime metrics and health, for the operator page, /status, /health and /metrics."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from prometheus_client.registry import Collector

from bot.admin.canary_standing import Standing, standing
from bot.admin.progress import held_back
from bot.admin.schedule import Schedule
from bot.chat.answer_times import AnswerTimes
from bot.live_settings import LiveSettings, json_value
from inference.serving.deployment import Deployment
from inference.serving.deployment_status import Status
from inference.serving.supervisor import State
from storage.errors import StorageError
from storage.learning_records import Model, Run
from storage.ledger import Ledger
from training.launcher import LastProgress
from training.run_folder import CURVE, SHEET, kept_file

RUNS_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Overview:
    """The state of the bot at one moment.

    Attributes:
        approve: Whether candidates need an admin's approval.
        changed: The value in force of each setting that was changed on the Settings page, by key.
        curve: The ID of the newest run with a loss curve; None if there is none.
        sheets: The IDs of the runs with a comparison sheet.
        last_progress: The last progress of the running worker; None if no worker is running.
    """

    live: str
    canary: Standing | None
    engine: Status
    runs: list[Run]
    models: list[Model]
    approve: bool
    counts: Mapping[str, int]
    next_run: datetime | None
    schedule: str
    changed: Mapping[str, Any]
    curve: int | None
    sheets: frozenset[int]
    last_progress: LastProgress | None

    @property
    def held_back(self) -> dict[str, Model]:
        """The rejected and undecided models by ID."""
        return held_back(self.models)


@dataclass(eq=False)
class Monitoring:
    """Reads the current state of the ledger, the engines, the schedule and the calls to Telegram.

    `calls` returns the metrics of calls to Telegram, and `last_progress` returns how long ago the running
    worker last reported progress. `times` records how long people waited for answers.
    """

    ledger: Ledger
    deployment: Deployment
    schedule: Schedule
    calls: Callable[[], Mapping[str, float]]
    last_progress: Callable[[], LastProgress | None]
    times: AnswerTimes
    settings: LiveSettings

    async def overview(self) -> Overview:
        """Return the state that the operator page and /status show."""
        live = await self.ledger.models.live()
        runs = await self.ledger.runs.latest(RUNS_SHOWN)
        curves = [run.id for run in runs if kept_file(run.directory, CURVE)]
        return Overview(
            live=live.id if live else "",
            canary=await standing(self.ledger, self.settings.now.trust),
            engine=self.deployment.status(),
            runs=runs,
            models=await self.ledger.models.all(),
            approve=self.settings.now.training.approve,
            counts=await self.ledger.counts.totals(),
            next_run=self.schedule.next_time(),
            schedule=self.schedule.cron,
            changed={key: json_value(self.settings.now, key) for key in self.settings.changes},
            curve=curves[0] if curves else None,
            sheets=frozenset(run.id for run in runs if kept_file(run.directory, SHEET)),
            last_progress=self.last_progress(),
        )

    async def ping(self) -> dict[str, str]:
        """Return the health of each service: "ok" or an error message."""
        status = self.deployment.status()
        try:
            await self.ledger.models.live()
            ledger = self.ledger.trouble or "ok"
        except StorageError as error:
            ledger = str(error)
        engine = "ok" if status.state is State.READY or status.paused else str(status.last_error or status.state)
        return {"ledger": ledger, "engine": engine}

    async def numbers(self) -> tuple[dict[str, float], dict[str, str], dict[str, dict[str, float]]]:
        """Return the metrics by name, the labels of the running model and engine, and each node's metrics."""
        status = self.deployment.status()
        numbers: dict[str, float] = dict(await self.ledger.counts.totals())
        numbers |= {f"telegram_{name}": value for name, value in self.calls().items()}
        counters = status.stats.totals | asdict(status.counters)
        numbers |= {f"engine_{name}": value for name, value in counters.items()}
        numbers |= {
            "disk_free_bytes": shutil.disk_usage(self.ledger.path.parent).free,
            "engine_ready": status.state is State.READY,
            "engine_paused": status.paused,
            "engine_restarts": status.restarts,
            "engine_in_flight": status.in_flight,
            "engine_waiting": status.waiting,
            "engine_uptime_seconds": status.uptime,
        }
        found = await standing(self.ledger, self.settings.now.trust)
        numbers |= {
            "canary_share": found.trial.share if found else 0,
            "canary_votes": found.canary.votes if found else 0,
            "canary_live_votes": found.live.votes if found else 0,
            "canary_evidence_worse": found.evidence.harm if found else 0,
            "canary_evidence_no_worse": found.evidence.no_worse if found else 0,
        }
        engines = await self.deployment.engine_numbers()
        nodes: dict[str, dict[str, float]] = {
            node.name: {
                "ready": node.state is State.READY,
                "away": node.away,
                "in_flight": node.in_flight,
                "chats": node.chats,
                "waiting": node.waiting,
                **node.stats.totals,
                **engines.get(node.name, {}),
            }
            for node in status.nodes
        }
        return numbers, {"model": status.model, "engine": status.engine}, nodes

    def histograms(self) -> tuple[Collector, ...]:
        """Return the histograms of waiting times."""
        return self.times.first_word, self.times.answer, self.deployment.first_token

    async def run_file(self, run: int, name: str) -> Path | None:
        """Return the path of a file that a run has written, or None if the file does not exist.

        Raises `UnknownRecord` for an unknown run.
        """
        return kept_file((await self.ledger.runs.get(run)).directory, name)
