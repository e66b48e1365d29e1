"""Each of the ledger writer's writes and syncs in turn fails or kills the process, with real system calls.

To replay a single failing point, pass its number as FIRST (the shim is tests/support/faults.c):
`LD_PRELOAD=…/faults.so python -m tests.support.fault_points FOLDER KIND FIRST 1000`.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.fault_points import KINDS, STEPS

TESTS = Path(__file__).parents[1]
COMPILER = shutil.which("cc")

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD and /proc are Linux's"),
    pytest.mark.skipif(COMPILER is None, reason="there is no C compiler"),
]


async def _output(*words: str, **environment: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *words, cwd=TESTS.parent, env={**os.environ, **environment}, stdout=asyncio.subprocess.PIPE
    )
    said, _ = await process.communicate()
    assert process.returncode == 0
    return said.decode()


async def survives(folder: Path, kind: str, *, every: int) -> None:
    """Make every `every`-th write or sync fail as `kind` specifies, checking the ledger after each failure."""
    shim = folder / "faults.so"
    await _output(str(COMPILER), "-shared", "-fPIC", "-o", str(shim), str(TESTS / "support" / "faults.c"), "-ldl")
    script = (sys.executable, "-m", "tests.support.fault_points", str(folder / "ledgers"), kind, "1", str(every))
    lines: list[dict[str, Any]] = [
        json.loads(line) for line in (await _output(*script, LD_PRELOAD=str(shim))).splitlines()
    ]
    *points, counted = lines
    assert counted["syncs"] >= len(STEPS), "each step is acknowledged behind a sync of its own"
    assert len(points) == len(range(1, counted["writes"] + counted["syncs"] + 1, every))
    assert [each for each in points if each["wrong"]] == []
    if kind in ("ENOSPC", "EIO"):
        assert not any(each["killed"] for each in points)
        assert sum(each["refused"] for each in points) > len(points) / 2, "the rest fell on checkpoints"
    else:
        assert all(each["killed"] for each in points)


@pytest.mark.parametrize("kind", KINDS)
async def test_what_was_acknowledged_stays_and_nothing_half_stands(tmp_path: Path, kind: str) -> None:
    """Whichever call fails, a refused step leaves no trace in the ledger.

    After a kill, the ledger is exactly as a complete step left it.
    """
    await survives(tmp_path, kind, every=9)


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS)
async def test_each_single_write_and_sync_may_fail(tmp_path: Path, kind: str) -> None:
    """Any single write or sync may fail, or kill the process, without leaving half a step in the ledger."""
    await survives(tmp_path, kind, every=1)
