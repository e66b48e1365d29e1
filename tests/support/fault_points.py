"""Run a series of ledger operations many times; each time, a different write or sync fails or kills the process.

`python -m tests.support.fault_points FOLDER KIND FIRST EVERY`, run with tests/support/faults.c in
LD_PRELOAD, tests every EVERY-th fault point from FIRST on and prints the result of each as a JSON line; with
a large EVERY, it replays a single point. The last line gives the number of writes and the
number of syncs in one run of the steps. KIND is one of KINDS.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import json
import os
import shutil
import sqlite3
import sys
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

from storage.errors import NotSaved
from storage.learning_records import Rating
from storage.ledger import FILE_NAME, Ledger
from storage.state_machines import RunState
from tests.support.ledgers import exchange, picture

KINDS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO, "kill": -1, "torn write": -2}
NEVER = -1
SHOWN = ("aa" * 32, "bb" * 32)

Step = Callable[[Ledger], Awaitable[object]]

STEPS: tuple[Step, ...] = (
    lambda ledger: ledger.inbox.store([(1, "chat 1:1", '{"update_id": 1}'), (2, "chat 1:1", '{"update_id": 2}')]),
    lambda ledger: ledger.inbox.begin(1),
    lambda ledger: ledger.pictures.add(picture(SHOWN[0]), 1),
    lambda ledger: ledger.pictures.add(picture(SHOWN[1]), 1),
    lambda ledger: ledger.sessions.open(1, 1),
    lambda ledger: ledger.exchanges.record(exchange(1, 1, pictures=SHOWN)),
    lambda ledger: ledger.votes.cast(Rating(1, 1, 1, 1)),
    lambda ledger: ledger.inbox.finish(1),
    lambda ledger: ledger.runs.start("command"),
    lambda ledger: ledger.run_selections.freeze(1, [(1, "train")]),
    lambda ledger: ledger.runs.move(1, RunState.TRAINING),
    lambda ledger: ledger.personal_data.erase(1),
    lambda ledger: ledger.runs.move(1, RunState.CANCELLED),
)


def contents(folder: Path) -> str:
    """Return the ledger's contents as SQL statements."""
    with closing(sqlite3.connect(folder / FILE_NAME)) as database:
        return "\n".join(database.iterdump())


def opened(folder: Path) -> Ledger:
    """Open the ledger with a constant clock and return it."""
    return Ledger.open(folder, clock=lambda: 1000.0)


async def work(
    folder: Path, acknowledge: Callable[[], object], states: list[str], number: int, kind: int
) -> tuple[int, list[str]]:
    """Run every step, repeating any that is refused; return the number of refusals and the faults found."""
    refused, wrong = 0, []
    shim = ctypes.CDLL(None)
    async with opened(folder) as ledger:
        shim.fault_arm(ctypes.c_long(number), kind)
        for place, step in enumerate(STEPS):
            try:
                await step(ledger)
            except NotSaved:
                refused += 1
                if contents(folder) != states[place]:
                    wrong.append(f"step {place} was refused but changed the ledger")
                if not ledger.trouble:
                    wrong.append(f"step {place} was refused but the ledger reports no trouble")
                await step(ledger)
            acknowledge()
            if number == NEVER:
                states.append(contents(folder))
    return refused, wrong


def child(folder: Path, states: list[str], number: int, kind: int) -> tuple[int, int, int, list[str]]:
    """Run `work` in a child process.

    Returns:
        The exit status, the numbers of acknowledged and refused steps, and the faults.
    """
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(reading)
        outcome = asyncio.run(work(folder, lambda: os.write(writing, b"."), states, number, kind))
        os.write(writing, json.dumps(outcome).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read().decode()
    _, status = os.waitpid(process, 0)
    steps, _, rest = said.partition("[")
    refused, wrong = json.loads("[" + rest) if rest else (0, [])
    return status, len(steps), refused, wrong


def examine(folder: Path, states: list[str], acknowledged: int) -> list[str]:
    """Return the faults in a ledger after the process that used it has ended.

    The ledger must be in the state after the acknowledged steps, or after one more: the step in progress may
    be complete but unacknowledged.
    """
    with closing(sqlite3.connect(folder / FILE_NAME)) as database:
        faults = [row[0] for row in database.execute("PRAGMA integrity_check") if row[0] != "ok"]
        faults += [f"foreign key: {tuple(row)}" for row in database.execute("PRAGMA foreign_key_check")]
    if contents(folder) not in states[acknowledged : acknowledged + 2]:
        faults.append(f"the state is neither that after {acknowledged} steps nor that after {acknowledged + 1}")
    return faults


def say(line: object) -> None:
    """Print `line` as JSON, unbuffered."""
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def main(base: Path, kind: str, begin: int, every: int) -> None:
    """Test every `every`-th fault point from `begin` on and print a line for each."""
    template = base / "template"
    asyncio.run(opened(template).close())
    states = [contents(template)]

    def fresh(name: str) -> Path:
        folder = base / name
        shutil.copytree(template, folder)
        return folder

    asyncio.run(work(fresh("reference"), lambda: None, states, NEVER, 0))
    shim = ctypes.CDLL(None)
    writes, syncs = shim.fault_writes(), shim.fault_syncs()
    for number in range(begin, writes + syncs + 1, every):
        folder = fresh(str(number))
        status, acknowledged, refused, wrong = child(folder, states, number, KINDS[kind])
        killed = os.WIFSIGNALED(status)
        if not killed and acknowledged < len(STEPS):
            wrong.append(f"the process ended by itself after {acknowledged} steps")
        wrong += examine(folder, states, acknowledged)
        found = {"number": number, "killed": killed, "acknowledged": acknowledged, "refused": refused, "wrong": wrong}
        say(found)
        shutil.rmtree(folder)
    say({"writes": writes, "syncs": syncs})


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
