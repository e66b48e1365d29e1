"""Where a process that hangs stands: it writes the stacks of its threads to its standard error when a signal asks.

`answer` is for the process, `answering` and `ask` for whoever started it. Python's faulthandler writes from within the
signal's handler, whatever holds Python's lock. Knows Linux's /proc. Standard library only.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Final

ASKING: Final = signal.SIGUSR1

_LOOK_SECONDS: Final = 0.02


def answer() -> None:
    """From now on this process, and those that it forks, write their stacks when asked and when they crash."""
    faulthandler.enable()
    faulthandler.register(ASKING)


def answering(pid: int) -> list[int]:
    """Which of a process and all that it started would answer. To others the signal would be the end."""
    known = {int(file.name): _status(int(file.name)) for file in Path("/proc").glob("[0-9]*")}
    family = [pid]
    for parent in family:
        family += [each for each, status in known.items() if status.get("PPid", "").strip() == str(parent)]
    return [each for each in family if _holds(known.get(each, {}), "SigCgt")]


async def ask(pid: int, patience: float = 3.0) -> None:
    """Ask a process that answers; return when it has written, or after `patience` seconds if the kernel holds it."""
    with suppress(ProcessLookupError, TimeoutError):
        os.kill(pid, ASKING)
        async with asyncio.timeout(patience):
            # Pending until it is taken, and blocked until its handler has returned.
            while _holds(_status(pid), "SigPnd", "ShdPnd", "SigBlk"):  # noqa: ASYNC110 another process can only be polled
                await asyncio.sleep(_LOOK_SECONDS)


def _status(pid: int) -> dict[str, str]:
    """The lines of /proc/PID/status, empty when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    return {name: value for name, _, value in (line.partition(":") for line in lines)}


def _holds(status: dict[str, str], *sets: str) -> bool:
    """Whether the signal is in one of these sets of signals."""
    return any(int(status.get(name, "0"), 16) >> (ASKING - 1) & 1 for name in sets)
