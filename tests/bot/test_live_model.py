"""The record of the live model: written in one commit, and repaired after an interrupted first start."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

from bot.admin.startup_checks import settle_live_model
from storage.learning_records import BASE, Model
from storage.ledger import Ledger
from storage.state_machines import ModelState

ROOT = Path(__file__).parents[2]

KILLED_AFTER_A_COMMIT = """
import asyncio, os, signal, sys
from pathlib import Path
from bot.admin.startup_checks import settle_live_model
from storage.ledger import Ledger
from storage.writer import Writer

folder = Path(sys.argv[1])
commit = Writer._commit

def commit_and_die(writer, batch):
    commit(writer, batch)
    os.kill(os.getpid(), signal.SIGKILL)

Writer._commit = commit_and_die

async def start():
    async with Ledger.open(folder) as ledger:
        await settle_live_model(ledger, folder / "base", folder / "models")

asyncio.run(start())
"""


async def test_a_first_start_that_is_killed_leaves_a_live_model(tmp_path: Path) -> None:
    """If the first start is killed right after its first commit, the ledger already has a live model."""
    killed = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", KILLED_AFTER_A_COMMIT, str(tmp_path)], cwd=ROOT
    )
    assert killed.returncode == -signal.SIGKILL
    async with Ledger.open(tmp_path) as ledger:
        live = await ledger.models.live()
        assert live is not None
        assert live.id == BASE
        assert [each.model for each in await ledger.promotions.latest()] == [BASE]
        assert (await ledger.models.version(BASE)).number == 1


async def test_a_ledger_without_a_live_model_is_healed(tmp_path: Path) -> None:
    """A ledger left without a live model by an interrupted first start is repaired at the next start.

    An earlier version made two commits and could be killed between them.
    """
    base = tmp_path / "base"
    async with Ledger.open(tmp_path) as ledger:
        await ledger.models.add(Model(BASE, str(base), ModelState.CANDIDATE, None, 0.0))
        for _ in range(2):
            live, trouble = await settle_live_model(ledger, base, tmp_path / "models")
            assert (live.id, live.state, trouble) == (BASE, ModelState.LIVE, None)
