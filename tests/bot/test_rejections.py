"""A run whose model was rejected is not shown as a success."""

from __future__ import annotations

from contextlib import redirect_stdout
from datetime import datetime
from io import StringIO
from pathlib import Path
from typing import Any

import aiohttp

from bot.admin.monitoring import Monitoring, Overview
from bot.chat.answer_times import AnswerTimes
from bot.cli import control
from bot.config import Settings
from bot.i18n import Translator
from bot.live_settings import LiveSettings
from bot.settings import WebSettings
from bot.web.pages import Pages
from bot.web.server import WebServer
from inference.serving.engine_launch import free_port
from storage.learning_records import Model
from storage.ledger import Ledger
from storage.state_machines import ModelState, RunState
from storage.translatable_reason import Reason
from tests.support.chatting import ADMIN, Notebook, Stage, final_reply

WHY = Reason(
    "it is no better on the held-out liked answers (loss per token {new}, live model {live})", new="1.2", live="1.1"
)


class NoSchedule:
    """A stub schedule that has no jobs."""

    cron = ""

    def next_time(self) -> datetime | None:
        return None


class Engines:
    """A stub deployment whose engines are healthy."""

    def status(self) -> object:
        return Notebook().engine


async def no_call(_: dict[str, object]) -> None: ...


async def rejected_run(ledger: Ledger, directory: Path) -> Overview:
    """Add a run with a rejected model to the ledger, and return the ledger's overview."""
    run = await ledger.runs.start("admin", ADMIN)
    for state in (RunState.TRAINING, RunState.MERGING, RunState.EVALUATING):
        await ledger.runs.move(run.id, state)
    await ledger.models.add(Model("base", str(directory), ModelState.LIVE, None, 1.0))
    await ledger.models.add(Model("run-1", str(directory), ModelState.REJECTED, run.id, 2.0, reason=WHY))
    await ledger.runs.move(run.id, RunState.DONE, model="run-1")
    return await vitals(ledger).overview()


def vitals(ledger: Ledger) -> Monitoring:
    made: Any = Monitoring  # what stands in for others is of no type that it names
    found: Monitoring = made(
        ledger, Engines(), NoSchedule(), dict, lambda: None, AnswerTimes(), LiveSettings(Settings())
    )
    return found


async def test_the_operator_sees_that_a_model_was_rejected(tmp_path: Path) -> None:
    """The operator page and the command line show a run with a rejected model as rejected, with the reason."""
    async with Ledger.open(tmp_path) as ledger:
        await rejected_run(ledger, tmp_path)
        server = WebServer(
            Settings(web=WebSettings(port=free_port())), vitals(ledger), no_call, Pages(Translator.load())
        )
        try:
            async with aiohttp.ClientSession(await server.start()) as session, session.get("/") as page:
                shown = await page.text()
        finally:
            await server.stop()
        runs = shown.split("<h2>Runs</h2>")[1].split("<h2>")[0]
        assert '<td class="rejected">rejected</td>' in runs
        assert WHY in runs
        assert "done" not in runs
        with redirect_stdout(StringIO()) as terminal:
            await control.status(ledger, True)
        printed = terminal.getvalue()
        assert "rejected" in printed
        assert WHY in printed
        assert "done" not in printed


async def test_status_says_that_a_model_was_rejected(stage: Stage, tmp_path: Path) -> None:
    """/status shows in the admin's language that a run's model was rejected, and why."""
    async with Ledger.open(tmp_path / "another") as ledger:
        overview = await rejected_run(ledger, tmp_path)
    notebook = Notebook(runs=overview.runs, held_back=dict(overview.held_back))
    async with stage.bot(admin=notebook), stage.person(ADMIN, "Root") as root:
        for command in ("/status", "/schedule"):
            assert f"Run 1: rejected ({WHY})" in (await final_reply(root, command))["text"]
    async with stage.bot(admin=notebook), stage.person(ADMIN, "Root", "zh") as root:
        said = (await final_reply(root, "/status"))["text"]
        assert "第 1 次训练：未采用 (" in said
        assert "token" not in said
