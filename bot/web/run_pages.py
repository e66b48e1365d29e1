"""The page of a run: its progress, its outcome and cost, its log, and the exchanges that it learned from.

While a run is active, server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html)
replace the part of the page that shows the progress. Browsers without JavaScript reload the page.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, Final

import structlog
from aiohttp import web

from bot.admin.model_deletion import bytes_on_disk
from bot.admin.progress import held_back, silence
from bot.admin.refusals import REFUSALS, refused
from bot.admin.run_manager import RunManager
from bot.admin.run_outcome import numbers
from bot.i18n import Say
from bot.redaction import without_secrets
from bot.web.charts import Chart, loss_chart
from bot.web.pages import OPERATOR, Pages, see_other, start_events
from bot.web.review import card_page
from storage.errors import StorageError
from storage.learning_records import Run
from storage.ledger import Ledger
from storage.review_cards import CardFilter
from storage.state_machines import RUN_TRANSITIONS, ModelState
from training.gate.report import Report
from training.job import Progress
from training.launcher import LastProgress
from training.number_format import clock
from training.run_folder import BLOCKS, LOSSES, SCALARS, SHEET, kept_file
from training.xtuner.scalars import losses

_RUN: Final = "/runs/{run:[0-9]{1,18}}"
LOOK_SECONDS = 1.0
HEARTBEAT_SECONDS: Final = 15.0
"""After this long without news, an event stream sends a comment, which reveals whether the browser is connected."""

LOGS: Final = ("finetune.log", "merge.log", "taste.log", "evaluate.log")
LOG_LINES: Final = 40
LOG_BYTES: Final = 64 * 1024
_TIME: Final = re.compile(r"^\S+ \S+ ")

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class RunPages:
    """The pages of runs.

    `last_progress` returns how long ago the running worker last reported progress. `secrets` are removed from
    the logs that the pages show.
    """

    ledger: Ledger
    runs: RunManager
    last_progress: Callable[[], LastProgress | None]
    pages: Pages
    threshold: int
    secrets: Sequence[str]

    def routes(self) -> list[web.RouteDef]:
        """Return the routes, which must be accessible only to the operator."""
        return [
            web.get(_RUN, self.run),
            web.get(f"{_RUN}/events", self.events),
            web.post(f"{_RUN}/cancel", self.cancel),
        ]

    async def run(self, request: web.Request, status: int = 200, notice: str = "") -> web.Response:
        """Show a run and the exchanges that it learned from or, with `?judged=1`, those used to evaluate it."""
        run, say = await self._run(request), self.pages.say(request)
        judged, cards = request.query.get("judged") == "1", self.ledger.review_cards
        progress = await self._progress(run, say)
        model = progress["model"]
        folders = [Path(each) for each in (run.directory, model.directory if model else "") if each]
        report = Report.from_json(model.report) if model and model.report else None
        starter = await self.ledger.people.get(run.requested_by) if run.requested_by else None
        context = {
            **progress,
            "notice": notice,
            "findings": [*numbers(model.report, say), *rest_of_time(run, report, say)] if model and report else [],
            "starter": starter.name if starter else "",
            "memory": report.effort.peak_memory if report else 0,
            "disk": await asyncio.to_thread(bytes_on_disk, folders),
            "sheet": kept_file(run.directory, SHEET) is not None,
            "erased": (await self.ledger.run_selections.erased()).get(run.id, 0),
            "log": await asyncio.to_thread(log_tail, run.directory, self.secrets),
            "judged": judged,
            "learned": (await cards.totals(CardFilter(run=run.id), self.threshold))[0],
            "judging": (await cards.totals(CardFilter(run=run.id, judged=True), self.threshold))[0],
            "here": request.rel_url.with_path(f"/runs/{run.id}").with_query(request.rel_url.query),
            **await card_page(self.ledger, request, CardFilter(run=run.id, judged=judged)),
        }
        return self.pages.render(request, "run.html", status=status, **context)

    async def events(self, request: web.Request) -> web.StreamResponse:
        """Send the progress of a run whenever it changes, and the event "over" once the run has ended."""
        run, say = await self._run(request), self.pages.say(request)
        response = await start_events(request)
        shown, sent = "", monotonic()
        with suppress(ConnectionResetError, StorageError):
            while True:
                text = self.pages.text(request, "progress.html", **await self._progress(run, say))
                if text != shown:
                    await response.write(_event("message", text))
                    shown, sent = text, monotonic()
                elif monotonic() - sent > HEARTBEAT_SECONDS:
                    await response.write(b":\n\n")
                    sent = monotonic()
                if not RUN_TRANSITIONS[run.state] and await self.ledger.runs.is_settled(run.id):
                    await response.write(_event("over", ""))
                    break
                await asyncio.sleep(LOOK_SECONDS)
                run = await self.ledger.runs.get(run.id)
        return response

    async def cancel(self, request: web.Request) -> web.Response:
        """Cancel a run that has not ended."""
        run, say = await self._run(request), self.pages.say(request)
        if not RUN_TRANSITIONS[run.state]:
            return await self.run(request, 409, say("Run {run} has already ended.", run=run.id))
        try:
            await self.runs.cancel(None)
        except REFUSALS as refusal:
            return await self.run(request, 409, refused(refusal, say))
        log.info("an operator cancelled a run", run=run.id, by=request[OPERATOR].name)
        return see_other(f"/runs/{run.id}")

    async def _run(self, request: web.Request) -> Run:
        return await self.ledger.runs.get(int(request.match_info["run"]))

    async def _progress(self, run: Run, say: Say) -> dict[str, Any]:
        """Return the template variables for the progress of a run."""
        last, trials = self.last_progress(), self.runs.trials
        models = await self.ledger.models.all()
        model = next((each for each in models if each.id == run.model), None)
        candidate = model is not None and model.kept and model.state is ModelState.CANDIDATE
        return {
            "run": run,
            "held": held_back(models),
            "model": model,
            "waiting": candidate and trials.settings.now.training.approve and trials.status().swapping_to != run.model,
            "active": bool(RUN_TRANSITIONS[run.state]),
            "over": not RUN_TRANSITIONS[run.state] and await self.ledger.runs.is_settled(run.id),
            "blocks": bool(run.directory) and (Path(run.directory) / BLOCKS).is_dir(),
            "cancelling": await self.ledger.runs.cancel_requested(run.id),
            "silence": silence(last) if last and last.silent and last.run == str(run.id) else None,
            "loss": await asyncio.to_thread(_loss, run, say),
        }


def rest_of_time(run: Run, report: Report, say: Say) -> list[str]:
    """Return a list with one line, the time of a run beside its stages, or an empty list if there is none."""
    effort = report.effort
    rest = run.updated - run.created - effort.training_seconds - effort.merging_seconds - report.seconds
    if round(rest) <= 0:
        return []
    return [say("Waiting, selecting data and starting processes: {time}.", time=clock(rest))]


def log_tail(directory: str, secrets: Sequence[str]) -> tuple[str, str]:
    """Return the name of the log that a run's workers last wrote to, and its last lines with secrets removed.

    Progress reports are left out. Both are empty if there is no log. Blocks while it reads the file.
    """
    found = [path for name in LOGS if (path := kept_file(directory, name))]
    if not found:
        return "", ""
    newest = max(found, key=lambda path: path.stat().st_mtime)
    with newest.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_BYTES))
        lines = file.read().decode("utf-8", "replace").splitlines()
    kept = [line for line in lines if not _is_progress(_TIME.sub("", line))]
    return newest.name, without_secrets("\n".join(kept[-LOG_LINES:]), secrets)


def _is_progress(line: str) -> bool:
    try:
        Progress.from_json(line)
    except (ValueError, TypeError, AttributeError):
        return False
    return True


def _loss(run: Run, say: Say) -> Chart | None:
    path = kept_file(run.directory, LOSSES) or kept_file(run.directory, SCALARS)
    found = losses(path) if path else []
    return loss_chart(found, say("Loss of run {run}", run=run.id), say) if found else None


def _event(name: str, text: str) -> bytes:
    lines = "\n".join(f"data: {line}" for line in text.splitlines() or [""])
    return f"event: {name}\n{lines}\n\n".encode()
