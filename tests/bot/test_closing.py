"""Shutdown completes despite hanging threads, hanging steps, or an admin who cannot be notified."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psutil
import pytest
import structlog

from bot import shutdown
from bot.shutdown import closed
from storage.state_machines import RunState
from tests.support.community import ADMIN, Community

STUCK = """
import time
import bot.app, training.run_plan
def choosing_for_ever(*_, **__):
    print("choosing", flush=True)
    time.sleep(3600)
training.run_plan.select_pairs = choosing_for_ever
bot.app.THREAD_SECONDS = 0.5
"""


async def test_a_step_that_hangs_is_named_and_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shutdown step that exceeds its time limit is cancelled, and abandoned if it ignores the cancellation.

    The log names the step in both cases.
    """
    monkeypatch.setattr(shutdown, "SLOW_SECONDS", 0.01)
    monkeypatch.setattr(shutdown, "_LAST_SECONDS", 0.05)
    ended: list[str] = []
    free = asyncio.Event()

    async def obedient() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("obedient")

    async def stubborn() -> None:
        while not free.is_set():
            try:
                await free.wait()
            except asyncio.CancelledError:
                ended.append("stubborn was asked")

    with structlog.testing.capture_logs() as log:
        await closed("first", obedient, 0.05)
        await closed("second", stubborn, 0.05)
    assert ended == ["obedient", "stubborn was asked"]
    said = [(line["step"], line["event"]) for line in log]
    assert said == [
        (step, event) for step in ("first", "second") for event in ("still stopping", "not stopped in time")
    ]
    free.set()


async def test_a_step_that_fails_says_so() -> None:
    """An error raised by a shutdown step within its time limit is propagated."""

    async def failing() -> None:
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        await closed("ledger", failing)


async def test_a_thread_that_never_ends_does_not_keep_the_bot(tmp_path: Path, warm_python: str) -> None:
    """On SIGTERM during an endless computation, the bot closes resources, cancels the run and logs the stack."""
    async with Community(tmp_path, python=warm_python) as community:
        community.bot.sabotage = STUCK
        await community.bot.start()
        await _run_under_way(community)
        family = psutil.Process(community.bot.process.pid).children(recursive=True)
        assert family
        assert await community.bot.stop() == 1
        _, alive = await asyncio.to_thread(psutil.wait_procs, family, 10)
        assert alive == []
        said = community.bot.tail(80)
        assert "stopped" in said
        assert "choosing_for_ever" in said
        run = await community.ended_run()
        assert run.state is RunState.CANCELLED
        assert not (community.data / "ledger.db-wal").exists()


async def test_an_admin_who_cannot_be_told_does_not_keep_the_bot(tmp_path: Path, warm_python: str) -> None:
    """If SIGTERM arrives during ten minutes of flood control, the ledger still records the run's end.

    The notification to the admin is dropped.
    """
    async with Community(tmp_path, python=warm_python) as community:
        community.bot.sabotage = STUCK.replace("3600", "1")
        await community.bot.start()
        community.emulator.faults.plan("flood", 100, chat=ADMIN, seconds=600)
        await _run_under_way(community)
        await community.bot.stop()
        assert community.emulator.faults.struck
        run = await community.ended_run()
        assert run.state is RunState.CANCELLED
        assert "not stopped in time" not in community.bot.tail()


async def _run_under_way(community: Community) -> None:
    """Request a run as the command line does, and wait until the bot is selecting the training data."""
    async with community.ledger() as ledger:
        await ledger.runs.start("command", None)
    async with asyncio.timeout(60):
        while "choosing" not in community.bot.tail():
            await asyncio.sleep(0.05)
