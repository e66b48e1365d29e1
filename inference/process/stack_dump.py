"""Stack traces of a hanging child process, written to its standard error on a signal.

The child calls `enable`; its parent calls `processes` and `request`. Python's faulthandler writes inside the signal
handler, even while another thread holds the GIL. Linux only (/proc). Standard library only.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Final

SIGNAL: Final = signal.SIGUSR1

_POLL_SECONDS: Final = 0.02
_WRITE_SECONDS: Final = 3.0


def enable() -> None:
    """Let this process, and those that it forks, write their stacks on the signal and on a crash."""
    faulthandler.enable()
    faulthandler.register(SIGNAL)


def processes(pid: int) -> list[int]:
    """Return the ids of a process and its descendants that handle the signal; it would end the others."""
    known = {int(file.name): _status(int(file.name)) for file in Path("/proc").glob("[0-9]*")}
    family = [pid]
    for parent in family:
        family += [each for each, status in known.items() if status.get("PPid", "").strip() == str(parent)]
    return [each for each in family if _holds(known.get(each, {}), "SigCgt")]


async def request(pid: int) -> None:
    """Signal one of `processes`; return when it has written its stacks, or after three seconds."""
    with suppress(ProcessLookupError, TimeoutError):
        os.kill(pid, SIGNAL)
        async with asyncio.timeout(_WRITE_SECONDS):
            # The signal is pending until it is delivered, and blocked until its handler has returned.
            while _holds(_status(pid), "SigPnd", "ShdPnd", "SigBlk"):  # noqa: ASYNC110 - another process can only be polled
                await asyncio.sleep(_POLL_SECONDS)


def _status(pid: int) -> dict[str, str]:
    """Return the fields of /proc/PID/status, or none if the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    return {name: value for name, _, value in (line.partition(":") for line in lines)}


def _holds(status: dict[str, str], *sets: str) -> bool:
    """Return whether the signal is in one of these signal masks."""
    return any(int(status.get(name, "0"), 16) >> (SIGNAL - 1) & 1 for name in sets)
