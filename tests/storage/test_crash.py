"""Acknowledged writes survive `kill -9`, and two processes may write at once; tested with child processes."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import sys
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from storage.ledger import FILE_NAME, Ledger
from storage.picture_files import PictureStore
from tests.support.ledgers import picture_bytes

ROOT = Path(__file__).parents[2]
NEVER = 10**9
"""More updates than any child manages before it is killed."""


@asynccontextmanager
async def child(directory: Path, first: int, count: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """Yield a `tests.support.ledgers` process that has opened the ledger; kill it on exit if still running."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.support.ledgers", str(directory), str(first), str(count), cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"open %d\n" % first
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def output(process: asyncio.subprocess.Process) -> dict[str, set[int]]:
    """Return the updates that the child reported as acknowledged, by step, ignoring a truncated last line."""
    assert process.stdout is not None
    steps: dict[str, set[int]] = defaultdict(set)
    for line in (await process.stdout.read()).splitlines(keepends=True):
        if line.endswith(b"\n"):
            step, update = line.split()
            steps[step.decode()].add(int(update))
    return steps


async def check(directory: Path, steps: dict[str, set[int]]) -> None:
    """Assert that everything acknowledged in `steps` is stored exactly once and that the file is sound."""
    pictures = PictureStore(directory / "pictures")
    async with Ledger.open(directory) as ledger:
        pending = {update.id: update for update in await ledger.inbox.pending()}
        for update in steps["stored"] - steps["finished"]:
            stored = await ledger.inbox.get(update)
            assert update in pending or stored.state == "done"
        assert not steps["finished"] & pending.keys()
        for update in steps["sent"]:
            assert [reply.message for reply in await ledger.replies.for_update(update)] == [update + 1]
        for update in steps["exchange"]:
            found = await ledger.exchanges.for_update(update)
            assert found is not None
            assert await pictures.get(found.pictures[0]) == picture_bytes(update)
            if update in steps["rated"]:
                assert await ledger.votes.latest(found.id, found.asker) == (1 if update % 2 else -1)
    database = sqlite3.connect(directory / FILE_NAME)
    try:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert database.execute("PRAGMA foreign_key_check").fetchall() == []
        votes = [row[0] for row in database.execute('SELECT "update" FROM feedback')]
        assert len(votes) == len(set(votes))
        assert steps["rated"] <= set(votes)
    finally:
        database.close()


async def kill_again_and_again(directory: Path, rounds: int, seed: int) -> int:
    """Kill `rounds` children in turn while they write; return the total number of acknowledged steps.

    Each kill comes at a random moment, and all the children write to the same ledger.
    """
    random_moment = random.Random(seed)
    acknowledged = 0
    for number in range(rounds):
        async with child(directory, (number + 1) * NEVER, NEVER) as process:
            await asyncio.sleep(random_moment.uniform(0.0, 0.5))
            process.kill()
            steps = await output(process)
        await check(directory, steps)
        acknowledged += sum(map(len, steps.values()))
    return acknowledged


async def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    """Everything that the ledger acknowledged to a child is still there after the child is killed.

    The kill comes at a random moment.
    """
    assert await kill_again_and_again(tmp_path, rounds=6, seed=1) > 50


@pytest.mark.soak
async def test_what_was_acknowledged_survives_kill_9_sixty_times(tmp_path: Path) -> None:
    """Acknowledged writes survive sixty kills of children that write to one ledger."""
    assert await kill_again_and_again(tmp_path, rounds=60, seed=2) > 500


async def test_two_processes_write_at_once(tmp_path: Path) -> None:
    """Two processes writing to one ledger wait for each other instead of failing, and all writes are kept."""
    async with child(tmp_path, 0, 60) as one, child(tmp_path, 1000, 60) as other:
        first, second = await asyncio.gather(output(one), output(other))
        assert (await one.wait(), await other.wait()) == (0, 0)
    assert first["finished"] == set(range(60))
    assert second["finished"] == set(range(1000, 1060))
    await check(tmp_path, first)
    await check(tmp_path, second)
    async with Ledger.open(tmp_path) as ledger:
        counts = await ledger.counts.totals()
        assert (counts["exchanges"], counts["votes"], counts["updates_pending"]) == (120, 120, 0)
        assert counts["users"] == counts["sessions"] == 5


async def test_a_killed_process_does_not_hold_up_the_other(tmp_path: Path) -> None:
    """A process killed while writing leaves no lock behind, so another process can continue."""
    async with Ledger.open(tmp_path) as ledger, child(tmp_path, NEVER, NEVER) as process:
        await asyncio.sleep(0.1)
        process.kill()
        steps = await output(process)
        assert await ledger.inbox.store([(1, "chat 1", "{}")]) == [True]
        for update in steps["rated"]:
            assert await ledger.exchanges.for_update(update) is not None
