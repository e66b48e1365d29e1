"""What the command line shows of runs and models, on a terminal."""

from __future__ import annotations

import asyncio
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from bot import remote
from storage.ledger import Ledger
from storage.records import Model
from storage.states import ModelState, RunState

WHY = "the finetune process died; it said last: [rank0]: no memory at [/opt/x.cpp:12]"


async def test_reasons_are_shown_as_they_are(tmp_path: Path) -> None:
    """Brackets in what a process said last are neither styles nor the end of one."""
    terminal = StringIO()
    console = Console(file=terminal, width=300)
    async with Ledger.open(tmp_path) as ledger:

        async def fail() -> None:
            while (run := await ledger.active_run()) is None:
                await asyncio.sleep(0.01)
            await ledger.move_run(run.id, RunState.FAILED, reason=WHY)

        failing = asyncio.create_task(fail())
        with pytest.raises(SystemExit):
            await remote.retrain(ledger, True, True, console)
        await failing
        await ledger.add_model(Model("run-9", "/models/[9]", ModelState.REJECTED, None, 1.0, reason=WHY))
        await remote.status(ledger, console)
        await remote.models(ledger, console)
    assert terminal.getvalue().count(WHY) == 3
    assert "/models/[9]" in terminal.getvalue()
